"""Tab completion: subcommands, options, queues, presets, sessions, kernels, variables, files."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ClearMLSessionError
from .arguments import HELP, Command, Option, Takes
from .client import Client
from .commands import PLACES, commands

DEADLINE = 2.0
"""Seconds that the server gets to answer while somebody waits for completions."""
FRESH = 10.0
"""Seconds for which an answer is used again."""

# A word as `arguments.split` sees it; its last quotation mark may still be open.
_WORD = re.compile(r"""(?:[^\s"']|"[^"]*(?:"|$)|'[^']*(?:'|$))+""")
_MAGIC = re.compile(r"(?:^|=\s*|\s)%{1,2}clearml_session(?P<rest>\s.*)$", re.DOTALL)


class Completer:
    """Completes the line of a magic. Failures of the network give no completions, never an error."""

    def __init__(self, client: Client, variables: Callable[[], Iterable[str]]) -> None:
        self._client = client
        self._variables = variables
        self._kept: dict[str, tuple[float, list[str]]] = {}

    def complete(self, text: str) -> tuple[str, list[str]] | None:
        """Return the word before the cursor and what it can become.

        ``text`` is the line up to the cursor; None where it is not one of our magics.
        """
        match = _MAGIC.search(text)
        if match is None:
            return None
        before, fragment = _words(match["rest"])
        if not before:
            return fragment, _starting(commands(), fragment)
        command = commands().get(before[0])
        if command is None:
            return fragment, []
        return self._argument(command, before[1:], fragment)

    def _argument(self, command: Command, before: Sequence[str], fragment: str) -> tuple[str, list[str]]:
        name, equals, value = fragment.partition("=")
        if equals and (option := command.option(name)) is not None:
            return value, self._values(option, value)
        if fragment.startswith("-"):
            names = [each for option in (*command.options, HELP) for each in option.names]
            return fragment, _starting(names, fragment)
        open_option = _open_option(command, before)
        if open_option is not None:
            if open_option.completes == "variables":
                fragment = fragment.rpartition(",")[2]
            return fragment, self._values(open_option, fragment)
        found = [each for kind in command.completes for each in self._known(kind)]
        if before and not any(word.startswith("-") for word in before):
            # A name of several words needs no quotation marks.
            begun = " ".join(before) + " "
            rest = (
                _unquoted(each).removeprefix(begun) for each in found if _unquoted(each).startswith(begun)
            )
            found = [*rest, *(each for each in found if each in PLACES)]
        return fragment, _starting(found, fragment)

    def _values(self, option: Option, fragment: str) -> list[str]:
        if option.choices:
            return _starting(option.choices, fragment)
        if option.completes == "files":
            return _files(fragment)
        return _starting(self._known(option.completes), fragment)

    def _known(self, kind: str) -> list[str]:
        """Return all values of a kind; a word that is no kind stands for itself."""
        if kind == "variables":
            return sorted(self._variables())
        ask = self._askers().get(kind)
        if ask is None:
            return [kind] if kind else []
        kept = self._kept.get(kind)
        if kept is not None and time.monotonic() - kept[0] < FRESH:
            return kept[1]
        try:
            values = ask()
        except ClearMLSessionError:
            values = []
        self._kept[kind] = time.monotonic(), values
        return values

    def _askers(self) -> Mapping[str, Callable[[], list[str]]]:
        return {
            "queues": lambda: [_quoted(queue["name"]) for queue in self._client.queues(DEADLINE)],
            "presets": lambda: [_quoted(name) for name in self._client.presets(DEADLINE).get("presets", {})],
            "sessions": self._sessions,
            "ended": lambda: [each["id"] for each in self._client.sessions("ended", deadline=DEADLINE)],
            "kernels": self._kernels,
        }

    def _sessions(self) -> list[str]:
        sessions = self._client.sessions(deadline=DEADLINE)
        return [_quoted(s["name"]) for s in sessions] + [s["id"] for s in sessions]

    def _kernels(self) -> list[str]:
        sessions = self._client.sessions(deadline=DEADLINE)
        specs = {spec for session in sessions for spec in session.get("kernelspecs") or ()}
        # clearml-<first 8 of the session's id>-<name there>
        return sorted({spec.split("-", 2)[2] for spec in specs if spec.count("-") >= 2})


def add_matcher(shell: Any, completer: Completer) -> None:
    """Make IPython's completer ask ours; a matcher of an earlier load is replaced."""
    ipython_completer: Any = getattr(shell, "Completer", None)
    if not hasattr(ipython_completer, "custom_matchers"):
        return  # before IPython 8.6
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="clearml_session")  # type: ignore[untyped-decorator]
    def clearml_session_matcher(context: Any) -> Any:
        found = completer.complete(context.text_until_cursor)
        if found is None:
            return {"completions": []}
        fragment, words = found
        return {
            "completions": [SimpleCompletion(text=word, type="magic") for word in words],
            "matched_fragment": fragment,
            # Names of Python have no place in our line.
            "suppress": True,
            "ordered": True,
        }

    others = [
        each
        for each in ipython_completer.custom_matchers
        if getattr(each, "matcher_identifier", "") != "clearml_session"
    ]
    ipython_completer.custom_matchers[:] = [*others, clearml_session_matcher]


def _open_option(command: Command, before: Sequence[str]) -> Option | None:
    """Return the option whose value the cursor is at, if any."""
    for distance, word in enumerate(reversed(before)):
        option = command.option(word) if word.startswith("-") else None
        if option is not None:
            takes_more = option.takes is Takes.MANY or (
                option.takes in (Takes.ONE, Takes.LIST, Takes.MAYBE_ONE) and distance == 0
            )
            return option if takes_more else None
    return None


def _files(fragment: str) -> list[str]:
    folder, slash, begun = fragment.rpartition("/")
    try:
        base = Path(folder + slash).expanduser() if folder + slash else Path()
        names = sorted(each.name + ("/" if each.is_dir() else "") for each in base.iterdir())
    except (OSError, RuntimeError, ValueError):  # not there, nobody's home, a NUL
        return []
    return [_quoted(folder + slash + name) for name in names if name.startswith(begun)]


def _words(text: str) -> tuple[list[str], str]:
    """Return the words that are complete, without quotation marks, and the one that the cursor is at, with them."""
    words = list(_WORD.finditer(text))
    if words and words[-1].end() == len(text):
        return [_unquoted(word[0]) for word in words[:-1]], words[-1][0]
    return [_unquoted(word[0]) for word in words], ""


def _starting(words: Iterable[str], fragment: str) -> list[str]:
    return list(dict.fromkeys(word for word in words if _unquoted(word).startswith(_unquoted(fragment))))


def _quoted(word: str) -> str:
    return f'"{word}"' if re.search(r"\s", word) else word


def _unquoted(word: str) -> str:
    return word.strip("\"'")
