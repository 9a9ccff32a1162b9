"""The init script of a session: the user's text, and blocks of ours around it that can be taken out again.

The remote script runs it in bash before anything else, with the checked-out repository (if there is one) as working
directory, and hands the variables it exports to Jupyter. Without blocks it is the user's text and nothing else, so
that it equals what the command line would have stored.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_BEGIN = "# >>> jupyterlab-clearml-session: {} >>>"
_END = "# <<< jupyterlab-clearml-session: {} <<<"
_BLOCK = re.compile(
    r"(?:^|(?<=\n))# >>> jupyterlab-clearml-session: (?P<name>\w+) >>>\n(?P<body>.*?)"
    r"# <<< jupyterlab-clearml-session: (?P=name) <<<\n",
    re.DOTALL,
)

LINK_VARIABLE = "CLEARML_SESSION_LINK"
"""Where the link to the repository is; set before, it says that the link may lie in the workspace."""
LINK_KEEPER = f"""\
# jupyterlab-clearml-session: the link to the repository, which the init script makes in the workspace, must not get
# into the workspace's archive. On the next machine it would point nowhere, and no workspace could be stored there.
import os
import shutil


def _archive_without_link(*given, _archive=shutil.make_archive, **named):
    link = os.environ.pop("{LINK_VARIABLE}", "")
    if os.path.islink(link):
        os.unlink(link)
    return _archive(*given, **named)


os.environ["{LINK_VARIABLE}"] = "none yet"
shutil.make_archive = _archive_without_link


"""
"""What the remote script begins with in a session that has both a repository and a workspace."""


def compose(
    text: str,
    *,
    env: Mapping[str, str],
    repository: str = "",
    folder: str = "",
    in_workspace: bool = False,
) -> str:
    """Return the whole script.

    Parameters
    ----------
    text:
        The user's script; kept letter by letter, after our blocks.
    env:
        Variables to export, so that the user's script and Jupyter have them.
    repository:
        Name under which the checked-out repository is to appear in ``folder``; empty where there is none.
        Jupyter does not open the hidden folder where the agent puts it.
    folder:
        Jupyter's base folder there; empty is ``~/``.
    in_workspace:
        That folder is stored when the session ends: the link is made only where `LINK_KEEPER` runs as well.
    """
    blocks = []
    if env:
        blocks.append(_block("env", [f"export {name}={shlex.quote(value)}" for name, value in env.items()]))
    if repository:
        target = f'"${{clearml_session_folder%/}}/{_quoted(repository)}-${{CLEARML_TASK_ID:0:8}}"'
        if_kept = f'[ -z "${LINK_VARIABLE}" ] || ' if in_workspace else ""
        blocks.append(
            _block(
                "repository",
                [
                    f'clearml_session_folder="{expanding(folder or "~/")}"',
                    'mkdir -p "$clearml_session_folder"',
                    f'{if_kept}ln -sfn "$PWD" {target}',
                    *([f"{if_kept}export {LINK_VARIABLE}={target}"] if in_workspace else ()),
                    "unset clearml_session_folder",
                ],
            )
        )
    return "".join(blocks) + text


def user_text(script: str) -> str:
    """Return the user's own part of a script made by `compose` (of any other: all of it)."""
    return _BLOCK.sub("", script)


def environment(script: str) -> dict[str, str]:
    """Return the variables of a script's env block; empty where it has none."""
    found: dict[str, str] = {}
    for match in _BLOCK.finditer(script):
        if match["name"] != "env":
            continue
        try:
            words = shlex.split(match["body"])
        except ValueError:  # changed by hand, and no shell would read it either
            continue
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                found[name] = value
    return found


def _block(name: str, lines: list[str]) -> str:
    return "\n".join([_BEGIN.format(name), *lines, _END.format(name), ""])


def _quoted(text: str) -> str:
    """Return ``text`` for the inside of double quotes, taken literally."""
    return re.sub(r'([\\"$`])', r"\\\1", text)


def expanding(folder: str) -> str:
    """Return a folder for the inside of double quotes, ``~`` and ``$NAME`` expanded as the remote script does."""
    home = "$HOME" if folder == "~" or folder.startswith("~/") else ""
    rest = folder[1:] if home else folder
    return home + re.sub(r'([\\"`])|\$(?![A-Za-z_{])', lambda match: f"\\{match[0]}", rest)
