"""What each browser was last shown of a remote kernel, on disk: so that a replay after a crash is exact.

A server that is killed takes along what it had received and not yet passed on. What a browser got before, only the
killed server knew. So the id of the last message that has gone out to a browser is written to a file, which the
system's page cache keeps when the process is killed.

It is written right after the message (where the browser is slow, in the next turn of the event loop). What a kill
between the two leaves out, one message in most cases, comes twice. JupyterLab's pages pass over that, by the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from ..remote.messages import CONTROL, IOPUB, SHELL, STDIN

KERNEL_ID = r"[\w-]{1,64}"
CELL = 128
"""Bytes for the id of one channel's last message."""
CHANNELS = (SHELL, IOPUB, STDIN, CONTROL)
FORGET_AFTER = 15 * 24 * 3600.0
"""Seconds after which what is noted of a kernel is of no use: no helper waits longer for a client."""


class ShownFolder:
    """The notes about all kernels of this user, whichever of the user's servers has them.

    Parameters
    ----------
    root:
        Of mode 0700; made when the first kernel needs it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def kernel(self, kernel_id: str) -> ShownKernel:
        """Return the notes about one kernel. Raises ValueError where that is no kernel's id."""
        if not re.fullmatch(KERNEL_ID, kernel_id):
            raise ValueError(f"{kernel_id!r} is no kernel's id")
        return ShownKernel(self._root / kernel_id)

    def tidy(self) -> None:
        """Remove notes that are of no use any more."""
        with contextlib.suppress(FileNotFoundError):
            for folder in self._root.iterdir():
                # A page that stays open for weeks changes its note only, not the folder.
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if newest < time.time() - FORGET_AFTER:
                    shutil.rmtree(folder, ignore_errors=True)


class ShownKernel:
    """The notes about the browsers that watch one kernel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def browser(self, session: str) -> ShownBrowser:
        """Return the note about one browser, known by the id of its Jupyter session. Raises OSError."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return ShownBrowser(self._folder / _name(session))

    def read(self) -> list[dict[int, str]]:
        """Return for each browser the last message it was shown on each channel."""
        notes = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                notes.append(_decode(path.read_bytes()))
        return [note for note in notes if note]

    def keep(self, sessions: Collection[str]) -> None:
        """Forget all browsers but these."""
        names = {_name(session) for session in sessions}
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)

    def remove(self) -> None:
        """The kernel was shut down."""
        shutil.rmtree(self._folder, ignore_errors=True)


class ShownBrowser:
    """The note about one browser."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> dict[int, str]:
        """Return the last message it was shown on each channel."""
        return _decode(os.pread(self._fd, CELL * len(CHANNELS), 0))

    def note(self, channel: int, message_id: bytes) -> None:
        """The browser has been sent this message. Raises OSError."""
        if _pwrite(self._fd, message_id[:CELL].ljust(CELL, b"\0"), CELL, CELL * channel) != CELL:
            raise OSError(ctypes.get_errno(), "what a browser was shown cannot be noted")

    def close(self) -> None:
        """Stop, but keep the note."""
        os.close(self._fd)

    def remove(self) -> None:
        """The browser went away: nothing is owed to it."""
        self.close()
        self._path.unlink(missing_ok=True)


def _name(session: str) -> str:
    """The id comes from outside: not a name for a file."""
    return hashlib.sha256(session.encode()).hexdigest()[:32]


def _load_pwrite() -> Callable[[int, bytes, int, int], int]:
    """The system call, without giving other threads the interpreter: they take it for longer than it lasts."""
    pwrite = ctypes.PyDLL(None, use_errno=True).pwrite
    pwrite.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long)
    pwrite.restype = ctypes.c_ssize_t
    return pwrite


_pwrite = _load_pwrite()


def _decode(data: bytes) -> dict[int, str]:
    cells = {channel: data[CELL * channel : CELL * (channel + 1)].rstrip(b"\0") for channel in CHANNELS}
    return {channel: cell.decode(errors="replace") for channel, cell in cells.items() if cell}


class Watcher:
    """One websocket of a remote kernel.

    Parameters
    ----------
    note:
        Where it is noted what was sent.
    again:
        By channel, messages that the kernel's helper sends again because one of the browsers may lack them. Some
        browser was shown each of them: a new one is not sent them.
    owed:
        Returns whether the note is still of use when the websocket has closed.
    """

    def __init__(
        self, note: ShownBrowser, again: Mapping[int, list[str]], owed: Callable[[Watcher], bool]
    ) -> None:
        self.written: asyncio.Future[None] | None = None
        """The websocket's last write."""
        self._note: ShownBrowser | None = note
        self._owed = owed
        self._count = 0
        self._noted: dict[int, int] = {}
        self._known: set[tuple[int, bytes]] = set()
        shown = note.read()
        for channel, ids in again.items():
            last = shown.get(channel) if shown else ids[-1]
            if last in ids:
                self._known |= {(channel, known.encode()) for known in ids[: ids.index(last) + 1]}

    def knows(self, channel: int, message: bytes) -> bool:
        """True where this browser was shown the message before the last server was killed."""
        return (channel, message) in self._known

    def sent(self, channel: int, message: bytes, *, waits: bool) -> None:
        """A message was given to the websocket; ``waits``: it is not in the system's hands yet."""
        self._count += 1
        if waits and self.written is not None:
            self.written.add_done_callback(partial(self._gone_out, channel, message, self._count))
        else:
            self._take_note(channel, message, self._count)

    def leave(self) -> None:
        """The websocket has closed."""
        note, self._note = self._note, None
        if note is None:
            return
        if self._owed(self):
            note.close()
        else:
            note.remove()

    def _gone_out(self, channel: int, message: bytes, number: int, written: asyncio.Future[None]) -> None:
        if not written.cancelled() and written.exception() is None:
            self._take_note(channel, message, number)

    def _take_note(self, channel: int, message: bytes, number: int) -> None:
        if self._note is None or number < self._noted.get(channel, 0):
            return
        self._noted[channel] = number
        try:
            self._note.note(channel, message)
        except OSError:
            # An old note would be worse than none.
            self._note.remove()
            self._note = None
