"""The phase machine, pure: a Task and what we know beside it -> where the session stands.

Names of parameters and runtime entries are those of clearml-session 0.17's remote
script, and of its pre-release 1.0 where that adds some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import (
    ClearMLSessionError,
    JupyterNotStarted,
    SessionAborted,
    SessionFailed,
    SetupDeadline,
)
from .models import Phase, Progress, Task, TunnelState, TunnelStatus

STEPS = 5
"""created, queued, starting, connecting, ready"""

_END_NOTE = "_jupyterlab_session_end"
"""Runtime entry: why the helper over there has ended the session."""
_LONGEST_NOTE = 200
_IDLE_HINT = "It was launched with an idle timeout (idle_timeout_min)."
_OF_THE_AGENT = "Changed by clearml-agent"
"""How the message of each change of status begins that an agent makes; it says nothing of why."""

_OVER = frozenset({"stopped", "closed", "completed", "failed", "published", "publishing"})


@dataclass(frozen=True)
class Services:
    """What the remote script has published so far. Ports are None until they are there."""

    address: str
    ssh_port: int | None
    internal_ssh_port: int | None
    stable_ssh_port: int | None
    jupyter_port: int | None
    vscode_port: int | None
    wants_jupyter: bool
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def up(self) -> bool:
        """True when the tunnel has somewhere to go and the wanted Jupyter has published its port and token.

        VS Code is not waited for: it may take minutes to install and may never come (port -1).
        """
        if not (self.address and self.ssh_port and self.internal_ssh_port):
            return False
        return not self.wants_jupyter or bool(self.jupyter_port and self.token)


@dataclass(frozen=True)
class Circumstances:
    """What is known of a session beside its Task.

    ``upload`` is what is being done with the session's files, and the fraction of it. ``jupyter`` is True once the
    remote Jupyter answered with the session's own token; ``trouble`` is why it did not. ``watched`` says that
    somebody waited for the session in this server's time, ``overdue`` that its services should be up by now.
    """

    upload: tuple[str, float] | None = None
    position: int | None = None
    workers: int | None = None
    last_line: str = ""
    log_tail: tuple[str, ...] = ()
    attach: bool = False
    tunnel: TunnelStatus = TunnelStatus()
    jupyter: bool = False
    trouble: Mapping[str, Any] | None = None
    stop_requested: bool = False
    watched: bool = False
    overdue: bool = False


@dataclass(frozen=True)
class Standing:
    """The answer: a phase, one sentence, and how far it has come or what went wrong."""

    phase: Phase
    text: str
    progress: Progress | None = None
    error: Mapping[str, Any] | None = None


def services(task: Task) -> Services:
    """Read what the remote script published into the Task's parameters and runtime."""
    runtime, parameters = task.runtime, task.parameters
    address = (
        runtime.get("external_address")
        or parameters.get("properties/k8s-gateway-address")
        or parameters.get("properties/external_address")
        or ""
    )
    internal = _port(runtime.get("internal_tcp_port")) or _port(
        parameters.get("properties/internal_ssh_port")
    )
    external = (
        _port(runtime.get("external_tcp_port"))
        or _port(parameters.get("properties/k8s-pod-port"))
        or _port(parameters.get("properties/external_ssh_port"))
        or _port_of_machine(runtime.get("_external_host_tcp_port_mapping"), internal)
        or internal
    )
    return Services(
        address=str(address).strip(),
        ssh_port=external,
        internal_ssh_port=internal,
        stable_ssh_port=_port(parameters.get("properties/internal_stable_ssh_port")),
        jupyter_port=_port(parameters.get("properties/jupyter_port")),
        vscode_port=_port(parameters.get("properties/vscode_port")),
        wants_jupyter=_option(task, "jupyterlab"),
        password=str(runtime.get("_ssh_password") or ""),
        # The remote script cuts the token out of a log line, newline and all.
        token=str(runtime.get("_jupyter_token") or "").strip(),
    )


def stand(task: Task, known: Circumstances) -> Standing:
    """Return where a session stands.

    A Task that is over decides by itself; a live one by what the remote has published, and then by the tunnel.
    """
    if task.status in _OVER:
        return _over(task, known)
    if known.stop_requested or task.status_message == "stopping":
        return Standing(Phase.STOPPING, "Shutting down")
    if task.status == "created" and known.upload is not None:
        text, fraction = known.upload
        return Standing(Phase.CREATED, text, Progress(1, STEPS, text, fraction=fraction))
    if task.status == "created":
        return Standing(Phase.CREATED, "Created, not yet in a queue", Progress(1, STEPS, "Created"))
    if task.status == "queued":
        text = _queued(known)
        return Standing(Phase.QUEUED, text, Progress(2, STEPS, text))

    published = services(task)
    if not published.up:
        return _starting(task, published, known)
    if not known.attach:
        return Standing(Phase.SERVICES_UP, "Running, not attached", Progress(4, STEPS, "Running"))
    return _attached(published, known)


def _over(task: Task, known: Circumstances) -> Standing:
    published = services(task)
    tail = list(known.log_tail)
    if task.status == "failed":
        reason = task.status_reason or task.status_message or "the Task failed"
        failure: ClearMLSessionError = SessionFailed(f"The session failed: {reason}", log_tail=tail)
        return Standing(Phase.FAILED, failure.message, error=failure.to_json())
    if task.status == "completed" and published.wants_jupyter and not published.jupyter_port:
        failure = JupyterNotStarted("The remote Jupyter server ended before it was up", log_tail=tail)
        return Standing(Phase.FAILED, failure.message, error=failure.to_json())
    noted = str(task.runtime.get(_END_NOTE) or "")[:_LONGEST_NOTE]
    if task.status != "stopped" or known.stop_requested or not (noted or known.watched):
        return Standing(Phase.ENDED, "Ended")
    if noted:
        failure = SessionAborted(f"The session has ended itself: {noted}", hint=_IDLE_HINT, log_tail=tail)
    else:
        said = "" if task.status_message.startswith(_OF_THE_AGENT) else task.status_message
        failure = SessionAborted(said or "The session was stopped from elsewhere", log_tail=tail)
    error = failure.to_json() if known.watched else None
    return Standing(Phase.ENDED, failure.message, error=error)


def _starting(task: Task, published: Services, known: Circumstances) -> Standing:
    if known.overdue:
        missing = "Jupyter" if published.internal_ssh_port else "SSH"
        hint = SessionFailed.default_hint if published.internal_ssh_port else None
        late = SetupDeadline(
            f"The remote {missing} server did not come up in time", hint=hint, log_tail=list(known.log_tail)
        )
        return Standing(Phase.FAILED, late.message, error=late.to_json())
    text = "Starting Jupyter" if published.internal_ssh_port else "Setting up the machine"
    if task.last_worker:
        text += f" on {task.last_worker}"
    return Standing(Phase.STARTING, text, Progress(3, STEPS, text, known.last_line))


def _attached(published: Services, known: Circumstances) -> Standing:
    tunnel = known.tunnel
    cause = str((tunnel.cause or {}).get("message", ""))
    if tunnel.state is TunnelState.FAILED:
        return Standing(Phase.FAILED, cause or "The connection failed", error=tunnel.cause)
    if tunnel.state is TunnelState.RECONNECTING:
        text = f"Reconnecting (attempt {tunnel.attempt})" + (f": {cause}" if cause else "")
        return Standing(Phase.RECONNECTING, text, Progress(4, STEPS, text))
    if tunnel.state is not TunnelState.UP:
        text = "Connecting" + (
            f" (attempt {tunnel.attempt}): {cause}" if tunnel.attempt > 1 and cause else ""
        )
        return Standing(Phase.CONNECTING, text, Progress(4, STEPS, text))
    if known.trouble is not None:
        return Standing(Phase.FAILED, str(known.trouble.get("message", "")), error=known.trouble)
    if published.wants_jupyter and not known.jupyter:
        text = "Connected, waiting for the remote Jupyter"
        return Standing(Phase.CONNECTING, text, Progress(4, STEPS, text))
    return Standing(Phase.READY, "Ready", Progress(STEPS, STEPS, "Ready"))


def _queued(known: Circumstances) -> str:
    if known.workers == 0:
        return "Waiting: no agent serves this queue"
    if known.position is None:
        return "Waiting in the queue"
    if known.workers is None:
        return f"Waiting in the queue, place {known.position}"
    agents = "1 agent" if known.workers == 1 else f"{known.workers} agents"
    return f"Waiting in the queue, place {known.position}, {agents}"


def _option(task: Task, name: str) -> bool:
    """Read a yes/no option of the session as the CLI does: absent counts as yes."""
    value = task.parameters.get(f"interactive_session/{name}")
    if value is None:
        value = task.parameters.get(f"General/{name}", "")
    return str(value).strip().lower() != "false"


def _port_of_machine(mapping: Any, port: int | None) -> int | None:
    """Return the machine's port that leads to a container's, as the agent noted it: "10022:10022,8080:80"."""
    for pair in str(mapping or "").split(","):
        outside, _, inside = pair.partition(":")
        if _port(inside) == port:
            return _port(outside)
    return None


def _port(value: Any) -> int | None:
    try:
        port = int(str(value).strip())
    except ValueError:
        return None
    return port if 0 < port < 65536 else None
