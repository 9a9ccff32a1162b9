"""What the parts of this package tell each other: frozen dataclasses and enums, and their JSON (docs/rest-api.md).

Times are ISO 8601 strings in UTC, as the ClearML server sends them; durations are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

TASK_ID = re.compile(r"[0-9a-f]{32}")
"""The whole id of a Task, and so of a session."""


class Phase(str, Enum):
    """Where a session stands. Computed by `phases.stand` only, shown everywhere as it is."""

    CREATED = "created"
    QUEUED = "queued"
    STARTING = "starting"
    SERVICES_UP = "services_up"
    CONNECTING = "connecting"
    READY = "ready"
    RECONNECTING = "reconnecting"
    STOPPING = "stopping"
    ENDED = "ended"
    FAILED = "failed"


class TunnelState(str, Enum):
    """State of the SSH connections of an attached session."""

    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    RECONNECTING = "reconnecting"
    FAILED = "failed"
    """A fatal cause (host key, password): not retried."""


class HostKeyTrust(str, Enum):
    """How far the host key of a session can be trusted. It is checked in every case."""

    PINNED = "pinned"
    """Made fresh for this session and taken from its Task."""
    VAULT = "vault"
    """The server's vault says which key its machines have."""
    UNVERIFIED = "unverified"
    """Upstream's default keys, whose private halves are public: proves nothing about the machine."""


@dataclass(frozen=True)
class Ref:
    """Something on the ClearML server, by id and name."""

    id: str
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name}


@dataclass(frozen=True)
class Worker:
    """An agent that serves a queue. ``idle_s`` is None while it is busy."""

    id: str
    busy: bool
    idle_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "busy": self.busy, "idle_s": self.idle_s}


@dataclass(frozen=True)
class Queue:
    """A ClearML queue. ``entries`` are the ids of the waiting Tasks, next one first."""

    id: str
    name: str
    tags: tuple[str, ...] = ()
    system_tags: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    workers: tuple[Worker, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "tags": list(self.tags),
            "system_tags": list(self.system_tags),
            "length": len(self.entries),
            "workers": [worker.to_json() for worker in self.workers],
        }


@dataclass(frozen=True)
class LogLine:
    """One line of a Task's console; ``time`` is ISO 8601."""

    time: str
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"time": self.time, "text": self.text}


@dataclass(frozen=True)
class BackendStatus:
    """Where we stand with ClearML. ``mode`` is "server", "local" or "unconfigured"."""

    mode: str
    api_server: str | None = None
    web_server: str | None = None
    user: Ref | None = None
    reachable: bool = False
    version: str | None = None
    error: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "mode": self.mode,
            "api_server": self.api_server,
            "web_server": self.web_server,
            "user": self.user.to_json() if self.user else None,
            "reachable": self.reachable,
            "version": self.version,
        }
        if self.error is not None:
            body["error"] = dict(self.error)
        return body


@dataclass(frozen=True)
class Task:
    """A ClearML Task as far as a session needs it; what `backend` reads and `sessions` decides on.

    ``parameters`` are the hyper-parameters by ``"section/name"``; ``runtime`` holds secrets (the SSH password,
    the Jupyter token) and therefore stays out of the repr. ``host_keys`` are the public halves (OpenSSH
    one-line format) of the keys in the Task's ``SSH`` configuration, or the server's vault; the private
    halves never leave `backend`. ``trust`` says what they prove.
    ``script`` is the script sub-document without its diff (repository, branch, version_num, entry_point ...).
    """

    id: str
    name: str
    status: str
    status_reason: str = ""
    status_message: str = ""
    status_changed: str | None = None
    type: str = ""
    project: Ref | None = None
    user: Ref | None = None
    parent: str | None = None
    tags: tuple[str, ...] = ()
    system_tags: tuple[str, ...] = ()
    comment: str = ""
    created: str | None = None
    started: str | None = None
    completed: str | None = None
    last_update: str | None = None
    last_worker: str | None = None
    queue: Ref | None = None
    container: Mapping[str, Any] = field(default_factory=dict)
    script: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict, repr=False)
    host_keys: tuple[str, ...] = ()
    trust: HostKeyTrust = HostKeyTrust.UNVERIFIED


@dataclass(frozen=True)
class SshTarget:
    """Everything the tunnel needs to reach a session's SSH server. Host keys: OpenSSH one-line public keys."""

    address: str
    port: int
    username: str
    password: str = field(repr=False)
    host_keys: tuple[str, ...] = ()
    trust: HostKeyTrust = HostKeyTrust.UNVERIFIED


@dataclass(frozen=True)
class TunnelStatus:
    """What the tunnel says of itself. ``rtt_ms`` is the last measured round trip in milliseconds."""

    state: TunnelState = TunnelState.DOWN
    since: str | None = None
    attempt: int = 0
    cause: Mapping[str, Any] | None = None
    rtt_ms: float | None = None
    host_key: HostKeyTrust = HostKeyTrust.UNVERIFIED

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "state": self.state.value,
            "since": self.since,
            "attempt": self.attempt,
            "rtt_ms": self.rtt_ms,
            "host_key": self.host_key.value,
        }
        if self.cause is not None:
            body["cause"] = dict(self.cause)
        return body


@dataclass(frozen=True)
class Progress:
    """How far a session has come: ``step`` of ``steps`` (both counted from 1); ``fraction`` is 0 to 1."""

    step: int
    steps: int
    text: str
    last_line: str = ""
    fraction: float | None = None

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "step": self.step,
            "steps": self.steps,
            "text": self.text,
            "last_line": self.last_line,
        }
        if self.fraction is not None:
            body["fraction"] = self.fraction
        return body


@dataclass(frozen=True)
class QueuePlace:
    """A session's queue; ``position`` counts from 1 and is None once it has left the queue."""

    id: str
    name: str
    position: int | None = None
    workers: int | None = None

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {"id": self.id, "name": self.name}
        if self.position is not None:
            body["position"] = self.position
        if self.workers is not None:
            body["workers"] = self.workers
        return body


@dataclass(frozen=True)
class Endpoint:
    """A service of a session on the remote machine's loopback. ``token`` never leaves the server process."""

    kind: str
    port: int
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Session:
    """A session as the front end, the magic and the events see it (docs/rest-api.md). Holds no secret."""

    id: str
    name: str
    phase: Phase
    phase_text: str
    phase_since: str
    status: str
    project: str = ""
    tags: tuple[str, ...] = ()
    comment: str = ""
    user: Ref | None = None
    mine: bool = False
    created: str | None = None
    started: str | None = None
    ended: str | None = None
    web_url: str | None = None
    parent: str | None = None
    launched_by: str = ""
    queue: QueuePlace | None = None
    attached: bool = False
    tunnel: TunnelStatus = TunnelStatus()
    endpoints: Mapping[str, Any] = field(default_factory=dict)
    kernelspecs: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    error: Mapping[str, Any] | None = None
    kernels_error: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "phase": self.phase.value,
            "phase_text": self.phase_text,
            "phase_since": self.phase_since,
            "status": self.status,
            "queue": self.queue.to_json() if self.queue else None,
            "project": self.project,
            "tags": list(self.tags),
            "comment": self.comment,
            "user": self.user.to_json() if self.user else None,
            "mine": self.mine,
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "web_url": self.web_url,
            "parent": self.parent,
            "launched_by": self.launched_by,
            "attached": self.attached,
            "tunnel": self.tunnel.to_json(),
            "endpoints": dict(self.endpoints),
            "kernelspecs": list(self.kernelspecs),
            "spec": dict(self.spec),
            "progress": self.progress.to_json() if self.progress else None,
        }
        if self.error is not None:
            body["error"] = dict(self.error)
        if self.kernels_error is not None:
            body["kernels_error"] = dict(self.kernels_error)
        return body


@dataclass(frozen=True)
class SessionEvent:
    """One change. ``revision`` counts up by one; ``kind`` is "changed", "removed", "log" or "backend".

    "log" is a change of the session's `Progress.last_line` alone.
    """

    revision: int
    kind: str
    session: Session | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {"revision": self.revision, "kind": self.kind, **self.data}
        if self.session is not None:
            body["session"] = self.session.to_json()
        return body
