"""Processes whose parent has gone: on Linux they become ours, so that none gets away when we end.

Sessions start daemons, some of them with a clean environment. Elsewhere than on Linux only those are found that
still carry the sandbox's mark (see `guard`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Collection

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt() -> None:
    """From now on, orphans among our descendants become our children instead of init's. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(ours: Collection[int]) -> None:
    """Collect what adopted children left when they ended; ``ours`` are waited for by somebody else."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def kill_descendants(but: Collection[int]) -> None:
    """Kill all processes below us but these."""
    for process in psutil.Process().children(recursive=True):
        if process.pid not in but:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
