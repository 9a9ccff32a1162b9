"""What a session was launched with, read back from its Task; `draft.py` is the other direction.

Works for Tasks that the command line made too, as far as those tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InvalidInput
from ..launch_spec import LaunchSpec
from ..models import HostKeyTrust, Task
from . import init_script
from .draft import (
    BASE_PACKAGES,
    DEFAULT_FOLDER,
    RECORD,
    REPOSITORY_ENTRY_POINT,
    SECTION,
    SYSTEM_TAG,
    without_new_file,
)
from .host_keys import default_public_keys

__all__ = ["SYSTEM_TAG", "full_spec", "launched_by", "repository_folder", "session_spec", "with_host_keys"]

_TEXTS = {
    "vscode_version": "vscode_version",
    "vscode_extensions": "vscode_extensions",
    "ssh_ports": "remote_ssh_port",
    "store_workspace": "store_workspace",
    "user_base_directory": "user_folder",
}
_FLAGS = {
    "jupyterlab": "jupyter_lab",
    "vscode_server": "vscode_server",
    "public_ip": "public_ip",
    "force_dropbear": "force_dropbear",
    "use_ssh_proxy": "keepalive",
    "router_enabled": "router_enabled",
}
_SOURCES = ("debugging_session", "base_task_id", "continue_session")


def launched_by(task: Task) -> str:
    """Return who launched a session: "panel", "magic" ..., "cli" for upstream's Tasks, empty for other Tasks."""
    by = _record(task).get("by")
    if isinstance(by, str) and by:
        return by
    return (
        "cli" if SYSTEM_TAG in task.system_tags and f"{_section(task)}/ssh_server" in task.parameters else ""
    )


def with_host_keys(task: Task, vault: tuple[str, ...] = (), configured: tuple[str, ...] = ()) -> Task:
    """Return the Task with the public host keys that the tunnel must find, and what they prove.

    The server's ``vault`` wins, as it does in the remote script; then what we noted at launch, then the Task's
    ``configured`` keys, and for the rest upstream's default ones, which prove nothing.
    """
    if vault:
        return replace(task, host_keys=vault, trust=HostKeyTrust.VAULT)
    noted = _record(task).get("host_keys")
    pinned = tuple(map(str, noted)) if isinstance(noted, list) and noted else configured
    if pinned and not set(pinned) & set(default_public_keys()):
        return replace(task, host_keys=pinned, trust=HostKeyTrust.PINNED)
    return replace(task, host_keys=default_public_keys(), trust=HostKeyTrust.UNVERIFIED)


def repository_folder(task: Task) -> str:
    """Return the checked-out repository's folder below Jupyter's base folder; empty where there is none.

    Ours is linked there by the init script. Upstream's debugging sessions have it only in containers, through
    the remote script's ``environment`` link.
    """
    folder = _record(task).get("folder")
    if isinstance(folder, str) and folder:
        return f"{folder}-{task.id[:8]}"
    if task.script.get("entry_point") != REPOSITORY_ENTRY_POINT:
        return ""
    return (
        "environment/task_repository/"
        + str(task.script.get("repository") or "").rstrip("/").rpartition("/")[2]
    )


def session_spec(task: Task) -> dict[str, Any]:
    """Return the LaunchSpec (as JSON) that a session was launched with, as far as its Task tells; no secrets.

    Long texts (init script, diff) and ``env`` are not part of a listed Task: see `full_spec`.
    """
    spec = _from_parameters(task)
    noted = _record(task).get("spec")
    if isinstance(noted, Mapping):
        # Of a parent and a repository alone nobody can tell which of these it was; the note holds the one it was.
        for option in _SOURCES:
            spec.pop(option, None)
        spec.update(noted)
    spec.pop("password", None)
    if task.queue:
        spec["queue"] = task.queue.name or task.queue.id
    try:
        return LaunchSpec.from_json(spec).to_json()
    except InvalidInput:
        # Somebody changed the Task by hand, or made it with a version that knows more: what we understand of it.
        return {**LaunchSpec().to_json(), **{key: value for key, value in spec.items() if _valid(key, value)}}


def full_spec(task: Task, *, init_script_text: str, diff: str) -> LaunchSpec:
    """Return the LaunchSpec of a session with its long texts, to launch it once more.

    ``init_script_text`` is the Task's init script, ``diff`` its script's. Raises InvalidInput where the Task holds
    something that cannot be launched.
    """
    spec = session_spec(task)
    spec["init_script"] = init_script.user_text(init_script_text)
    spec["env"] = init_script.environment(init_script_text)
    if spec.get("clone_repo"):
        spec["clone_repo"] = {**spec["clone_repo"], "diff": without_new_file(diff)}
    return LaunchSpec.from_json(spec)


def _valid(option: str, value: Any) -> bool:
    try:
        LaunchSpec.from_json({option: value})
    except InvalidInput:
        return False
    return value is not None


def _from_parameters(task: Task) -> dict[str, Any]:
    section = _section(task)
    spec: dict[str, Any] = {"name": task.name, "tags": list(task.tags)}
    if task.project and task.project.name:
        spec["project"] = task.project.name
    for parameter, option in _TEXTS.items():
        spec[option] = task.parameters.get(f"{section}/{parameter}", "")
    for parameter, option in _FLAGS.items():
        value = task.parameters.get(f"{section}/{parameter}")
        if value is not None:
            spec[option] = value.strip().lower() == "true"
    if spec["user_folder"] == DEFAULT_FOLDER:
        spec["user_folder"] = ""
    spec.update(_container(task.container), packages=_packages(task))
    if task.parent and task.script.get("entry_point") == REPOSITORY_ENTRY_POINT:
        spec["debugging_session"] = task.parent
    elif task.parent:
        spec["continue_session" if spec["store_workspace"] else "base_task_id"] = task.parent
    return spec


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    arguments = str(container.get("arguments") or "")
    return {
        "docker": str(container.get("image") or ""),
        "docker_args": " ".join(arguments.replace("--network host", "").split()),
        "docker_network": "host" if not container.get("image") or "--network host" in arguments else "none",
    }


def _packages(task: Task) -> list[str]:
    requirements = task.script.get("requirements")
    found = requirements if isinstance(requirements, Mapping) else {}
    # An agent that has made the environment notes under "pip" all that is in it.
    pip = found.get("org_pip") or found.get("pip")
    lines = map(str, pip) if isinstance(pip, list) else str(pip or "").split("\n")
    return [line for line in lines if line.strip() and line not in BASE_PACKAGES]


def _section(task: Task) -> str:
    # Sessions of old clients keep everything in "General".
    return "General" if "General/ssh_server" in task.parameters else SECTION


def _record(task: Task) -> Mapping[str, Any]:
    try:
        found = json.loads(str(task.runtime.get(RECORD) or "{}"))
    except (ValueError, RecursionError):  # anybody who may change the Task can write it
        return {}
    return found if isinstance(found, Mapping) else {}
