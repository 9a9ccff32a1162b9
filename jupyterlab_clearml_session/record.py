"""One session as this server knows it, and how it is shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from .attachment import Attachment
from .backend.launch import launched_by, repository_folder, session_spec
from .errors import ClearMLSessionError
from .models import HostKeyTrust, QueuePlace, Ref, Session, SshTarget, Task, TunnelStatus
from .phases import Circumstances, Services, services, stand
from .redact import redact, secrets_of

_LIVE = frozenset({"created", "queued", "in_progress"})
_TAIL_READS = 4
_LONGEST_REASON = 500
"""Characters of what the remote machine says of its failure: it may be a traceback, or anything."""


@dataclass
class Record:
    """A Task, and what we know of the session beside it.

    ``attach`` says that somebody wants the tunnel, ``watched`` that somebody waited for the session in this
    server's time, ``announced`` that its readiness was told to the hooks, ``leaving`` that the hooks are being told
    that the tunnel was given up, ``launching`` is a launch under way, ``stop_sent`` when ClearML was last asked to
    stop a session that still runs.
    Times are of ``time.monotonic()``.
    """

    task: Task
    attachment: Attachment | None = None
    attach: bool = False
    watched: bool = False
    announced: bool = False
    leaving: bool = False
    stop_requested: bool = False
    stop_sent: float | None = None
    launching: asyncio.Future[Task] | None = None
    upload: tuple[str, float] | None = None
    position: int | None = None
    workers: int | None = None
    last_line: str = ""
    log_tail: tuple[str, ...] = ()
    log_read: float = field(default=-float("inf"))
    tail_reads: int = 0
    started_seen: float | None = None
    kernelspecs: tuple[str, ...] = ()
    retry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where hooks that have failed are to be run again now."""
    kernels_error: Mapping[str, Any] | None = None
    """Why the session's kernels cannot be had: code, message and hint."""
    spec: Mapping[str, Any] = field(init=False)
    """What the session was launched with (`session_spec`)."""
    phase_began: float = field(init=False)
    """When the session was first seen in its phase."""
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.spec = session_spec(self.task)

    @property
    def live(self) -> bool:
        """True while the Task holds, or waits for, an agent; also where the session counts as failed."""
        return self.task.status in _LIVE

    @property
    def tail_wanted(self) -> bool:
        """True while the end of the log is still to be read: the session ended early, and its log lags behind."""
        early = not self.live and self.watched and not self.stop_requested
        return early and self.tail_reads < _TAIL_READS

    @property
    def services(self) -> Services:
        return services(self.task)

    def see(self, task: Task) -> None:
        """Take the Task as it was just read."""
        if not self.live and task.status in _LIVE:
            # Somebody let it run again: what happened to it before does not count.
            self.stop_requested, self.started_seen = False, None
            self.last_line, self.log_tail, self.tail_reads = "", (), 0
        if task.trust is HostKeyTrust.UNVERIFIED and self.task.trust is HostKeyTrust.PINNED:
            # A list of Tasks does not hold the keys of their configuration, which a single one was read with.
            task = replace(task, host_keys=self.task.host_keys, trust=self.task.trust)
        self.task = task
        self.spec = session_spec(task)
        if task.status != "in_progress":
            self.stop_sent = None
        if task.status != "queued":
            self.position = self.workers = None
        if task.status == "in_progress" and self.started_seen is None:
            self.started_seen = time.monotonic()

    def note_kernels(self, error: ClearMLSessionError | None) -> None:
        """Take why the session's kernels cannot be had, its secrets masked; None where they can."""
        if error is None:
            self.kernels_error = None
            return
        message = "\n".join(redact(error.message.splitlines(), secrets_of(self.task.runtime)))
        if len(message) > _LONGEST_REASON:
            half = _LONGEST_REASON // 2
            message = f"{message[:half]} … {message[-half:]}"
        self.kernels_error = {"code": error.code, "message": message, "hint": error.hint}

    def describe(self, user: Ref | None, web_server: str | None, setup_deadline: float) -> Session:
        """Return the session as it now stands; ``phase_since`` is kept where the phase is."""
        attachment = self.attachment
        overdue = self.started_seen is not None and time.monotonic() - self.started_seen > setup_deadline
        tunnel = attachment.status if attachment else TunnelStatus(host_key=self.task.trust)
        standing = stand(
            self.task,
            Circumstances(
                upload=self.upload,
                position=self.position,
                workers=self.workers,
                last_line=self.last_line,
                log_tail=self.log_tail,
                attach=self.attach,
                tunnel=tunnel,
                jupyter=attachment.jupyter if attachment else False,
                trouble=attachment.trouble if attachment else None,
                stop_requested=self.stop_requested,
                watched=self.watched,
                overdue=overdue,
            ),
        )
        task = self.task
        mine = user is not None and task.user is not None and task.user.id == user.id
        session = Session(
            id=task.id,
            name=task.name,
            phase=standing.phase,
            phase_text=standing.text,
            phase_since=_now(),
            status=task.status,
            queue=QueuePlace(task.queue.id, task.queue.name, self.position, self.workers)
            if task.queue
            else None,
            project=task.project.name if task.project else "",
            tags=task.tags,
            comment=task.comment,
            user=user if mine else task.user,  # a Task that was just launched names only the id
            mine=mine,
            created=task.created,
            started=task.started,
            ended=task.completed,
            web_url=_web_url(web_server, task),
            # ClearML names a parent for a session that continues another one as well.
            parent=str(self.spec.get("debugging_session") or "") or None,
            launched_by=launched_by(task),
            attached=attachment is not None and self.live,
            tunnel=tunnel,
            endpoints=_endpoints(task, self.services, self.spec) if self.live else {},
            kernelspecs=self.kernelspecs,
            kernels_error=self.kernels_error,
            spec=self.spec,
            progress=standing.progress,
            error=standing.error,
        )
        before: Session | None = getattr(self, "session", None)
        if before is not None and before.phase is session.phase:
            session = replace(session, phase_since=before.phase_since)
        else:
            self.phase_began = time.monotonic()
        self.session = session
        return session


def ssh_target(task: Task) -> SshTarget:
    """Return where the tunnel of a running session goes, and whom it expects there."""
    published = services(task)
    return SshTarget(
        address=published.address,
        port=published.ssh_port or 22,
        username=_username(session_spec(task)),
        password=published.password,
        host_keys=task.host_keys,
        trust=task.trust,
    )


def _endpoints(task: Task, published: Services, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Paths under base_url; ``*_open`` are what a person wants to see first, folder included."""
    root = f"clearml-session/proxy/{task.id}"
    folder = repository_folder(task)
    endpoints: dict[str, Any] = {}
    if published.jupyter_port:
        endpoints["jupyter"] = f"{root}/jupyter/"
        endpoints["jupyter_open"] = f"{root}/jupyter/lab" + (f"/tree/{quote(folder)}" if folder else "")
    if published.vscode_port:
        endpoints["vscode"] = f"{root}/vscode/"
        endpoints["vscode_open"] = f"{root}/vscode/" + (f"?folder={quote(folder)}" if folder else "")
    if published.ssh_port and published.address:
        endpoints["ssh"] = {"user": _username(spec), "host": published.address, "port": published.ssh_port}
    return endpoints


def _username(spec: Mapping[str, Any]) -> str:
    return str(spec.get("username") or "root")


def _web_url(web_server: str | None, task: Task) -> str | None:
    if not web_server:
        return None
    project = task.project.id if task.project else "*"
    return f"{web_server.rstrip('/')}/projects/{project}/experiments/{task.id}/output/log"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
