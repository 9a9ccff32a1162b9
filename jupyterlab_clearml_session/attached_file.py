"""Which sessions this machine had attached: what a restarted server attaches again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from logging import Logger
from pathlib import Path

from .files import write_private
from .models import TASK_ID


class AttachedFile:
    """A list of session ids on disk. Neither reading nor writing it fails: it is a convenience, and says so.

    Several servers of one user may share it: each notes what it attaches and lets go, and leaves the rest.
    """

    def __init__(self, path: Path, log: Logger) -> None:
        self._path = path
        self._log = log
        self._lock = asyncio.Lock()
        self._noted: set[str] = set()
        """The ids as this server has read or written them last."""

    def read(self) -> set[str]:
        """Return the ids; none where the file is missing or broken."""
        self._noted = self._content() or set()
        return set(self._noted)

    async def write(self, ids: Iterable[str]) -> None:
        """Note these ids as ours, in a thread; two writes come one after the other, the last one asked for last."""
        wanted = set(ids)
        async with self._lock:
            writing = asyncio.ensure_future(asyncio.to_thread(self._write, wanted))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # Its thread goes on, and must not come after the next one's.
                await asyncio.gather(writing, return_exceptions=True)
                raise
            except OSError as error:
                self._log.warning("clearml-session: cannot note which sessions are attached: %s", error)

    def _write(self, wanted: set[str]) -> None:
        there = self._content()
        if there is None:
            there = self._noted
        ids = (there - (self._noted - wanted)) | (wanted - self._noted)
        write_private(self._path, json.dumps({"attached": sorted(ids)}))
        self._noted = wanted

    def _content(self) -> set[str] | None:
        """Return what the file holds; None where it is missing or broken."""
        try:
            noted = json.loads(self._path.read_text(encoding="utf-8"))["attached"]
            return {id_ for id_ in noted if TASK_ID.fullmatch(id_)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log.warning("clearml-session: cannot read which sessions were attached: %s", error)
            return None
