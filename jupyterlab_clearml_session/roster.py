"""The sessions that this server knows, their tunnels, and everybody who is told of their changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from logging import DEBUG, WARNING, Logger
from pathlib import Path
from typing import Any

from .attached_file import AttachedFile
from .attachment import Attachment
from .deadlines import comes
from .errors import ClearMLSessionError
from .models import Phase, Session, SessionEvent, Task
from .record import Record
from .ssh.tunnel import Tunnel

_LONGEST_HOOK_WAIT = 300.0

OnReady = Callable[[Session, Tunnel], Awaitable[None]]
OnGone = Callable[[str], Awaitable[None]]
OnReconnect = Callable[[str], None]


class Roster:
    """Keeps the records, attaches and lets go as they ask for it, and emits an event for each change.

    Parameters
    ----------
    describe:
        Makes a record say where its session now stands.
    connect:
        Makes the attachment of a record; it is started here.
    state_file:
        Where the ids of attached sessions are kept, so that a restarted server attaches them again.
    """

    def __init__(
        self,
        *,
        describe: Callable[[Record], Session],
        connect: Callable[[Record], Attachment],
        state_file: Path,
        log: Logger,
    ) -> None:
        self.revision = 0
        self.hook_wait = 5.0
        """Seconds before what failed when a session became ready is tried again; more each time."""
        self.records: dict[str, Record] = {}
        self.restored: set[str] = set()
        """Ids that were attached when a server last ran here and have not been looked for yet."""
        self._describe = describe
        self._connect = connect
        self._log = log
        self._file = AttachedFile(state_file, log)
        self._subscribers: list[Callable[[SessionEvent], None]] = []
        self._on_ready: list[OnReady] = []
        self._on_gone: list[OnGone] = []
        self._on_reconnect: list[OnReconnect] = []
        self._background: set[asyncio.Task[None]] = set()
        self.backend_error: Mapping[str, Any] | None = None
        """Why ClearML could not be asked at the last tick, as JSON; None where it could."""

    @property
    def any_wanted(self) -> bool:
        """True while somebody wants a tunnel, or is about to get one back."""
        return bool(self.restored) or any(record.attach for record in self.records.values())

    def restore(self) -> None:
        """Read what was attached."""
        self.restored = self._file.read()

    async def close(self) -> None:
        """Close all tunnels; what was attached stays noted for the next start."""
        pending = tuple(self._background)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._file.write(self._wanted())  # a write may have been among what was cancelled
        attachments = [record.attachment for record in self.records.values() if record.attachment]
        await asyncio.gather(*(attachment.close() for attachment in attachments))

    # -- records ---------------------------------------------------------------------------------------

    def put(self, task: Task) -> Record:
        """Take a Task as it was just read; nobody is told before `update`."""
        record = self.records.get(task.id)
        if record is None:
            record = self.records[task.id] = Record(task)
            self._describe(record)
        record.see(task)
        return record

    def show(self, task: Task) -> Record:
        """Return the record of a Task as it was just read; one that was not known is not kept."""
        record = self.records.get(task.id)
        if record is None:
            record = Record(task)
            self._describe(record)
        else:
            record.see(task)
            self.update(record)
        return record

    def remove(self, session_id: str) -> None:
        """Forget a session that ClearML has no more."""
        record = self.records.pop(session_id, None)
        if record is None:
            return
        if record.attachment is not None:
            self._spawn(self.let_go(record))
        self._emit("removed", record.session)

    async def clear(self) -> None:
        """Forget all sessions, their tunnels closed: those of a server that is left for another."""
        records = tuple(self.records.values())
        await asyncio.gather(*(self.let_go(record) for record in records))
        for record in records:
            self.remove(record.task.id)

    def update(self, record: Record) -> Session:
        """Do what the record's state asks for, and tell everybody where that changed what is shown."""
        running = record.task.status == "in_progress" and not record.stop_requested
        # Who is still told that a tunnel was given up would take down what belongs to the next one.
        wanted = record.attach and record.attachment is None and not record.leaving
        if wanted and running and record.services.up:
            record.attachment = self._connect(record)
            record.attachment.start()
        before = record.session
        session = self._describe(record)
        if session.phase is Phase.READY and not record.announced and record.attachment is not None:
            record.announced = True
            self._spawn(self._announce(record, record.attachment))
        if session != before:
            self._emit("log" if _differs_in_last_line(before, session) else "changed", session)
        return session

    def want(self, record: Record) -> Session:
        """Attach, now or as soon as the services are up."""
        record.attach = record.watched = True
        self._note_attached()
        return self.update(record)

    async def let_go(self, record: Record) -> None:
        """Take the tunnel down, after everybody who uses it was told."""
        attachment, record.attachment = record.attachment, None
        record.attach = record.announced = False
        record.kernelspecs = ()
        record.note_kernels(None)
        self._note_attached()
        if attachment is None:
            return
        record.leaving = True
        try:
            for on_gone in self._on_gone:
                await self._run_hook(on_gone(record.task.id), record)
        finally:
            record.leaving = False
            await attachment.close()
        if record.attach and self.records.get(record.task.id) is record:
            self.update(record)  # attached again meanwhile

    # -- telling ---------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Call ``callback`` on every change; returns what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def add_hook(
        self,
        on_ready: OnReady | None = None,
        on_gone: OnGone | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        """Run ``on_ready`` when a session has become ready, ``on_gone`` when its tunnel was given up.

        ``on_reconnect`` is called when the user asks for a new connection, with the session's id.
        """
        if on_ready is not None:
            self._on_ready.append(on_ready)
        if on_gone is not None:
            self._on_gone.append(on_gone)
        if on_reconnect is not None:
            self._on_reconnect.append(on_reconnect)

    def tell_reconnect(self, session_id: str) -> None:
        """Have everything that waits for the session try again now."""
        self.records[session_id].retry.set()
        for on_reconnect in self._on_reconnect:
            on_reconnect(session_id)

    def tell_backend(self, error: ClearMLSessionError | None) -> None:
        """Tell how ClearML answers, where that is news; None is well."""
        told = error.to_json() if error is not None else None
        if told == self.backend_error:
            return
        self.backend_error = told
        self._emit("backend", None, {"error": told})

    def _emit(self, kind: str, session: Session | None, data: Mapping[str, Any] | None = None) -> None:
        self.revision += 1
        event = SessionEvent(self.revision, kind, session, data or {})
        for callback in tuple(self._subscribers):
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - one who cannot listen must not keep the others from it
                self._log.exception("clearml-session: somebody failed on hearing of a session")

    async def _announce(self, record: Record, attachment: Attachment) -> None:
        """Run the hooks, those that fail again and again, until the session is let go."""
        wait = self.hook_wait
        for on_ready in self._on_ready:
            while not await self._run_hook(on_ready(record.session, attachment.tunnel), record):
                record.retry.clear()
                is_wanted = await comes(record.retry, wait)
                if record.attachment is not attachment:
                    return
                wait = self.hook_wait if is_wanted else min(wait * 2, _LONGEST_HOOK_WAIT)

    async def _run_hook(self, hook: Awaitable[None], record: Record) -> bool:
        """Return whether it did what it should."""
        try:
            await hook
        except ClearMLSessionError as error:
            # A session that was let go in the middle of it is no news.
            self._log.log(WARNING if record.attach else DEBUG, "clearml-session: %s", error.message)
            return False
        except Exception:  # noqa: BLE001 - a fault of one part must not take the others down
            self._log.exception("clearml-session: session %s: a part failed", record.task.id)
            return False
        return True

    # -- what is kept on disk --------------------------------------------------------------------------

    def _note_attached(self) -> None:
        self._spawn(self._file.write(self._wanted()))

    def _wanted(self) -> set[str]:
        return self.restored | {id_ for id_, record in self.records.items() if record.attach}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _differs_in_last_line(before: Session, after: Session) -> bool:
    """Whether nothing is new but what the Task has printed last."""
    if before.progress is None or after.progress is None:
        return False
    shown = replace(after.progress, last_line=before.progress.last_line)
    return replace(after, progress=shown) == before
