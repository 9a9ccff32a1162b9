"""The stock ``clearml-session`` many times over: imported once, then forked into a terminal of its own each time.

Importing is all that is shared; every run is upstream's own ``main()`` in a fresh process with its own arguments,
environment and HOME. Run as a program it reads one JSON object a line (``argv``, ``env``) and answers each with one
line: the text on that run's terminal up to its "session created" (or its end), and keeps the run alive until told
``{}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_CREATED = re.compile(r"New session created \[id=([0-9a-f]{32})\]")
_SILENCE_S = 60.0


class ForkedCli:
    """One such program; `run` starts a command line in it, `end` stops that. Not for several threads at once."""

    def __init__(self) -> None:
        # The end of its input tells it that we are gone, so that it never outlives us.
        self._program = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: list[str], env: dict[str, str]) -> str:
        """Run ``clearml-session`` until it has created its Task, and return that Task's id."""
        screen = self._ask({"argv": argv, "env": env})
        created = _CREATED.search(screen)
        if created is None:
            raise AssertionError(f"the command line gave up: {screen}")
        return created.group(1)

    def end(self) -> None:
        """Kill the command line that runs."""
        self._ask({})

    def close(self) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(_SILENCE_S)
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _ask(self, question: dict[str, Any]) -> str:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        print(json.dumps(question), file=self._program.stdin, flush=True)
        return str(json.loads(self._program.stdout.readline()))


def main() -> None:
    """Serve questions until the end of the standard input."""
    import clearml_session.__main__ as upstream

    child = terminal = 0
    for line in sys.stdin:
        question = json.loads(line)
        screen = ""
        if question:
            child, terminal = pty.fork()
            if child == 0:
                os.environ.clear()
                os.environ.update(question["env"])
                sys.argv = ["clearml-session", *question["argv"]]
                upstream.main()
                os._exit(0)
            screen = _read(terminal)
        elif child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(terminal)
            child = 0
        print(json.dumps(screen), flush=True)


def _read(terminal: int) -> str:
    screen = b""
    # At its end the terminal answers EIO.
    with contextlib.suppress(OSError):
        while not _CREATED.search(screen.decode(errors="replace")):
            if not select.select([terminal], [], [], _SILENCE_S)[0]:
                break
            screen += os.read(terminal, 65536)
    return screen.decode(errors="replace")


if __name__ == "__main__":
    main()
