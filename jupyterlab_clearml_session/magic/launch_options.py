"""The options of ``launch``: those of the `clearml-session` command line, drawn from LaunchSpec itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BadArguments
from .arguments import Option, Takes

# Long names that are not the field's own name with dashes; the short forms of docs/cli-options.md come second.
_NAMES = {
    "name": ("--session-name", "--name"),
    "tags": ("--session-tags", "--tags"),
    "debugging_session": ("--debugging-session", "--debug"),
    "idle_timeout_min": ("--idle-timeout", "--idle-timeout-min"),
}
_TAKES = {"init_script": Takes.MAYBE_ONE, "password": Takes.MAYBE_ONE, "env": Takes.MANY}
_COMPLETES = {
    "queue": "queues",
    "requirements": "files",
    "init_script": "files",
    "upload_files": "files",
    "continue_session": "ended",
}
# Where the dialog's description is not true of the option here.
_HELP = {
    "requirements": "Requirements file, as pip takes it.",
    "init_script": "File of a Bash script that runs before anything else; what it exports reaches Jupyter.",
    "clone_repo": "Git repository to clone there. (The panel can send the uncommitted changes of one, too.)",
    "password": "SSH password. Alone: asked for. Left out: a fresh random one. Never shown or stored.",
}
_METAVARS = {
    "requirements": "FILE",
    "init_script": "FILE",
    "upload_files": "PATH",
    "packages": "PACKAGE",
    "tags": "TAG",
    "env": "NAME=VALUE",
    "debugging_session": "TASK",
    "idle_timeout_min": "MINUTES",
    "clone_repo": "URL",
}

NO_PLACE = {
    "--yes": "Nothing is asked here: leave it out.",
    "-y": "Nothing is asked here: leave it out.",
    "--verbose": "'%clearml_session log' shows the log of the session.",
    "--shell": "'%clearml_session open ID terminal' opens a terminal.",
    "--attach": "That is '%clearml_session attach ID'.",
    "--shutdown": "That is '%clearml_session shutdown ID'.",
    "-S": "That is '%clearml_session shutdown ID'.",
    "--version": "'%clearml_session status' shows it.",
    "--config-file": "Nothing is remembered between launches here; presets do that (--preset).",
    "--disable-store-defaults": "Nothing is remembered between launches here; presets do that (--preset).",
    "--disable-session-cleanup": "Ended sessions are never deleted here: leave it out.",
    "--disable-fingerprint-check": "The host key is always checked here.",
    "--randomize": "Every session gets a fresh password here: leave it out.",
    "--queue-excluded-tag": "Set it once in the Jupyter configuration, see the documentation.",
    "--queue-include-tag": "Set it once in the Jupyter configuration, see the documentation.",
}
"""Options of the command line that mean nothing here, and what to do instead."""


@lru_cache(maxsize=1)
def launch_options() -> tuple[Option, ...]:
    """Return all options of ``launch``."""
    # Only who launches pays for it: it parses package requirements.
    from ..launch_spec import LaunchSpec

    options = [
        Option(("--preset",), "preset", "Start from this preset.", completes="presets", metavar="NAME"),
        Option(("--wait",), "wait", "Wait until the session is ready.", Takes.NOTHING),
        Option(
            ("--timeout",),
            "timeout",
            "With --wait: give up waiting after so many seconds; the session goes on.",
            metavar="SECONDS",
            number=float,
        ),
    ]
    options += [_option(field) for field in dataclasses.fields(LaunchSpec)]
    options += [
        Option(
            ("--skip-docker-network",),
            "skip_docker_network",
            "The same as --docker-network none.",
            Takes.SWITCH,
            group="network",
        ),
        Option(
            ("--clone-branch",),
            "clone_branch",
            "Branch of --clone-repo.",
            group="workspace",
            metavar="BRANCH",
        ),
        Option(
            ("--clone-commit",),
            "clone_commit",
            "Commit of --clone-repo.",
            group="workspace",
            metavar="COMMIT",
        ),
    ]
    return tuple(options)


def launch_body(
    values: Mapping[str, Any], ask_password: Callable[[], str], folder: Path | None = None
) -> dict[str, Any]:
    """Make the body of ``POST sessions`` of the options given.

    Files are read here: a relative path is meant from the kernel's folder (``folder``), which the server does
    not know. Raises BadArguments.
    """
    here = folder or Path.cwd()
    body: dict[str, Any] = {}
    for dest, value in values.items():
        if dest in ("requirements", "init_script"):
            body[dest] = "" if value is None else _read(here, value, dest)
        elif dest == "upload_files":
            body[dest] = [str(_there(here, path, dest)) for path in value]
        elif dest == "env":
            body[dest] = dict(_variable(item) for item in value)
        elif dest == "password":
            body[dest] = ask_password() if value is None else value
        elif dest == "skip_docker_network":
            if value:
                body["docker_network"] = "none"
        elif dest not in ("wait", "timeout", "clone_repo", "clone_branch", "clone_commit"):
            body[dest] = value
    if "clone_repo" in values:
        body["clone_repo"] = {
            "url": values["clone_repo"],
            "branch": values.get("clone_branch", ""),
            "commit": values.get("clone_commit", ""),
        }
    elif "clone_branch" in values or "clone_commit" in values:
        raise BadArguments("--clone-branch and --clone-commit need --clone-repo.")
    body["launched_by"] = "magic"
    return body


def _option(field: dataclasses.Field[Any]) -> Option:
    schema = field.metadata["kind"].schema
    kind = schema["type"]
    takes = {"boolean": Takes.SWITCH, "array": Takes.MANY}.get(kind, Takes.ONE)
    return Option(
        _NAMES.get(field.name, (f"--{field.name.replace('_', '-')}",)),
        field.name,
        _HELP.get(field.name, field.metadata["description"]),
        _TAKES.get(field.name, takes),
        metavar=_METAVARS.get(field.name, ""),
        choices=tuple(schema.get("enum", ())),
        completes=_COMPLETES.get(field.name, ""),
        number=float if kind == "number" else None,
        group=field.metadata["group"],
    )


def _there(here: Path, path: str, dest: str) -> Path:
    option = f"--{dest.replace('_', '-')}"
    try:
        found = here / Path(path).expanduser()
        is_there = found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no right, nobody's home, a NUL
        raise BadArguments(f"{option}: {path!r} cannot be read: {error}.") from None
    if not is_there:
        raise BadArguments(f"{option}: there is no {path!r} in {here}.")
    return found


def _read(here: Path, path: str, dest: str) -> str:
    found = _there(here, path, dest)
    try:
        return found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadArguments(f"--{dest.replace('_', '-')}: {path!r} cannot be read: {error}.") from None


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise BadArguments(f"--env needs NAME=VALUE, not {item!r}.")
    return name, value
