"""The words behind ``%clearml_session``: pure parsing, from tables of commands and options.

Not `argparse`: `import clearml` patches it, so that a notebook which uses ClearML would see our arguments stored
as parameters of its own Task; and the completer needs the tables anyway.
"""

from __future__ import annotations

import difflib
import os
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..errors import BadArguments

TRUE = ("true", "yes")
FALSE = ("false", "no")

# Widths of the two columns of help.
_LEFT, _RIGHT = 36, 72


class Takes(Enum):
    """How many words an option takes."""

    NOTHING = "nothing"
    ONE = "one"
    MAYBE_ONE = "maybe one"
    MANY = "many"
    LIST = "list"
    """Values by commas; blanks may stand beside a comma."""
    SWITCH = "switch"
    """Alone it means true; ``true``, ``yes``, ``false`` and ``no`` may follow, as in the command line."""


@dataclass(frozen=True)
class Option:
    """One option. ``names`` start with the one that help shows; ``dest`` is the key of the parsed value."""

    names: tuple[str, ...]
    dest: str
    help: str
    takes: Takes = Takes.ONE
    metavar: str = ""
    choices: tuple[str, ...] = ()
    completes: str = ""
    """What its values are: "queues", "presets", "sessions", "kernels", "variables", "files" or nothing known."""
    number: type[int] | type[float] | None = None
    group: str = ""


@dataclass(frozen=True)
class Command:
    """A subcommand. ``positional`` names what the words without an option are, for help."""

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    positional: str = ""
    completes: tuple[str, ...] = ()
    """What the words without an option are, as in `Option.completes`, or words themselves."""

    def option(self, word: str) -> Option | None:
        """Return the option that ``word`` names in full."""
        return next((option for option in self.options if word in option.names), None)


HELP = Option(("--help", "-h"), "help", "Show this help.", Takes.NOTHING)


@dataclass
class Parsed:
    """What was given: values by ``dest`` (only those given) and the words without an option, in order."""

    values: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def get(self, dest: str, default: Any = None) -> Any:
        return self.values.get(dest, default)


def split(line: str) -> list[str]:
    """Split a line as a shell does. Raises BadArguments where a quotation mark is not closed."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if os.name == "nt":
        lexer.escape = ""  # a backslash is part of a path there
    try:
        return list(lexer)
    except ValueError:
        raise BadArguments(f"A quotation mark is not closed in: {line.strip()}") from None


def find_command(commands: Mapping[str, Command], name: str) -> Command:
    """Return the subcommand ``name``. Raises BadArguments with the nearest names."""
    command = commands.get(name)
    if command is not None:
        return command
    near = difflib.get_close_matches(name, commands, n=1)
    message = f"There is no subcommand {_short(name)!r}" + (f". Did you mean {near[0]!r}?" if near else ".")
    raise BadArguments(message, hint="'%clearml_session' alone lists them.")


def parse(command: Command, words: Sequence[str], hints: Mapping[str, str] | None = None) -> Parsed:
    """Parse the words behind a subcommand's name.

    ``hints`` says for options of the command line that have no place here what to do instead. Raises
    BadArguments; where ``--help`` is given, nothing else is checked.
    """
    parsed = Parsed()
    if any(word in HELP.names for word in words[: _end_of_options(words)]):
        parsed.values["help"] = True
        return parsed
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            parsed.words += queue
            break
        if not _looks_like_option(word):
            parsed.words.append(word)
            continue
        name, glued, value = word.partition("=")
        option = _find_option(command, name, hints or {})
        given = [value] if glued else _take(command, option, queue)
        parsed.values[option.dest] = _value(command, option, given, bool(glued), parsed)
    if parsed.words and not command.positional:
        raise _bad(command, f"'{command.name}' takes no words without an option: {_short(parsed.words[0])!r}")
    return parsed


def usage(command: Command) -> str:
    """Return the help of a subcommand as plain text."""
    head = f"%clearml_session {command.name}" + (f" {command.positional}" if command.positional else "")
    lines = [f"{head} [options]" if command.options else head, "", command.summary]
    for group, options in _groups(command):
        lines += ["", f"{group or 'options'}:"]
        lines += _columns([(_spelling(option), option.help) for option in options])
    return "\n".join(lines)


def overview(commands: Mapping[str, Command]) -> str:
    """Return the help that names all subcommands."""
    rows = [(f"{c.name} {c.positional}".strip(), c.summary) for c in commands.values()]
    return "\n".join(
        [
            "%clearml_session SUBCOMMAND ...    sessions on ClearML machines, from a notebook",
            "%%clearml_session run ...          run the cell on a session",
            "",
            *_columns(rows),
            "",
            "An ID is a session's id, the beginning of it, or its name; with one active session leave it out.",
            "'%clearml_session SUBCOMMAND --help' lists the options.",
        ]
    )


def _take(command: Command, option: Option, queue: list[str]) -> list[str]:
    """Take the words that belong to an option from the front of ``queue``."""
    if option.takes is Takes.NOTHING or not queue:
        return []
    if option.takes is Takes.SWITCH:
        return [queue.pop(0)] if queue[0].lower() in TRUE + FALSE else []
    if option.takes in (Takes.ONE, Takes.LIST):
        # A value may begin with a dash (docker arguments do), unless it is an option of ours.
        known = command.option(queue[0].partition("=")[0]) is not None
        given = [] if known or queue[0] == "--" else [queue.pop(0)]
        while option.takes is Takes.LIST and queue and _goes_on(given, queue[0]):
            given.append(queue.pop(0))
        return ["".join(given)] if given else []
    most = 1 if option.takes is Takes.MAYBE_ONE else len(queue)
    given = []
    while queue and len(given) < most and queue[0] != "--" and not _looks_like_option(queue[0]):
        given.append(queue.pop(0))
    return given


def _value(command: Command, option: Option, given: list[str], glued: bool, parsed: Parsed) -> Any:
    name = option.names[0]
    if option.takes is Takes.NOTHING:
        if glued:
            raise _bad(command, f"{name} takes no value")
        return True
    if option.takes is Takes.SWITCH:
        if given and given[0].lower() not in TRUE + FALSE:
            raise _bad(command, f"{name} is true or false, not {_short(given[0])!r}")
        return not given or given[0].lower() in TRUE
    if option.takes is Takes.MANY:
        return [*parsed.get(option.dest, []), *given]
    if not given:
        if option.takes is Takes.MAYBE_ONE:
            return None
        raise _bad(command, f"{name} needs a value")
    value = given[0]
    if option.choices and value not in option.choices:
        raise _bad(command, f"{name} is one of {', '.join(option.choices)}, not {_short(value)!r}")
    return value if option.number is None else _number(command, option, value)


def _number(command: Command, option: Option, value: str) -> int | float:
    assert option.number is not None
    try:
        number = option.number(value)
    except ValueError:
        raise _bad(command, f"{option.names[0]} needs a number, not {_short(value)!r}") from None
    if not 0 <= number < float("inf"):
        raise _bad(command, f"{option.names[0]} cannot be {_short(value)}")
    return number


def _find_option(command: Command, name: str, hints: Mapping[str, str]) -> Option:
    option = command.option(name)
    if option is not None:
        return option
    if name in hints:
        raise BadArguments(f"{name} has no place here.", hint=hints[name])
    names = [each for option in command.options for each in option.names]
    begun = {
        option.dest: option
        for option in command.options
        if name.startswith("--") and len(name) > 3 and any(each.startswith(name) for each in option.names)
    }
    if len(begun) == 1:
        return next(iter(begun.values()))
    if begun:
        meant = ", ".join(option.names[0] for option in begun.values())
        raise _bad(command, f"{_short(name)} could be any of {meant}")
    near = difflib.get_close_matches(name, names, n=1)
    raise _bad(
        command,
        f"'{command.name}' has no option {_short(name)}" + (f". Did you mean {near[0]}?" if near else ""),
    )


def _bad(command: Command, message: str) -> BadArguments:
    ending = "" if message.endswith("?") else "."
    return BadArguments(
        f"{message}{ending}", hint=f"'%clearml_session {command.name} --help' lists its options."
    )


def _goes_on(given: Sequence[str], word: str) -> bool:
    """Say whether a list by commas goes on with ``word``."""
    return bool(given) and not _looks_like_option(word) and (given[-1].endswith(",") or word.startswith(","))


def _looks_like_option(word: str) -> bool:
    """As the command line decides it: a dash and a letter or a dash, and no blank before any '='."""
    return (
        len(word) > 1
        and word[0] == "-"
        and (word[1].isalpha() or word[1] == "-")
        and " " not in word.partition("=")[0]
    )


def _end_of_options(words: Sequence[str]) -> int:
    return words.index("--") if "--" in words else len(words)


def _short(word: str) -> str:
    return word if len(word) <= 60 else word[:57] + "..."


def _groups(command: Command) -> Iterator[tuple[str, list[Option]]]:
    options = [*command.options, HELP]
    for group in dict.fromkeys(option.group for option in options):
        yield group, [option for option in options if option.group == group]


def _spelling(option: Option) -> str:
    names = ", ".join(option.names)
    metavar = option.metavar or "|".join(option.choices) or option.dest.upper()
    tail = {
        Takes.NOTHING: "",
        Takes.ONE: f" {metavar}",
        Takes.LIST: f" {metavar}",
        Takes.MAYBE_ONE: f" [{metavar}]",
        Takes.MANY: f" [{metavar} ...]",
        Takes.SWITCH: " [true|false]",
    }[option.takes]
    return names + tail


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Align two columns; a left part that is too long gets a line of its own."""
    lines: list[str] = []
    for left, right in rows:
        texts = textwrap.wrap(right, _RIGHT) or [""]
        fits = len(left) < _LEFT
        if not fits:
            lines.append(f"  {left}")
        lines.append(f"  {left if fits else '':<{_LEFT}}{texts[0]}".rstrip())
        lines += [f"  {'':<{_LEFT}}{text}" for text in texts[1:]]
    return lines
