"""The subcommands and their options, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from .arguments import Command, Option, Takes
from .launch_options import launch_options

PLACES = ("jupyter", "vscode", "terminal")
DEFAULT_LINES = 50

_ID = Option(("--id",), "id", "The session; the same as the word ID.", completes="sessions", metavar="ID")
_TIMEOUT = Option(
    ("--timeout",),
    "timeout",
    "Give up waiting after so many seconds; the session goes on.",
    metavar="SECONDS",
    number=float,
)
_RUN = (
    _ID,
    Option(("--kernel", "-k"), "kernel", "Kernel to run in: its name there.", completes="kernels"),
    Option(("--new",), "new", "Start a fresh kernel; the one used so far is ended.", Takes.NOTHING),
    Option(
        ("--in", "-i"),
        "in",
        "Variables to take along, by commas.",
        Takes.LIST,
        completes="variables",
        metavar="A,B",
    ),
    Option(
        ("--out", "-o"),
        "out",
        "Variables to bring back, by commas.",
        Takes.LIST,
        completes="variables",
        metavar="A,B",
    ),
    Option(("--force",), "force", "Move variables of any size.", Takes.NOTHING),
)


@lru_cache(maxsize=1)
def commands() -> Mapping[str, Command]:
    """Return all subcommands by name, in the order of the help."""
    session = ("sessions",)
    table = (
        Command(
            "list",
            "List your sessions.",
            (
                Option(
                    ("--all-users", "--all_users", "-a"), "all_users", "Those of all users.", Takes.NOTHING
                ),
                Option(("--ended",), "ended", "The ended ones in place of the active ones.", Takes.NOTHING),
                Option(("--project",), "project", "Only those of this project."),
                Option(("--tag",), "tag", "Only those with this tag."),
            ),
        ),
        Command("queues", "List the queues, and the agents that serve them."),
        Command("presets", "List the launch presets."),
        Command("launch", "Launch a session. Takes every option of clearml-session.", launch_options()),
        Command(
            "attach",
            "Connect to a session and wait until it is ready.",
            (_ID, _TIMEOUT, Option(("--no-wait",), "no_wait", "Return at once.", Takes.NOTHING)),
            "[ID]",
            session,
        ),
        Command("status", "Show how a session stands; without ID, ClearML and all.", (_ID,), "[ID]", session),
        Command("info", "Show all that is known of a session.", (_ID,), "[ID]", session),
        Command(
            "log",
            "Show the last lines of a session's log.",
            (
                _ID,
                Option(
                    ("-n", "--lines"),
                    "lines",
                    f"How many lines (default {DEFAULT_LINES}).",
                    metavar="N",
                    number=int,
                ),
            ),
            "[ID]",
            session,
        ),
        Command(
            "open", "Show where to open a session.", (_ID,), f"[ID] [{'|'.join(PLACES)}]", (*session, *PLACES)
        ),
        Command("detach", "Close the connection. The session goes on.", (_ID,), "[ID]", session),
        Command(
            "shutdown",
            "End a session and free its machine.",
            (_ID, Option(("--purge",), "purge", "Delete an ended session from ClearML.", Takes.NOTHING)),
            "[ID]",
            session,
        ),
        Command("run", "Run the cell on a session: %%clearml_session run.", _RUN, "[ID]", session),
        Command(
            "server",
            "Show which local Jupyter server is used, or choose one.",
            (),
            "[URL]",
        ),
    )
    return {command.name: command for command in table}
