"""LaunchSpec -> the Task to create, purely. `launch.py` reads it back.

The Task equals the one that ``clearml-session`` 0.17 makes with the same options (tests/integration/
test_launch_equality.py compares them); docs/cli-options.md lists the deliberate differences. The names of
parameters, sections and runtime entries are upstream's.

What only we know of a launch is kept in one runtime entry, `RECORD`, that upstream's programs leave alone.
"""

from __future__ import annotations

import functools
import getpass
import json
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ..errors import NotDebuggable
from ..launch_spec import DEFAULT_DOCKER_IMAGE, LaunchSpec
from . import init_script
from .remote_script import remote_source, session_script

SYSTEM_TAG = "interactive"
SECTION = "interactive_session"
SSH_CONFIGURATION = "SSH"
INIT_CONFIGURATION = "interactive_init_script"
DEFAULT_NAME = "Interactive Session"
DEFAULT_PROJECT = "DevOps"

RECORD = "_jupyterlab_session"
"""Runtime entry (JSON text): ``by`` (panel, magic ...), ``spec``, ``host_keys`` (public halves), ``folder``."""

PLAIN_ENTRY_POINT = ".interactive_session.py"
REPOSITORY_ENTRY_POINT = "__interactive_session__.py"

DEFAULT_FOLDER = "~/"

_TCP_PORT = 10022
_CLEARML_PACKAGE = "clearml>=1.1.5"
_JUPYTER_PACKAGES = ("jupyter", "jupyterlab", "jupyterlab_git", "traitlets")
_VSCODE_PACKAGES = ("pylint",)
BASE_PACKAGES = frozenset({"clearml", _CLEARML_PACKAGE, *_JUPYTER_PACKAGES, *_VSCODE_PACKAGES})
_DEFAULT_PARAMETERS = {
    f"{SECTION}/user_base_directory": DEFAULT_FOLDER,
    f"{SECTION}/ssh_server": True,
    f"{SECTION}/default_docker": "nvidia/cuda",
    "properties/external_address": "",
    "properties/internal_ssh_port": "",
    "properties/jupyter_port": "",
}
# What a session published when it ran; its copy would take them for its own.
_PUBLISHED = (
    "external_address",
    "external_ssh_port",
    "internal_ssh_port",
    "internal_stable_ssh_port",
    "jupyter_port",
    "vscode_port",
    "k8s-gateway-address",
    "k8s-pod-port",
)
_MAX_RECORDED = 8192


@dataclass(frozen=True)
class Materials:
    """What a launch needs beside the spec; all of it gathered before, so that `draft` stays pure.

    ``source`` is the Task to start from (as tasks.get_all answers), ``user_key`` and ``user_secret`` the user's
    ClearML credentials where they are to be sent, ``git_files`` the runtime entries of the git credentials.
    """

    password: str = field(repr=False)
    host_keys: Mapping[str, str] = field(repr=False)
    host_public_keys: Sequence[str]
    launched_by: str
    project: str | None = None
    source: Mapping[str, Any] | None = field(default=None, repr=False)
    user_key: str = field(default="", repr=False)
    user_secret: str = field(default="", repr=False)
    git_files: Mapping[str, str] = field(default_factory=dict, repr=False)


def draft(spec: LaunchSpec, given: Materials) -> dict[str, Any]:
    """Return the body of tasks.create.

    Raises NotDebuggable where the Task to debug has no repository.
    """
    source = given.source or {}
    script = _script(spec, source)
    repository = repository_name(script)
    if spec.store_workspace and init_script.LINK_VARIABLE not in (script.get("diff") or ""):
        # The script of a base Task, which does not keep the link out of the workspace's archive.
        repository = ""
    text = spec.init_script or init_script.user_text(_configured(source, INIT_CONFIGURATION))
    parameters = _parameters(spec, source)
    container = _container(spec, source, parameters)
    body: dict[str, Any] = {
        "name": spec.name or (DEFAULT_NAME if _is_plain(spec) or spec.continue_session else source["name"]),
        "type": source.get("type", "application"),
        "comment": source.get("comment", "") if given.source else _comment(),
        "project": given.project or _reference(source.get("project")),
        "parent": source.get("id"),
        "tags": list(spec.tags) or source.get("tags") or [],
        "system_tags": [SYSTEM_TAG],
        "script": script,
        "hyperparams": _hyperparams(spec, parameters, source),
        "configuration": _configuration(
            source,
            {
                INIT_CONFIGURATION: init_script.compose(
                    text,
                    env=spec.env,
                    repository=repository,
                    folder=spec.store_workspace or spec.user_folder,
                    in_workspace=bool(spec.store_workspace),
                ),
                SSH_CONFIGURATION: json.dumps(dict(given.host_keys)),
            },
        ),
        "runtime": _runtime(spec, given, repository),
        "container": container,
    }
    execution = _execution(source)
    if execution:
        body["execution"] = execution
    if (source.get("models") or {}).get("input"):
        body["models"] = {"input": source["models"]["input"]}
    return {key: value for key, value in body.items() if value is not None}


def source_id(spec: LaunchSpec) -> str:
    """Return the id of the Task that the session starts from; empty where there is none."""
    return spec.debugging_session or spec.base_task_id or spec.continue_session


def _is_plain(spec: LaunchSpec) -> bool:
    return not source_id(spec)


def _wipes(spec: LaunchSpec) -> bool:
    """Say whether upstream throws the parameters of the source away: not only for a base Task."""
    return not spec.base_task_id


def _script(spec: LaunchSpec, source: Mapping[str, Any]) -> dict[str, Any]:
    theirs = dict(source.get("script") or {})
    if spec.debugging_session:
        if not theirs.get("repository"):
            raise NotDebuggable(
                "The Task to debug has no git repository, so there is nothing to reproduce.",
                field="debugging_session",
                hint="Pick a Task that was run from a git repository.",
            )
        theirs["diff"] = _as_file_of(spec, remote_source("interactive_session_task.py")) + (
            theirs.get("diff") or ""
        )
        theirs.update(working_dir=".", entry_point=REPOSITORY_ENTRY_POINT)
        extra = [*spec.packages, *_requirement_lines(spec.requirements), "clearml", *_service_packages(spec)]
        theirs["requirements"] = _merged(theirs.get("requirements"), extra)
        return theirs
    extra = [*spec.packages, *_requirement_lines(spec.requirements)]
    if spec.base_task_id:
        if extra:
            theirs["requirements"] = _merged(theirs.get("requirements"), extra)
        return _with_clone(theirs, spec)
    theirs.setdefault("binary", "python")
    theirs.update(diff=session_script(), working_dir=".", entry_point=PLAIN_ENTRY_POINT)
    theirs["requirements"] = {"pip": "\n".join([_CLEARML_PACKAGE, *_service_packages(spec)])}
    if extra:
        theirs["requirements"] = _merged(theirs["requirements"], extra)
    return _with_clone(theirs, spec)


def _with_clone(script: dict[str, Any], spec: LaunchSpec) -> dict[str, Any]:
    """Let the agent check out the repository, with its own credentials, and put the remote script into it.

    That is upstream's way of debugging a Task; the diff of the user follows the file that holds the script.
    """
    if spec.clone_repo is None:
        return script
    script.update(
        repository=spec.clone_repo.url,
        branch=spec.clone_repo.branch,
        version_num=spec.clone_repo.commit,
        diff=_as_file_of(spec, session_script()) + spec.clone_repo.diff,
        working_dir=".",
        entry_point=REPOSITORY_ENTRY_POINT,
    )
    script.pop("tag", None)
    return script


def _service_packages(spec: LaunchSpec) -> list[str]:
    return [
        *(_JUPYTER_PACKAGES if spec.jupyter_lab else ()),
        *(_VSCODE_PACKAGES if spec.vscode_server else ()),
    ]


def _as_file_of(spec: LaunchSpec, script: str) -> str:
    return as_new_file((init_script.LINK_KEEPER if spec.store_workspace else "") + script)


def as_new_file(text: str) -> str:
    """Return the git diff that adds ``text`` as the remote script's file, as upstream writes it."""
    lines = ["+" + line.rstrip() for line in text.removesuffix("\n").split("\n")]
    name = REPOSITORY_ENTRY_POINT
    header = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n"
    return header + "\n".join(lines) + "\n"


def without_new_file(diff: str) -> str:
    """Return what follows the remote script's file in a diff, whichever version of it that is; else nothing."""
    name = re.escape(REPOSITORY_ENTRY_POINT)
    header = re.match(rf"diff --git .*/{name}\n--- .*\n\+\+\+ .*\n@@ -0,0 \+1,(\d{{1,6}}) @@\n", diff)
    if header is None:
        return ""
    lines = diff[header.end() :].split("\n", int(header[1]))
    return lines[-1] if len(lines) > int(header[1]) else ""


def _requirement_lines(text: str) -> list[str]:
    """Return the lines of a requirements file as upstream takes them: stripped, without comments."""
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def _merged(requirements: Any, packages: Iterable[str]) -> dict[str, Any]:
    """Return requirements with ``packages`` before their own lines of the same name, sorted as upstream does."""
    found = dict(requirements or {})
    theirs = found.get("pip") or []
    chosen = [line for line in packages if line.strip() and not line.strip().startswith("#")]
    names = {_package_name(line) for line in chosen}
    for line in theirs.split("\n") if isinstance(theirs, str) else theirs:
        if line.strip() and not line.strip().startswith("#") and _package_name(line) not in names:
            chosen.append(line)
    found["pip"] = "\n".join(sorted(chosen))
    return found


def _package_name(line: str) -> str:
    return functools.reduce(lambda rest, mark: rest.partition(mark)[0], "#;@=~<>", line).strip()


def _parameters(spec: LaunchSpec, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters by ``section/name``, with Python values: their types go to the server."""
    found: dict[str, Any] = {}
    if _wipes(spec):
        found.update(_DEFAULT_PARAMETERS)
    else:
        for section, items in (source.get("hyperparams") or {}).items():
            found.update((f"{section}/{name}", item.get("value")) for name, item in items.items())
        found.update((f"properties/{name}", "") for name in _PUBLISHED if f"properties/{name}" in found)
    # Sessions of old clients keep everything in "General".
    section = "General" if "General/ssh_server" in found else SECTION
    found["properties/jupyter_port"] = ""
    if spec.remote_gateway:
        host, _, port = spec.remote_gateway.partition(":")
        found["properties/external_address"] = host
        if port:
            found["properties/external_ssh_port"] = port
    found.update(
        {
            f"{section}/ssh_server": "True",
            f"{section}/jupyterlab": spec.jupyter_lab,
            f"{section}/vscode_server": spec.vscode_server,
            f"{section}/public_ip": spec.public_ip,
            f"{section}/ssh_ports": spec.remote_ssh_port,
            f"{section}/vscode_version": spec.vscode_version,
            f"{section}/vscode_extensions": spec.vscode_extensions,
            f"{section}/force_dropbear": spec.force_dropbear,
            f"{section}/store_workspace": spec.store_workspace or None,
            f"{section}/use_ssh_proxy": spec.keepalive,
            f"{section}/router_enabled": spec.router_enabled,
        }
    )
    if spec.user_folder:
        found[f"{section}/user_base_directory"] = spec.user_folder
    return found


def _container(
    spec: LaunchSpec, source: Mapping[str, Any], parameters: dict[str, Any]
) -> dict[str, str] | None:
    """Return the container, and put its image into ``parameters``; None leaves it to the agent."""
    theirs = source.get("container") or {}
    command = spec.docker or " ".join(filter(None, (theirs.get("image"), theirs.get("arguments"))))
    if not command and spec.docker_network != "none":
        command = DEFAULT_DOCKER_IMAGE
    if not command:
        return dict(theirs) or None
    section = "General" if "General/ssh_server" in parameters else SECTION
    parameters[f"{section}/default_docker"] = command.replace("--network host", "").strip()
    if spec.docker_args:
        command += f" {spec.docker_args}"
    if spec.docker_network == "host" and "--network host" not in command:
        command += " --network host"
    if spec.docker_network == "port":
        port = spec.remote_ssh_port.partition(":")[0] or _TCP_PORT
        published = f"-p {port}:{port}"
        command += "" if published in command else f" {published}"
    image, _, arguments = command.partition(" ")
    return {"image": image, "arguments": arguments, "setup_shell_script": ""}


def _hyperparams(
    spec: LaunchSpec, parameters: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return parameters as the SDK stores them after upstream's writes: the defaults first, then all of them."""
    before = source.get("hyperparams") or {}
    if _wipes(spec):
        before = _written(_DEFAULT_PARAMETERS, before)
    return _written(parameters, before)


def _written(parameters: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the SDK's set_parameters makes of them: texts, with the type a parameter had or its value has."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in parameters.items():
        section, _, name = key.partition("/")
        old = (before.get(section) or {}).get(name)
        kind = None if value is None else type(value).__name__
        if old is not None and (old.get("type") or value == ""):
            kind = old.get("type")
        item = {"section": section, "name": name, "value": "" if value is None else str(value)}
        item["description"] = (old or {}).get("description") or ""
        if kind:
            item["type"] = kind
        sections.setdefault(section, {})[name] = item
    return sections


def _configuration(source: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    kinds = {INIT_CONFIGURATION: "bash", SSH_CONFIGURATION: "dictionary"}
    found = {name: dict(item) for name, item in (source.get("configuration") or {}).items()}
    for name, text in texts.items():
        if text.strip() and text != str(found.get(name, {}).get("value")):
            found[name] = {"name": name, "value": text, "type": kinds[name]}
        elif not text:
            found.pop(name, None)  # of a session whose script was nothing but our blocks
    return found


def _runtime(spec: LaunchSpec, given: Materials, repository: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "by": given.launched_by,
        "spec": _recorded(spec),
        "host_keys": list(given.host_public_keys),
    }
    if repository:
        record["folder"] = repository
    runtime = {
        "_jupyter_token": "",
        "_ssh_password": given.password,
        "internal_tcp_port_request": str(_TCP_PORT),
        RECORD: json.dumps(record, sort_keys=True),
        **given.git_files,
    }
    if given.user_key:
        runtime.update(_user_key=given.user_key, _user_secret=given.user_secret)
    return runtime


def _recorded(spec: LaunchSpec) -> dict[str, Any]:
    """Return the fields worth noting: no secret, no local path, no long text twice, no default but one."""
    defaults = LaunchSpec().to_json()
    noted = {key: value for key, value in spec.to_json().items() if value != defaults.get(key)}
    for key in ("upload_files", "init_script", "env"):
        noted.pop(key, None)
    # Also where there are none: the Task's own list holds the lines of the requirements as well.
    noted["packages"] = list(spec.packages)
    if len(spec.requirements) > _MAX_RECORDED:
        del noted["requirements"], noted["packages"]  # that list then stands for both
    if spec.clone_repo:
        noted["clone_repo"] = {**spec.clone_repo.to_json(), "diff": ""}
    return noted


def _execution(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a copy keeps of the execution: as tasks.clone, input artifacts only (the workspace is one)."""
    if not source:
        return None
    theirs = dict(source.get("execution") or {})
    theirs.pop("queue", None)
    theirs["artifacts"] = [item for item in theirs.get("artifacts") or [] if item.get("mode") == "input"]
    return theirs


def repository_name(script: Mapping[str, Any]) -> str:
    if script.get("entry_point") != REPOSITORY_ENTRY_POINT:
        return ""
    path = str(script.get("repository") or "").rstrip("/").replace(":", "/")
    return path.rpartition("/")[2].removesuffix(".git") or "repository"


def _configured(source: Mapping[str, Any], name: str) -> str:
    item = (source.get("configuration") or {}).get(name) or {}
    return str(item.get("value") or "")


def _reference(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("id")
    return str(value) if value else None


def _comment() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container whose user has no name
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"Auto-generated at {now} by {user}@{socket.gethostname()}"
