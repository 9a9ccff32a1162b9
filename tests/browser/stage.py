"""Sessions in every phase, made of the package's own models: what the fake server half shows."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from jupyterlab_clearml_session.backend.repo import RepoSnapshot
from jupyterlab_clearml_session.errors import (
    ClearMLSessionError,
    ConnectionTimedOut,
    HostKeyMismatch,
    SessionFailed,
)
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.models import (
    HostKeyTrust,
    Phase,
    Progress,
    Queue,
    QueuePlace,
    Ref,
    Session,
    TunnelState,
    TunnelStatus,
    Worker,
)

STEPS = 5
PASSWORD = "k3V-9xQ_fake"
PORTS = [
    {"port": 6006, "process": "tensorboard.main"},
    {"port": 8888, "process": "jupyter-lab"},
    {"port": 10022, "process": ""},
]
GIB = 1 << 30
LOAD = {
    "cpu_percent": 23.4,
    "cpu_count": 16,
    "memory": {"total": 64 * GIB, "used": 21 * GIB},
    "disk": {"total": 480 * GIB, "used": 443 * GIB, "free": 37 * GIB},
    "gpus": [
        {
            "index": 0,
            "name": "NVIDIA A100-SXM4-40GB",
            "utilization_percent": 87,
            "memory_used_mb": 31_744,
            "memory_total_mb": 40_960,
            "temperature_c": 61,
        }
    ],
    "idle_s": 2.0,
}
ME = Ref("u1", "ada")
SOMEBODY = Ref("u2", "grace")
LIVE = {
    Phase.CREATED: "created",
    Phase.QUEUED: "queued",
    Phase.ENDED: "completed",
    Phase.FAILED: "failed",
}
LOG_TAIL = [
    "Collecting torhc==2.4",
    "ERROR: Could not find a version that satisfies the requirement torhc==2.4",
    "ERROR: No matching distribution found for torhc==2.4",
    "clearml_agent: ERROR: Could not install task requirements!",
]

_DIFF = """\
diff --git a/train.py b/train.py
index 3b18e51..9f2c1aa 100644
--- a/train.py
+++ b/train.py
@@ -12,7 +12,8 @@ def main():
     model = build(args.model)
-    optimizer = Adam(model.parameters(), lr=1e-3)
+    optimizer = AdamW(model.parameters(), lr=3e-4)
+    schedule = cosine(optimizer, args.steps)
"""


def task_id(number: int) -> str:
    """Return an id that looks like one."""
    return f"{number:02x}{'0b7a3c5d9e1f24680b7a3c5d9e1f24':.30}"


def session(number: int, phase: Phase, **changes: Any) -> dict[str, Any]:
    """Return the JSON of a session in a phase, as the real manager would show it; ``changes`` go last."""
    found = _session(number, phase).to_json()
    return {**found, **changes}


def queues() -> list[dict[str, Any]]:
    """Return three queues: one idle, one busy with a line, one that nobody serves."""
    return [
        Queue("q1", "default", workers=(Worker("gpu-01:0", False, 312.0),)).to_json(),
        Queue(
            "q2",
            "a100",
            tags=("interactive",),
            entries=(task_id(90), task_id(91)),
            workers=(Worker("dgx:0", True), Worker("dgx:1", True)),
        ).to_json(),
        Queue("q3", "services").to_json(),
    ]


def tasks(text: str) -> list[dict[str, Any]]:
    """Return the Tasks whose name or id holds the text."""
    shared = {"status": "failed", "project": "vision", "created": None, "branch": "main", "commit": "c0ffee"}
    repository = "https://git.example.org/vision.git"
    all_tasks = [
        {"id": task_id(200), "name": "train resnet", "repository": repository, **shared},
        {"id": task_id(201), "name": "train vit", "repository": repository, **shared},
        {"id": task_id(202), "name": "plot results", "repository": repository, **shared},
    ]
    return [task for task in all_tasks if text in str(task["name"]) or text == task["id"]]


def launched_with() -> LaunchSpec:
    """Return what an ended session was launched with."""
    return LaunchSpec(
        queue="a100",
        name="Yesterday's notebook",
        packages=("torch", "timm"),
        init_script="apt-get install htop",
    )


def imported() -> LaunchSpec:
    """Return what the command line remembered."""
    return LaunchSpec(queue="a100", docker="nvidia/cuda:12.4.1-runtime-ubuntu22.04", keepalive=True)


def repository() -> dict[str, Any]:
    """Return what would be sent of a repository with changes, one of which is not for others' eyes."""
    snapshot = RepoSnapshot(
        name="vision",
        url="https://git.example.org/research/vision.git",
        branch="main",
        commit="3f9c2a7be0d14c5f8a6b7e9012d3c4b5a6f7e8d9",
        diff=_DIFF,
        files=("models/vit.py", "notebooks/fine-tuning.ipynb", "train.py"),
        left_out=((".env", "may hold secrets (its name)"), ("weights.pt", "is larger than 1,048,576 bytes")),
        local_commits=1,
    )
    return snapshot.to_json()


def ssh(local_port: int) -> dict[str, str]:
    """Return how to get in with ssh, as the real server half writes it."""
    alias, known_hosts = "clearml-010b7a3c", "/home/ada/.local/share/jupyter/clearml-session/clearml-010b7a3c"
    return {
        "ssh_command": f"ssh -p {local_port} -o HostKeyAlias={alias} -o UserKnownHostsFile={known_hosts} "
        "-o StrictHostKeyChecking=yes -o PreferredAuthentications=password,keyboard-interactive root@127.0.0.1",
        "ssh_config": f"Host {alias}\n    HostName 127.0.0.1\n    Port {local_port}\n    User root\n"
        f'    HostKeyAlias {alias}\n    UserKnownHostsFile "{known_hosts}"\n',
    }


def status(mode: str = "server", error: ClearMLSessionError | None = None) -> dict[str, Any]:
    """Return where we stand with ClearML."""
    body: dict[str, Any] = {
        "mode": mode,
        "api_server": None if mode == "unconfigured" else "https://api.clearml.example.org",
        "web_server": None if mode == "unconfigured" else "https://app.clearml.example.org",
        "user": None if mode == "unconfigured" or error else ME.to_json(),
        "reachable": mode != "unconfigured" and error is None,
        "version": None if mode == "unconfigured" else "2.31",
    }
    if error is not None:
        body["error"] = error.to_json()
    return body


def _session(number: int, phase: Phase) -> Session:
    now = datetime.now(timezone.utc)
    created = now - timedelta(minutes=3 * number + 1)
    up = phase in (Phase.READY, Phase.RECONNECTING)
    running = up or phase in (Phase.SERVICES_UP, Phase.CONNECTING, Phase.STOPPING)
    id_ = task_id(number)
    text, progress = _standing(phase)
    failure = SessionFailed("The session failed: could not install its packages", log_tail=LOG_TAIL)
    return Session(
        id=id_,
        name=_NAMES[phase],
        phase=phase,
        phase_text=text if phase is not Phase.FAILED else failure.message,
        phase_since=now.isoformat(),
        status=LIVE.get(phase, "in_progress"),
        queue=QueuePlace("q2", "a100", 2, 2) if phase is Phase.QUEUED else QueuePlace("q1", "default"),
        project="DevOps",
        tags=("vision", "notebooks"),
        user=ME,
        mine=True,
        created=created.isoformat(),
        started=(created + timedelta(seconds=20)).isoformat() if running else None,
        ended=now.isoformat() if phase in (Phase.ENDED, Phase.FAILED) else None,
        web_url=f"https://app.clearml.example.org/projects/*/experiments/{id_}/output/log",
        launched_by="panel",
        attached=up,
        tunnel=_tunnel(phase, now),
        endpoints=_endpoints(id_) if running else {},
        kernelspecs=(f"clearml-{id_[:8]}-python3",) if up else (),
        spec={"docker": "nvidia/cuda:12.4.1-runtime-ubuntu22.04", "packages": ["torch==2.4", "timm"]},
        progress=progress,
        error=failure.to_json() if phase is Phase.FAILED else None,
    )


_NAMES = {
    Phase.CREATED: "Ablation notebook",
    Phase.QUEUED: "Segmentation sweep",
    Phase.STARTING: "Fine-tuning ViT",
    Phase.SERVICES_UP: "Launched with the CLI",
    Phase.CONNECTING: "Data cleaning",
    Phase.READY: "Interactive Session",
    Phase.RECONNECTING: "Night training",
    Phase.STOPPING: "Old baseline",
    Phase.ENDED: "Yesterday's notebook",
    Phase.FAILED: "Typo in packages",
}


def _standing(phase: Phase) -> tuple[str, Progress | None]:
    lost = ConnectionTimedOut("Nothing answered on port 10022 in time").message
    texts: dict[Phase, tuple[str, int, str]] = {
        Phase.CREATED: ("Created, not yet in a queue", 1, ""),
        Phase.QUEUED: ("Waiting in the queue, place 2, 2 agents", 2, ""),
        Phase.STARTING: (
            "Setting up the machine on gpu-01:0",
            3,
            "Successfully installed jupyterlab-4.6.6 notebook-shim-0.2.4 tornado-6.5",
        ),
        Phase.SERVICES_UP: ("Running, not attached", 4, ""),
        Phase.CONNECTING: ("Connected, waiting for the remote Jupyter", 4, ""),
        Phase.READY: ("Ready", STEPS, ""),
        Phase.RECONNECTING: (f"Reconnecting (attempt 3): {lost}", 4, ""),
        Phase.STOPPING: ("Shutting down", 0, ""),
        Phase.ENDED: ("Ended", 0, ""),
        Phase.FAILED: ("Failed", 0, ""),
    }
    text, step, last_line = texts[phase]
    return text, Progress(step, STEPS, text, last_line) if step else None


def _tunnel(phase: Phase, now: datetime) -> TunnelStatus:
    if phase is Phase.READY:
        return TunnelStatus(TunnelState.UP, now.isoformat(), 1, None, 12.4, HostKeyTrust.PINNED)
    if phase is Phase.RECONNECTING:
        cause = ConnectionTimedOut("Nothing answered on port 10022 in time").to_json()
        return TunnelStatus(TunnelState.RECONNECTING, now.isoformat(), 3, cause, None, HostKeyTrust.PINNED)
    if phase is Phase.CONNECTING:
        return TunnelStatus(TunnelState.CONNECTING, now.isoformat(), 1, None, None, HostKeyTrust.PINNED)
    if phase is Phase.SERVICES_UP:
        return TunnelStatus(host_key=HostKeyTrust.UNVERIFIED)
    return TunnelStatus(host_key=HostKeyTrust.PINNED)


def host_key_mismatch(number: int) -> dict[str, Any]:
    """Return a running session whose machine shows another host key: the connection is refused for good."""
    cause = HostKeyMismatch("The host key of 203.0.113.7 is not the one of this session").to_json()
    return session(
        number,
        Phase.FAILED,
        name="Someone in the middle?",
        status="in_progress",
        phase_text=cause["message"],
        error=cause,
        ended=None,
        attached=True,
        tunnel={**TunnelStatus(TunnelState.FAILED, None, 1, cause, None, HostKeyTrust.PINNED).to_json()},
    )


def _endpoints(id_: str) -> dict[str, Any]:
    root = f"clearml-session/proxy/{id_}"
    return {
        "jupyter": f"{root}/jupyter/",
        "jupyter_open": f"{root}/jupyter/lab",
        "vscode": f"{root}/vscode/",
        "ssh": {"user": "root", "host": "203.0.113.7", "port": 10022},
    }
