"""What is read from ClearML, and put into the roster: all sessions at each tick, single ones when asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from logging import Logger

from .backend.client import ClearMLClient
from .errors import ClearMLSessionError, UnknownSession, UnknownTask
from .models import TASK_ID, LogLine, Queue, Ref
from .record import Record
from .redact import redact, secrets_of
from .roster import Roster

_NEVER = -float("inf")
_TAIL_LINES = 20


class Reader:
    """Reads with as few calls as there can be.

    Parameters
    ----------
    detail_interval:
        Seconds between two reads of the queues, and of a starting session's log.
    """

    def __init__(self, client: ClearMLClient, roster: Roster, *, detail_interval: float, log: Logger) -> None:
        self.user: Ref | None = None
        """Whose credentials we have; None until that was asked."""
        self._client = client
        self._roster = roster
        self._detail_interval = detail_interval
        self._log = log
        self._queues_read = _NEVER

    async def know_user(self) -> None:
        """Note who we are: the client asks its server once, and again where the user has become another."""
        self.user = await self._client.user()

    async def tick(self, now: float, *, all_users: bool) -> None:
        """Read all sessions that hold or wait for an agent, and those that did when last read (one call)."""
        roster = self._roster
        await self.know_user()
        asked_for = {id_ for id_, record in roster.records.items() if record.live or record.tail_wanted}
        known = asked_for | roster.restored
        tasks = await self._client.sessions(all_users=all_users, states="active", extra_ids=sorted(known))
        records = [roster.put(task) for task in tasks]
        await self._read_details(records, now)
        for record in records:
            if record.task.id in roster.restored and record.live:
                record.attach = record.watched = True
            if record.attach and not record.live:
                await roster.let_go(record)
            roster.update(record)
        for session_id in known - {task.id for task in tasks}:
            roster.remove(session_id)
        roster.restored.clear()

    async def over(self, *, all_users: bool) -> dict[str, Record]:
        """Return the sessions that are over; those of them that we knew, and that are gone, are forgotten."""
        known = {id_ for id_, record in self._roster.records.items() if not record.live}
        tasks = await self._client.sessions(all_users=all_users, states="ended", extra_ids=known)
        found = {task.id: self._roster.show(task) for task in tasks}
        for session_id in known - found.keys():
            self._roster.remove(session_id)
        return found

    async def record(self, session_id: str) -> Record:
        """Return one session, also one that this machine never saw. Raises UnknownSession."""
        if not TASK_ID.fullmatch(session_id):
            raise UnknownSession("This is not the id of a session (32 hexadecimal digits)")
        record = self._roster.records.get(session_id)
        if record is not None:
            return record
        await self.know_user()
        try:
            task = await self._client.task(session_id)
        except UnknownTask:
            raise UnknownSession(f"There is no session {session_id}") from None
        if "interactive" not in task.system_tags:
            raise UnknownSession(f"The Task {session_id} is not an interactive session")
        record = self._roster.put(task)
        self._roster.update(record)
        return record

    async def again(self, record: Record) -> None:
        """Read a session that is over: no tick does. Raises UnknownSession; a ClearML in trouble is no error."""
        if self._roster.backend_error is not None:
            return
        try:
            with self.known(record.task.id):
                record.see(await self._client.task(record.task.id))
        except UnknownSession:
            raise
        except ClearMLSessionError as error:
            self._log.debug("clearml-session: %s", error.message)
        else:
            self._roster.update(record)

    async def log(self, record: Record, limit: int, before: str | None = None) -> Sequence[LogLine]:
        """Return lines of the console, oldest first, with the secrets masked. Raises UnknownSession."""
        with self.known(record.task.id):
            lines = await self._client.log(record.task.id, limit=limit, before=before)
        texts = redact((line.text for line in lines), secrets_of(record.task.runtime))
        return [replace(line, text=text) for line, text in zip(lines, texts, strict=True)]

    @contextlib.contextmanager
    def known(self, session_id: str) -> Iterator[None]:
        """Forget a session of which ClearML says that there is no such Task; raises UnknownSession then."""
        try:
            yield
        except UnknownTask:
            self._roster.remove(session_id)
            raise UnknownSession(f"There is no session {session_id} any more") from None

    # -- details ---------------------------------------------------------------------------------------

    async def _read_details(self, records: Sequence[Record], now: float) -> None:
        """Read places in queues, and logs; where that fails, the sessions are shown without."""
        work = [self._read_log(record, now) for record in records]
        if now - self._queues_read >= self._detail_interval and any(
            record.task.status == "queued" for record in records
        ):
            work.append(self._read_queues(now))
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(failure, ClearMLSessionError):
                self._log.debug("clearml-session: %s", failure.message)
            elif failure is not None:
                raise failure

    async def _read_queues(self, now: float) -> None:
        self._queues_read = now
        queues = {queue.id: queue for queue in await self._client.queues()}
        for record in self._roster.records.values():
            if record.task.status != "queued" or record.task.queue is None:
                continue
            # A queue that was deleted leaves its sessions waiting: no agent will ever come.
            queue = queues.get(record.task.queue.id) or Queue(record.task.queue.id, "")
            waiting = record.task.id in queue.entries
            record.position = queue.entries.index(record.task.id) + 1 if waiting else None
            record.workers = len(queue.workers)

    async def _read_log(self, record: Record, now: float) -> None:
        """Keep the last line of a session that is starting, and the tail of one that ended before its time."""
        starting = record.task.status == "in_progress" and not record.services.up
        due = now - record.log_read >= self._detail_interval or (record.tail_wanted and not record.tail_reads)
        if not due or not (starting or record.tail_wanted):
            return
        record.log_read = now
        record.tail_reads += record.tail_wanted
        lines = await self.log(record, _TAIL_LINES)
        record.log_tail = tuple(line.text for line in lines if line.text.strip())
        record.last_line = record.log_tail[-1] if record.log_tail else ""
