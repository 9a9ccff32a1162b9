"""The sessions: one poller, one truth, one event stream.

ClearML's Tasks are the only record of what sessions there are. This manager reads them in one call per tick, adds
what only this server knows (is the tunnel up, did the remote Jupyter answer with the session's own token), and
tells everybody who subscribed about each change.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import DEBUG, WARNING, Logger
from pathlib import Path
from typing import Any

from traitlets import Float
from traitlets.config import Configurable

from .attached_file import AttachedFile
from .attachment import Attachment
from .backend.client import ClearMLClient
from .errors import (
    ClearMLDeadline,
    ClearMLSessionError,
    ClearMLUnreachable,
    InvalidInput,
    NotAttached,
    RemoteRefused,
    SessionAborted,
    UnknownSession,
    UnknownTask,
    WrongPhase,
)
from .launch_spec import LaunchSpec
from .models import (
    TASK_ID,
    BackendStatus,
    Endpoint,
    LogLine,
    Phase,
    Queue,
    Ref,
    Session,
    SessionEvent,
    SshTarget,
    Task,
)
from .poller import Poller
from .record import Record, ssh_target
from .redact import redact, secrets_of
from .ssh.tunnel import Tunnel

OnReady = Callable[[Session, Tunnel], Awaitable[None]]
OnGone = Callable[[str], Awaitable[None]]
StartLocal = Callable[[], Awaitable[Mapping[str, str]]]

_NEVER = -float("inf")
_TAIL_LINES = 20
_SETTLED = frozenset({Phase.READY, Phase.SERVICES_UP, Phase.CREATED, Phase.ENDED, Phase.FAILED})


class SessionManager(Configurable):
    """Lists, launches, attaches and ends sessions. One per Jupyter server; lives on its event loop.

    Parameters
    ----------
    client:
        The ClearML side.
    state_file:
        Where the ids of attached sessions are kept, so that a restarted server attaches them again.
    start_local:
        Starts the embedded default and returns its credentials; raises LocalModeFailed.
    """

    fast_interval = Float(1.0, help="Seconds between two looks at ClearML while something is changing.").tag(
        config=True
    )
    slow_interval = Float(10.0, help="Seconds between two looks at ClearML while nothing is.").tag(
        config=True
    )
    look_window = Float(150.0, help="Seconds after a client's last request for which ClearML is polled.").tag(
        config=True
    )
    log_interval = Float(
        2.0, help="Seconds between two reads of the queues, and of a starting session's log."
    ).tag(config=True)
    setup_deadline = Float(
        1800.0, help="Seconds from a session's start until its services must be up; then it counts as failed."
    ).tag(config=True)
    probe_interval = Float(10.0, help="Seconds between two looks at the Jupyter of an attached session.").tag(
        config=True
    )
    jupyter_patience = Float(
        30.0, help="Seconds for which a remote Jupyter may refuse connections after it published its port."
    ).tag(config=True)

    def __init__(
        self,
        client: ClearMLClient,
        state_file: Path,
        *,
        start_local: StartLocal,
        log: Logger,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.client = client
        self.revision = 0
        self._start_local = start_local
        self._log = log
        self._file = AttachedFile(state_file, log)
        self._records: dict[str, Record] = {}
        self._subscribers: builtins.list[Callable[[SessionEvent], None]] = []
        self._on_ready: builtins.list[OnReady] = []
        self._on_gone: builtins.list[OnGone] = []
        self._background: set[asyncio.Task[None]] = set()
        self._poller = Poller(
            read=self._read,
            interval=self._interval,
            held=self._any_attached,
            told=self._tell_backend,
            window=self.look_window,
            log=log,
        )
        self._queues_read = _NEVER
        self._restored: set[str] = set()
        self._user: Ref | None = None
        self._backend_error: Mapping[str, Any] | None = None

    # -- ClearML itself --------------------------------------------------------------------------------

    async def status(self) -> BackendStatus:
        """Return where we stand with ClearML; a server that is away is part of the answer, not an error."""
        return await self.client.status()

    async def configure(self, body: Mapping[str, Any]) -> BackendStatus:
        """Store and check credentials, or start the embedded default where ``body`` is ``{"mode": "local"}``.

        Raises InvalidInput, Conflict where there is a configuration already, what the check of the credentials
        raises, and LocalModeFailed.
        """
        if body.get("mode") == "local":
            for name in body.keys() - {"mode"}:
                raise InvalidInput("mode local takes no credentials", field=name[:80])
            self.client.use_local(await self._start_local())
        else:
            await self.client.configure(body)
        self.refresh()
        return await self.client.status()

    async def queues(self) -> Sequence[Queue]:
        """Return the queues with their agents."""
        self._poller.look()
        return await self.client.queues()

    async def find_tasks(self, text: str) -> Sequence[Task]:
        """Return the Tasks with a repository whose name or id holds ``text``: what can be debugged."""
        return await self.client.find_tasks(text)

    # -- reading ---------------------------------------------------------------------------------------

    async def list(
        self,
        state: str = "active",
        all_users: bool = False,
        tag: str | None = None,
        project: str | None = None,
    ) -> tuple[Sequence[Session], int]:
        """Return the sessions, newest first, and the revision that they stand for.

        ``state`` is "active", "ended" or "all"; active are those that hold or wait for an agent. Other people's are
        among them with ``all_users``, and where they are attached here. Where ClearML
        cannot be reached, the sessions known so far are returned; with none known its error is raised.
        """
        if state not in ("active", "ended", "all"):
            raise InvalidInput("state must be active, ended or all", field="state")
        self._poller.look(all_users=all_users)
        if self._poller.stale:
            try:
                await self._poller.poll()
            except ClearMLSessionError:
                if not self._records:
                    raise
        over = await self._over(all_users) if state != "active" else {}
        chosen = [
            record.session
            for record in {**self._records, **over}.values()
            if (state == "all" or record.live == (state == "active"))
            and (all_users or record.session.mine or record.attach)
            and (tag is None or tag in record.task.tags)
            and (project is None or project == record.session.project)
        ]
        chosen.sort(key=lambda session: session.created or "", reverse=True)
        return chosen, self.revision

    async def get(self, session_id: str) -> Session:
        """Return one session, also one that this machine never saw. Raises UnknownSession."""
        self._poller.look()
        record = await self._record(session_id)
        if not record.live:
            # Nobody polls it any more.
            with self._known(session_id), contextlib.suppress(ClearMLUnreachable, ClearMLDeadline):
                record.see(await self.client.task(session_id))
                self._update(record)
        return record.session

    async def spec(self, session_id: str) -> LaunchSpec:
        """Return what a session was launched with, the long texts included. Raises UnknownSession."""
        await self._record(session_id)
        with self._known(session_id):
            return await self.client.spec(session_id)

    async def log(self, session_id: str, limit: int = 200, before: str | None = None) -> Sequence[LogLine]:
        """Return up to ``limit`` lines of the session's console, oldest first, with the secrets masked."""
        record = await self._record(session_id)
        with self._known(session_id):
            lines = await self.client.log(session_id, limit=limit, before=before)
        texts = redact((line.text for line in lines), secrets_of(record.task.runtime))
        return [replace(line, text=text) for line, text in zip(lines, texts, strict=True)]

    def attached(self) -> Sequence[Session]:
        """Return the sessions whose tunnel is held by this server, up or not."""
        return [record.session for record in self._records.values() if record.attachment is not None]

    async def tunnel(self, session_id: str, wait: float = 0.0) -> Tunnel:
        """Return the session's tunnel once it is up.

        Raises UnknownSession, NotAttached where nobody asked for it, TunnelDown where it did not come up within
        ``wait`` seconds, or the fatal cause.
        """
        tunnel = await self.held_tunnel(session_id)
        await tunnel.wait_up(wait)
        return tunnel

    async def held_tunnel(self, session_id: str) -> Tunnel:
        """Return the session's tunnel, up or not. Raises UnknownSession and NotAttached."""
        record = await self._record(session_id)
        if record.attachment is None:
            raise NotAttached(f"The session is not attached (it is {record.session.phase.value})")
        return record.attachment.tunnel

    async def ssh(self, session_id: str) -> tuple[SshTarget, int]:
        """Return how to log in to an attached session, and the port of its SSH server over there.

        That is the port that outlives reconnects where the session was launched with ``keepalive``.
        """
        await self.held_tunnel(session_id)
        record = self._records[session_id]
        published = record.services
        port = published.stable_ssh_port or published.internal_ssh_port
        if port is None:
            raise RemoteRefused("This session has no SSH server")
        return ssh_target(record.task), port

    async def endpoint(self, session_id: str, kind: str, wait: float = 0.0) -> Endpoint:
        """Return where the session's ``kind`` ("jupyter" or "vscode") listens on the remote loopback.

        Waits up to ``wait`` seconds for the tunnel. Raises as `tunnel`, and RemoteRefused where the remote script
        did not start that service.
        """
        await self.tunnel(session_id, wait)
        published = self._records[session_id].services
        if kind == "jupyter" and published.jupyter_port:
            return Endpoint(kind, published.jupyter_port, published.token)
        if kind == "vscode" and published.vscode_port:
            return Endpoint(kind, published.vscode_port)
        raise RemoteRefused(f"This session has no {kind} service")

    # -- acting ----------------------------------------------------------------------------------------

    async def launch(self, spec: LaunchSpec, launched_by: str = "panel") -> Session:
        """Create the session's Task, put it in its queue, and attach to it as soon as it is up.

        While files are uploaded the session is there already, in phase created and with the progress; `shutdown`
        ends that, and then SessionAborted is raised here.
        """
        self._poller.look()
        await self._know_user()
        made: builtins.list[Record] = []

        def created(task: Task) -> None:
            record = self._put(task)
            record.launching = launching
            made.append(record)
            self._update(record)

        def progress(text: str, fraction: float) -> None:
            made[0].upload = text, round(fraction, 2)
            self._update(made[0])

        launching = asyncio.ensure_future(
            self.client.launch(spec, launched_by=launched_by, created=created, progress=progress)
        )
        try:
            task = await launching
        except asyncio.CancelledError:
            launching.cancel()
            if made and made[0].stop_requested:
                raise SessionAborted("The launch was cancelled", hint="") from None
            raise
        finally:
            for record in made:
                record.launching = record.upload = None
            if made and (launching.cancelled() or launching.exception() is not None):
                self._remove(made[0].task.id)
        return self._want(self._put(task))

    async def attach(self, session_id: str) -> Session:
        """Bring the tunnel up, now or as soon as the session's services are up. Raises WrongPhase."""
        self._poller.look()
        record = await self._record(session_id)
        if not record.live or record.stop_requested:
            raise WrongPhase("An ended session cannot be attached", phase=record.session.phase.value)
        return self._want(record)

    async def detach(self, session_id: str) -> Session:
        """Take the tunnel down; the session goes on. Raises NotAttached."""
        record = await self._record(session_id)
        if not record.attach:
            raise NotAttached("The session is not attached")
        await self._let_go(record)
        return self._update(record)

    async def reconnect(self, session_id: str) -> Session:
        """Connect the tunnel anew, now. Raises NotAttached."""
        await self.held_tunnel(session_id)
        record = self._records[session_id]
        assert record.attachment is not None
        record.attachment.reconnect()
        self._poller.wake()
        return self._update(record)

    async def shutdown(self, session_id: str, purge: bool = False) -> Session:
        """End a session; a waiting one is taken out of its queue. ``purge`` deletes an ended one.

        Raises UnknownSession, and WrongPhase where the session is over already (or, to be purged, is not).
        """
        self._poller.look()
        record = await self._record(session_id)
        if record.live == purge:
            message = "Only an ended session can be deleted" if purge else "The session has ended already"
            raise WrongPhase(message, phase=record.session.phase.value)
        if purge:
            with self._known(session_id):
                await self.client.delete(session_id)
            self._remove(session_id)
            return record.session
        if record.launching is not None:
            record.stop_requested = True
            record.launching.cancel()  # its Task is deleted by the launch itself
            return self._update(record)
        with self._known(session_id):
            # What never was in a queue is only stopped by force.
            await self.client.stop(session_id, force=record.task.status == "created")
        record.stop_requested = True
        await self._let_go(record)
        self._poller.wake()
        return self._update(record)

    def set_kernelspecs(self, session_id: str, names: Iterable[str]) -> None:
        """Note the local names of the session's kernelspecs."""
        record = self._records.get(session_id)
        if record is not None:
            record.kernelspecs = tuple(names)
            self._update(record)

    # -- telling ---------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Call ``callback`` on every change; returns what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def add_hook(self, on_ready: OnReady | None = None, on_gone: OnGone | None = None) -> None:
        """Run ``on_ready`` when a session has become ready, ``on_gone`` when its tunnel was given up."""
        if on_ready is not None:
            self._on_ready.append(on_ready)
        if on_gone is not None:
            self._on_gone.append(on_gone)

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to poll, and attach again what was attached when a server last ran here."""
        self._restored = self._file.read()
        if self._restored:
            self._poller.look()
        self._poller.start()

    async def close(self) -> None:
        """Stop polling and close all tunnels; what was attached stays noted for the next start."""
        await self._poller.close()
        pending = tuple(self._background)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._file.write(self._wanted())  # a write may have been among what was cancelled
        attachments = [record.attachment for record in self._records.values() if record.attachment]
        await asyncio.gather(*(attachment.close() for attachment in attachments))

    def refresh(self) -> None:
        """Look at ClearML now, as another user perhaps: its configuration has changed."""
        self._user = None
        self._poller.forget()
        self._poller.look()
        self._poller.wake()

    # -- what the poller does --------------------------------------------------------------------------

    def _interval(self) -> float:
        changing = any(
            record.session.phase not in _SETTLED or record.tail_wanted for record in self._records.values()
        )
        return self.fast_interval if changing else self.slow_interval

    def _any_attached(self) -> bool:
        return bool(self._restored) or any(record.attach for record in self._records.values())

    async def _read(self, now: float) -> None:
        await self._know_user()
        asked_for = {id_ for id_, record in self._records.items() if record.live or record.tail_wanted}
        known = asked_for | self._restored
        tasks = await self.client.sessions(
            all_users=self._poller.all_users,
            states="active",
            extra_ids=sorted(known),
        )
        records = [self._put(task) for task in tasks]
        await self._read_details(records, now)
        for record in records:
            if record.task.id in self._restored and record.live:
                record.attach = record.watched = True
            if record.attachment is not None and not record.live:
                await self._let_go(record)
            self._update(record)
        for session_id in known - {task.id for task in tasks}:
            self._remove(session_id)
        self._restored.clear()

    async def _read_details(self, records: Sequence[Record], now: float) -> None:
        """Read places in queues, and logs; where that fails, the sessions are shown without."""
        work = [self._read_log(record, now) for record in records]
        if now - self._queues_read >= self.log_interval and any(
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
        queues = {queue.id: queue for queue in await self.client.queues()}
        for record in self._records.values():
            queue = queues.get(record.task.queue.id) if record.task.queue else None
            if queue is None or record.task.status != "queued":
                continue
            waiting = record.task.id in queue.entries
            record.position = queue.entries.index(record.task.id) + 1 if waiting else None
            record.workers = len(queue.workers)

    async def _read_log(self, record: Record, now: float) -> None:
        """Keep the last line of a session that is starting, and the tail of one that ended before its time."""
        starting = record.task.status == "in_progress" and not record.services.up
        due = now - record.log_read >= self.log_interval or (record.tail_wanted and not record.tail_reads)
        if not due or not (starting or record.tail_wanted):
            return
        record.log_read = now
        record.tail_reads += record.tail_wanted
        lines = await self.log(record.task.id, _TAIL_LINES)
        record.log_tail = tuple(line.text for line in lines if line.text.strip())
        record.last_line = record.log_tail[-1] if record.log_tail else ""

    async def _know_user(self) -> None:
        if self._user is None:
            self._user = await self.client.user()

    # -- records ---------------------------------------------------------------------------------------

    async def _record(self, session_id: str) -> Record:
        if not TASK_ID.fullmatch(session_id):
            raise UnknownSession("This is not the id of a session (32 hexadecimal digits)")
        record = self._records.get(session_id)
        if record is not None:
            return record
        await self._know_user()
        try:
            task = await self.client.task(session_id)
        except UnknownTask:
            raise UnknownSession(f"There is no session {session_id}") from None
        if "interactive" not in task.system_tags:
            raise UnknownSession(f"The Task {session_id} is not an interactive session")
        record = self._put(task)
        self._update(record)
        return record

    async def _over(self, all_users: bool) -> dict[str, Record]:
        """Return the sessions that are over; those of them that we knew, and that are gone, are forgotten."""
        known = {id_ for id_, record in self._records.items() if not record.live}
        tasks = await self.client.sessions(all_users=all_users, states="ended", extra_ids=known)
        found: dict[str, Record] = {}
        for task in tasks:
            record = self._records.get(task.id)
            if record is None:
                record = Record(task)
                self._describe(record)
            else:
                record.see(task)
                self._update(record)
            found[task.id] = record
        for session_id in known - found.keys():
            self._remove(session_id)
        return found

    @contextlib.contextmanager
    def _known(self, session_id: str) -> Iterator[None]:
        """Forget a session of which ClearML says that there is no such Task; raises UnknownSession then."""
        try:
            yield
        except UnknownTask:
            self._remove(session_id)
            raise UnknownSession(f"There is no session {session_id} any more") from None

    def _put(self, task: Task) -> Record:
        record = self._records.get(task.id)
        if record is None:
            record = self._records[task.id] = Record(task)
            self._describe(record)
        record.see(task)
        return record

    def _remove(self, session_id: str) -> None:
        record = self._records.pop(session_id, None)
        if record is None:
            return
        if record.attachment is not None:
            self._spawn(self._let_go(record))
        self._emit("removed", record.session)

    def _want(self, record: Record) -> Session:
        record.attach = record.watched = True
        self._note_attached()
        self._poller.wake()
        return self._update(record)

    def _describe(self, record: Record) -> Session:
        return record.describe(self._user, self.client.web_server, self.setup_deadline)

    def _update(self, record: Record) -> Session:
        """Do what the record's state asks for, and tell everybody where that changed what is shown."""
        running = record.task.status == "in_progress" and not record.stop_requested
        if record.attach and record.attachment is None and running and record.services.up:
            self._connect(record)
        before = record.session
        session = self._describe(record)
        if session.phase is Phase.READY and not record.announced and record.attachment is not None:
            record.announced = True
            self._spawn(self._announce(session, record.attachment.tunnel))
        if session != before:
            self._emit("changed", session)
        return session

    def _connect(self, record: Record) -> None:
        record.attachment = Attachment(
            lambda: self._target(record),
            lambda: record.services,
            lambda: self._changed(record),
            self._log,
            probe_interval=self.probe_interval,
            patience=self.jupyter_patience,
        )
        record.attachment.start()

    def _changed(self, record: Record) -> None:
        if record.attachment is not None:
            self._update(record)

    async def _target(self, record: Record) -> SshTarget:
        attachment = record.attachment
        if attachment is not None and attachment.status.attempt > 1:
            # The address may have moved (a router, a restarted pod); a ClearML that is away must not stop us.
            with contextlib.suppress(ClearMLSessionError):
                record.see(await self.client.task(record.task.id))
        return ssh_target(record.task)

    async def _let_go(self, record: Record) -> None:
        attachment, record.attachment = record.attachment, None
        record.attach = record.announced = False
        record.kernelspecs = ()
        self._note_attached()
        if attachment is None:
            return
        for on_gone in self._on_gone:
            await self._run_hook(on_gone(record.task.id), record.task.id)
        await attachment.close()

    async def _announce(self, session: Session, tunnel: Tunnel) -> None:
        for on_ready in self._on_ready:
            await self._run_hook(on_ready(session, tunnel), session.id)

    async def _run_hook(self, hook: Awaitable[None], session_id: str) -> None:
        try:
            await hook
        except ClearMLSessionError as error:
            record = self._records.get(session_id)
            # A session that was let go in the middle of it is no news.
            level = WARNING if record is not None and record.attach else DEBUG
            self._log.log(level, "clearml-session: %s", error.message)

    def _note_attached(self) -> None:
        self._spawn(self._file.write(self._wanted()))

    def _wanted(self) -> set[str]:
        return self._restored | {id_ for id_, record in self._records.items() if record.attach}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- events ----------------------------------------------------------------------------------------

    def _tell_backend(self, error: ClearMLSessionError | None) -> None:
        told = error.to_json() if error is not None else None
        if told == self._backend_error:
            return
        self._backend_error = told
        self._emit("backend", None, {"error": told})

    def _emit(self, kind: str, session: Session | None, data: Mapping[str, Any] | None = None) -> None:
        self.revision += 1
        event = SessionEvent(self.revision, kind, session, data or {})
        for callback in tuple(self._subscribers):
            callback(event)
