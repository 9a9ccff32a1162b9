"""`jupyter clearml-session`: the demo and the doctor."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="jupyter clearml-session", description="Remote ClearML machines inside your own JupyterLab."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="try it on this machine: an embedded ClearML server and agent, JupyterLab, one session"
    )
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    demo.add_argument(
        "--once",
        action="store_true",
        help="launch, wait until ready, run a cell over there, print one JSON line, shut down",
    )

    doctor = commands.add_parser("doctor", help="check each step from the configuration to the tunnel")
    doctor.add_argument("--session", metavar="ID", help="also check the way to this session")

    arguments = parser.parse_args(argv)
    # Imported late: `--help` and `--version` need no server.
    if arguments.command == "demo":
        from .demo import run

        return run(once=arguments.once, browser=not arguments.no_browser)
    from .doctor import check

    return check(arguments.session)
