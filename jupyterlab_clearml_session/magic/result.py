"""What came of a remote cell: its result object, its error, and what it asks the pager to show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import RemoteCellError, RemoteCellInterrupted

_KEPT = 1_000_000
"""Characters of each stream that are kept."""


@dataclass
class RunResult:
    """What came of a run. ``stdout`` and ``stderr`` hold the last million characters; ``result`` is the MIME
    bundle of the last value."""

    where: str
    seconds: float = 0.0
    stdout: str = field(default="", repr=False)
    stderr: str = field(default="", repr=False)
    result: dict[str, Any] | None = field(default=None, repr=False)


class Note:
    """Takes note of the output of a run, for its `RunResult`."""

    def __init__(self) -> None:
        self._stdout, self._stderr = _Tail(), _Tail()
        self._value: dict[str, Any] | None = None
        self._error: Mapping[str, Any] = {}

    def result(self, where: str, seconds: float) -> RunResult:
        return RunResult(where, seconds, self._stdout.text(), self._stderr.text(), self._value)

    def take(self, kind: str, content: Mapping[str, Any]) -> None:
        if kind == "stream":
            tail = self._stderr if content.get("name") == "stderr" else self._stdout
            tail.add(content.get("text", ""))
        elif kind == "execute_result":
            self._value = dict(content.get("data") or {})
        elif kind == "error":
            self._error = content

    def named(self, reply: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the reply with the name of its exception.

        Of one in the representation of a value, ipykernel only says it in the message that shows it.
        """
        shown = self._error.get("traceback")
        return {**reply, **self._error} if shown and shown == reply.get("traceback") else reply


def raise_for(reply: Mapping[str, Any], where: str) -> None:
    """Raise the error that a reply tells: RemoteCellError with the remote traceback, or RemoteCellInterrupted."""
    status = reply.get("status", "ok")
    if status == "ok":
        return
    name = str(reply.get("ename") or "aborted")
    value = str(reply.get("evalue") or "")
    detail: dict[str, Any] = {
        "ename": name,
        "evalue": value,
        "traceback": list(reply.get("traceback") or ()),
    }
    # An interrupt cancels a cell that awaits something.
    cancelled = name == "CancelledError" or status in ("abort", "aborted")
    if name == "KeyboardInterrupt" or (reply.get("interrupted") and cancelled):
        raise RemoteCellInterrupted(f"The cell was interrupted on {where}.", **detail)
    what = f"{name}: {value}" if value else name
    raise RemoteCellError(f"{what} (on {where})", **detail)


def show_pages(reply: Mapping[str, Any]) -> None:
    """Show here what the cell asked to see in the pager, as ``print?`` does."""
    pages = [each for each in reply.get("payload") or () if each.get("source") == "page"]
    if pages:
        from IPython.core.page import page

        for each in pages:
            page(each.get("data") or {}, start=each.get("start") or 0)


class _Tail:
    """The end of a text that comes in pieces."""

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._length = 0

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._length += len(piece)
        while self._length - len(self._pieces[0]) >= _KEPT:
            self._length -= len(self._pieces.popleft())

    def text(self) -> str:
        return "".join(self._pieces)[-_KEPT:]
