"""The sessions: one poller, one truth, one event stream.

ClearML's Tasks are the only record of what sessions there are. This manager reads them in one call per tick, adds
what only this server knows (is the tunnel up, did the remote Jupyter answer with the session's own token), and
tells everybody who subscribed about each change.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

from traitlets import Float
from traitlets.config import Configurable

from .attachment import Attachment
from .backend.client import ClearMLClient
from .errors import (
    ClearMLSessionError,
    InvalidInput,
    NotAttached,
    RemoteRefused,
    SessionAborted,
    WrongPhase,
)
from .launch_spec import LaunchSpec
from .models import (
    BackendStatus,
    Endpoint,
    HostKeyTrust,
    LogLine,
    Phase,
    Queue,
    Session,
    SessionEvent,
    SshTarget,
    Task,
)
from .poller import Poller
from .reader import Reader
from .record import Record, ssh_target
from .roster import OnGone, OnReady, OnReconnect, Roster
from .ssh.tunnel import Tunnel

StartLocal = Callable[[], Awaitable[Mapping[str, str]]]
StopLocal = Callable[[], Awaitable[None]]

# Of a session that reconnects ClearML knows nothing new.
_SETTLED = frozenset(
    {Phase.READY, Phase.RECONNECTING, Phase.SERVICES_UP, Phase.CREATED, Phase.ENDED, Phase.FAILED}
)
_PATIENCE = 60.0
"""The interval for a session that is not settled: how long it has been in its phase, divided by this."""


class ClearMLSessionManager(Configurable):
    """Lists, launches, attaches and ends sessions. One per Jupyter server; lives on its event loop.

    Parameters
    ----------
    client:
        The ClearML side.
    state_file:
        Where the ids of attached sessions are kept, so that a restarted server attaches them again.
    start_local:
        Starts the embedded default and returns its credentials; raises LocalModeFailed.
    stop_local:
        Ends the embedded default with all that runs in it.
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
        30.0,
        help="Seconds for which a remote Jupyter may refuse connections after it published its port, "
        "and for which one may be too busy to answer.",
    ).tag(config=True)

    stop_patience = Float(
        660.0,
        help="Seconds after which a session that was shut down, and that its agent does not end, is stopped again: "
        "ClearML ends one of whose agent it has heard nothing for ten minutes, but only when asked once more.",
    ).tag(config=True)

    def __init__(
        self,
        client: ClearMLClient,
        state_file: Path,
        *,
        start_local: StartLocal,
        stop_local: StopLocal,
        log: Logger,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.client = client
        self._start_local = start_local
        self._stop_local = stop_local
        self._ending_local: asyncio.Task[None] | None = None
        self._log = log
        self._roster = Roster(describe=self._describe, connect=self._connect, state_file=state_file, log=log)
        self._reader = Reader(client, self._roster, detail_interval=self.log_interval, log=log)
        self._poller = Poller(
            read=self._read,
            interval=self._interval,
            held=lambda: self._roster.any_wanted,
            told=self._roster.tell_backend,
            window=self.look_window,
            log=log,
        )

    # -- ClearML itself --------------------------------------------------------------------------------

    async def status(self) -> BackendStatus:
        """Return where we stand with ClearML; a server that is away is part of the answer, not an error."""
        return await self.client.status()

    async def configure(self, body: Mapping[str, Any]) -> BackendStatus:
        """Store and check credentials, or start the embedded default where ``body`` is ``{"mode": "local"}``.

        Credentials of a server take the place of the embedded default, which then ends with its sessions.
        Raises InvalidInput, Conflict where there is a configuration already, what the check of the credentials
        raises, and LocalModeFailed.
        """
        if body.get("mode") == "local":
            for name in body.keys() - {"mode"}:
                raise InvalidInput("mode local takes no credentials", field=name[:80])
            self.client.use_local(await self._start_local())
        else:
            was_local = self.client.mode == "local"
            await self.client.configure(body)
            if was_local:
                # Also where nobody waits for it any more: the credentials are stored.
                self._ending_local = asyncio.create_task(self._end_local())
                await asyncio.shield(self._ending_local)
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
                if not self._roster.records:
                    raise
        over = await self._reader.over(all_users=all_users) if state != "active" else {}
        chosen = [
            record.session
            for record in {**self._roster.records, **over}.values()
            if (state == "all" or record.live == (state == "active"))
            and (all_users or record.session.mine or record.attach)
            and (tag is None or tag in record.task.tags)
            and (project is None or project == record.session.project)
        ]
        chosen.sort(key=lambda session: session.created or "", reverse=True)
        return chosen, self._roster.revision

    async def get(self, session_id: str) -> Session:
        """Return one session, also one that this machine never saw. Raises UnknownSession."""
        record = await self._looked_at(session_id)
        if not record.live:
            await self._reader.again(record)
        return record.session

    async def spec(self, session_id: str) -> LaunchSpec:
        """Return what a session was launched with, the long texts included. Raises UnknownSession."""
        await self._reader.record(session_id)
        with self._reader.known(session_id):
            return await self.client.spec(session_id)

    async def log(self, session_id: str, limit: int = 200, before: str | None = None) -> Sequence[LogLine]:
        """Return up to ``limit`` lines of the session's console, oldest first, with the secrets masked."""
        record = await self._reader.record(session_id)
        return await self._reader.log(record, limit, before)

    def attached(self) -> Sequence[Session]:
        """Return the sessions whose tunnel is held by this server, up or not."""
        return [record.session for record in self._roster.records.values() if record.attachment is not None]

    async def tunnel(self, session_id: str, wait: float = 0.0) -> Tunnel:
        """Return the session's tunnel once it is up.

        Raises UnknownSession, NotAttached where nobody asked for it, TunnelDown where it did not come up within
        ``wait`` seconds, or the fatal cause.
        """
        _, attachment = await self._attached(session_id)
        await attachment.tunnel.wait_up(wait)
        return attachment.tunnel

    async def held_tunnel(self, session_id: str) -> Tunnel:
        """Return the session's tunnel, up or not. Raises UnknownSession and NotAttached."""
        _, attachment = await self._attached(session_id)
        return attachment.tunnel

    async def ssh(self, session_id: str) -> tuple[SshTarget, int]:
        """Return how to log in to an attached session, and the port of its SSH server over there.

        That is the port that outlives reconnects where the session was launched with ``keepalive``.
        """
        record, _ = await self._attached(session_id)
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
        record, attachment = await self._attached(session_id)
        await attachment.tunnel.wait_up(wait)
        published = record.services
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
        await self._reader.know_user()
        made: builtins.list[Record] = []

        def created(task: Task) -> None:
            record = self._roster.put(task)
            record.launching = launching
            made.append(record)
            self._roster.update(record)

        def progress(text: str, fraction: float) -> None:
            made[0].upload = text, round(fraction, 2)
            self._roster.update(made[0])

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
                self._roster.remove(made[0].task.id)
        return self._want(self._roster.put(task))

    async def attach(self, session_id: str) -> Session:
        """Bring the tunnel up, now or as soon as the session's services are up. Raises WrongPhase."""
        record = await self._looked_at(session_id)
        if not record.live or record.stop_requested:
            raise WrongPhase("An ended session cannot be attached", phase=record.session.phase.value)
        return self._want(record)

    async def detach(self, session_id: str) -> Session:
        """Take the tunnel down; the session goes on. Raises NotAttached."""
        record = await self._reader.record(session_id)
        if not record.attach:
            raise NotAttached("The session is not attached")
        await self._roster.let_go(record)
        return self._roster.update(record)

    async def reconnect(self, session_id: str) -> Session:
        """Connect the tunnel anew, now. Raises NotAttached."""
        record, attachment = await self._attached(session_id)
        attachment.reconnect()
        self._roster.tell_reconnect(session_id)
        self._poller.wake()
        return self._roster.update(record)

    async def shutdown(self, session_id: str, purge: bool = False) -> Session:
        """End a session; a waiting one is taken out of its queue. ``purge`` deletes an ended one.

        Raises UnknownSession, and WrongPhase where the session is over already (or, to be purged, is not).
        """
        record = await self._looked_at(session_id)
        if record.live == purge:
            message = "Only an ended session can be deleted" if purge else "The session has ended already"
            raise WrongPhase(message, phase=record.session.phase.value)
        if purge:
            with self._reader.known(session_id):
                await self.client.delete(session_id)
            self._roster.remove(session_id)
            return record.session
        # A launch that has just ended cannot be cancelled any more; its session is stopped like any other.
        if record.launching is not None and record.launching.cancel():
            record.stop_requested = True  # its Task is deleted by the launch itself
            return self._roster.update(record)
        # Noted before: a poll meanwhile may find it stopped, and must not tell that somebody else has done it.
        before, record.stop_requested = record.stop_requested, True
        try:
            with self._reader.known(session_id):
                # What never was in a queue is only stopped by force.
                await self.client.stop(session_id, force=record.task.status == "created")
            record.stop_sent = time.monotonic()
        except BaseException:
            record.stop_requested = before
            raise
        await self._roster.let_go(record)
        self._poller.wake()
        return self._roster.update(record)

    def set_kernelspecs(self, session_id: str, names: Iterable[str]) -> None:
        """Note the local names of the session's kernelspecs."""
        record = self._roster.records.get(session_id)
        if record is not None and record.attachment is not None:  # it may have been detached meanwhile
            record.kernelspecs = tuple(names)
            self._roster.update(record)

    def set_kernels_error(self, session_id: str, error: ClearMLSessionError | None) -> None:
        """Note why the session's kernels cannot be had; None where they can."""
        record = self._roster.records.get(session_id)
        if record is not None and record.attachment is not None:  # it may have been detached meanwhile
            record.note_kernels(error)
            self._roster.update(record)

    # -- telling ---------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Call ``callback`` on every change; returns what ends that."""
        return self._roster.subscribe(callback)

    def add_hook(
        self,
        on_ready: OnReady | None = None,
        on_gone: OnGone | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        """Run ``on_ready`` when a session has become ready, ``on_gone`` when its tunnel was given up.

        ``on_reconnect`` is called when the user asks for a new connection, with the session's id.
        """
        self._roster.add_hook(on_ready, on_gone, on_reconnect)

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to poll, and attach again what was attached when a server last ran here."""
        self._roster.restore()
        if self._roster.restored:
            self._poller.look()
        self._poller.start()

    async def close(self) -> None:
        """Stop polling and close all tunnels; what was attached stays noted for the next start."""
        if self._ending_local is not None:
            await asyncio.gather(self._ending_local, return_exceptions=True)
        await self._poller.close()
        await self._roster.close()

    def refresh(self) -> None:
        """Look at ClearML now, as another user perhaps: its configuration has changed."""
        self._poller.forget()
        self._poller.look()
        self._poller.wake()

    async def _end_local(self) -> None:
        await self._roster.clear()
        await self._stop_local()
        self._poller.forget()
        # A read that had begun before may have brought its sessions back.
        with contextlib.suppress(ClearMLSessionError):  # told to all who listen
            await self._poller.poll()

    # -- what the poller does --------------------------------------------------------------------------

    def _interval(self) -> float:
        now = time.monotonic()
        return min(
            (self._interval_of(record, now) for record in self._roster.records.values()),
            default=self.slow_interval,
        )

    def _interval_of(self, record: Record, now: float) -> float:
        if record.tail_wanted:
            return self.fast_interval
        if record.session.phase in _SETTLED:
            return self.slow_interval
        # It may wait all night for an agent, with nobody looking.
        return max(self.fast_interval, min(self.slow_interval, (now - record.phase_began) / _PATIENCE))

    async def _read(self, now: float) -> None:
        await self._reader.tick(now, all_users=self._poller.all_users)
        for record in tuple(self._roster.records.values()):
            if record.stop_sent is not None and now - record.stop_sent > self.stop_patience:
                record.stop_sent = now
                with contextlib.suppress(ClearMLSessionError):  # it has just ended, or the next tick tells
                    await self.client.stop(record.task.id)

    # -- helpers ---------------------------------------------------------------------------------------

    async def _looked_at(self, session_id: str) -> Record:
        """Return a session as it is now, as far as ClearML answers. Raises UnknownSession."""
        self._poller.look()
        if self._poller.stale and session_id in self._roster.records:
            with contextlib.suppress(ClearMLSessionError):  # told to all who listen
                await self._poller.poll()
        return await self._reader.record(session_id)

    async def _attached(self, session_id: str) -> tuple[Record, Attachment]:
        """Return a session with its attachment. Raises UnknownSession and NotAttached."""
        record = await self._reader.record(session_id)
        if record.attachment is None:
            raise NotAttached(f"The session is not attached (it is {record.session.phase.value})")
        return record, record.attachment

    def _describe(self, record: Record) -> Session:
        return record.describe(self._reader.user, self.client.web_server, self.setup_deadline)

    def _connect(self, record: Record) -> Attachment:
        return Attachment(
            lambda: self._target(record),
            lambda: record.services,
            lambda: self._changed(record),
            self._log,
            probe_interval=self.probe_interval,
            patience=self.jupyter_patience,
        )

    def _changed(self, record: Record) -> None:
        if record.attachment is not None:
            self._roster.update(record)

    async def _target(self, record: Record) -> SshTarget:
        attachment = record.attachment
        again = attachment is not None and attachment.status.attempt > 1
        if again or record.task.trust is HostKeyTrust.UNVERIFIED:
            # The address may have moved (a router, a restarted pod), and a clone that the command line made of one
            # of our sessions has keys in its configuration. A ClearML that is away must not stop us.
            with contextlib.suppress(ClearMLSessionError):
                record.see(await self.client.task(record.task.id))
        return ssh_target(record.task)

    def _want(self, record: Record) -> Session:
        self._poller.wake()
        return self._roster.want(record)
