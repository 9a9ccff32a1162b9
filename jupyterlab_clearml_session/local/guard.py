"""Ends all processes of a LocalMode when the one who holds this program's input is gone, however it went.

A signal or an ``atexit`` cannot do that: nothing runs in a process that is killed with SIGKILL. The end of a pipe
is seen on every system. Started by its path, with the standard library and psutil only.
"""

from __future__ import annotations

import os
import sys
import time

import psutil

_LONGEST_S = 10.0


def kill_all(marker: str, mode_id: str, *, but: frozenset[int] = frozenset()) -> bool:
    """Kill every process whose environment has ``marker=mode_id``, until none is left. False after 10 seconds."""
    end = time.monotonic() + _LONGEST_S
    while time.monotonic() < end:
        found = [process for process in psutil.process_iter() if _belongs(process, marker, mode_id, but)]
        if not found:
            return True
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=0.2)
    return False


def _belongs(process: psutil.Process, marker: str, mode_id: str, but: frozenset[int]) -> bool:
    if process.pid in but:
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.environ().get(marker) == mode_id)
    except (psutil.Error, OSError):
        return False  # somebody else's, or gone


def main(marker: str, mode_id: str) -> None:
    """Wait for the end of the input, then kill."""
    while os.read(0, 1024):
        pass
    sys.exit(0 if kill_all(marker, mode_id, but=frozenset({os.getpid()})) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
