"""LaunchSpec: everything that can be said about a session before it is launched, and its JSON Schema.

Every option of the ``clearml-session`` 0.17 command line is here, under the snake_case form of its long name,
with the same meaning and the same default; ``env``, ``idle_timeout_min`` and ``clone_repo`` are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import launch_fields as check
from .errors import InvalidInput

GROUPS = ("basic", "environment", "workspace", "network", "advanced")

DEFAULT_DOCKER_IMAGE = "nvidia/cuda:11.6.2-runtime-ubuntu20.04"
"""The image that the command line takes where none is given and the network is not skipped."""


class _Kind(NamedTuple):
    """How a value is checked, and what the JSON Schema says of it."""

    check: check.Check
    schema: Mapping[str, Any]


def _option(group: str, title: str, description: str, kind: _Kind, default: Any) -> Any:
    metadata = {"group": group, "title": title, "description": description, "kind": kind}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def _text(how: check.Check, **schema: Any) -> _Kind:
    return _Kind(how, {"type": "string", **schema})


def _texts(item: check.Check) -> _Kind:
    return _Kind(check.lines(item), {"type": "array", "items": {"type": "string"}})


_FLAG = _Kind(check.flag, {"type": "boolean"})


@dataclass(frozen=True)
class CloneRepo:
    """A git repository to clone into the session: at ``commit`` of ``branch``, with ``diff`` applied."""

    url: str
    branch: str = ""
    commit: str = ""
    diff: str = ""

    @classmethod
    def from_json(cls, value: Any, name: str) -> CloneRepo:
        """Check a JSON object; raises `InvalidInput` naming the part, as in ``clone_repo.url``."""
        if not isinstance(value, Mapping):
            raise InvalidInput(f"'{name}' must be an object with url, branch, commit and diff.", field=name)
        for key in value:
            if key not in ("url", "branch", "commit", "diff"):
                raise InvalidInput(
                    f"'{name}' has no part {str(key)[:80]!r}.", field=f"{name}.{str(key)[:80]}"
                )
        return cls(
            url=check.git_url(value.get("url", ""), f"{name}.url"),
            branch=check.git_ref(value.get("branch") or "", f"{name}.branch"),
            commit=check.git_commit(value.get("commit") or "", f"{name}.commit"),
            diff=check.text(check.MAX_DIFF)(value.get("diff") or "", f"{name}.diff"),
        )

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def _clone_repo(value: Any, name: str) -> CloneRepo:
    return value if isinstance(value, CloneRepo) else CloneRepo.from_json(value, name)


@dataclass(frozen=True)
class LaunchSpec:
    """What to launch. Immutable; made from JSON by `from_json`, which checks every field."""

    # -- basic
    queue: str = _option(
        "basic",
        "Queue",
        "Name or id of the queue. Empty: the first queue tagged 'interactive', else the first one allowed.",
        _text(check.line(most=255)),
        "",
    )
    name: str | None = _option(
        "basic",
        "Name",
        "Name of the session. Left out: 'Interactive Session', or the name of the Task it is made from.",
        _text(check.line(least=3, most=255), minLength=3, maxLength=255),
        None,
    )
    project: str | None = _option(
        "basic",
        "Project",
        "ClearML project of the session. Left out: 'DevOps', or the project of the Task it is made from.",
        _text(check.line(least=3, most=255), minLength=3, maxLength=255),
        None,
    )
    tags: tuple[str, ...] = _option(
        "basic", "Tags", "Tags of the session in ClearML.", _texts(check.line(most=255)), ()
    )
    docker: str = _option(
        "basic",
        "Docker image",
        f"Image to run in. Empty: '{DEFAULT_DOCKER_IMAGE}'. Ignored by agents that do not use docker.",
        _text(check.docker),
        "",
    )
    packages: tuple[str, ...] = _option(
        "basic",
        "Python packages",
        "Packages to install, one each, as pip takes them.",
        _texts(check.requirement),
        (),
    )

    # -- environment
    requirements: str = _option(
        "environment",
        "Requirements",
        "Text of a requirements file.",
        _text(check.requirements_text, **{"x-multiline": True}),
        "",
    )
    init_script: str = _option(
        "environment",
        "Init script",
        "Bash script that runs before anything else; what it exports reaches Jupyter.",
        _text(check.text(), **{"x-multiline": True}),
        "",
    )
    env: Mapping[str, str] = _option(
        "environment",
        "Environment variables",
        "Variables of the session. They can be read on the Task in ClearML, so no secrets here.",
        _Kind(check.environment, {"type": "object", "additionalProperties": {"type": "string"}}),
        {},
    )
    git_credentials: bool = _option(
        "environment",
        "Send git credentials",
        "Send ~/.git-credentials and ~/.gitconfig of this machine to the session.",
        _FLAG,
        False,
    )
    jupyter_lab: bool = _option("environment", "JupyterLab", "Run JupyterLab.", _FLAG, True)
    vscode_server: bool = _option("environment", "VS Code", "Run VS Code in the browser.", _FLAG, True)
    vscode_version: str = _option(
        "environment",
        "VS Code version",
        "Version of code-server, optionally ':' and that of its Python extension.",
        _text(check.vscode_version),
        "",
    )
    vscode_extensions: str = _option(
        "environment",
        "VS Code extensions",
        "Ids of extensions to install, separated by commas.",
        _text(check.vscode_extensions),
        "",
    )
    disable_storage_packages: bool = _option(
        "environment",
        "No storage packages",
        "Do not add boto3, azure-storage-blob and google-cloud-storage (0.17 never adds them).",
        _FLAG,
        False,
    )

    # -- workspace
    user_folder: str = _option(
        "workspace",
        "Folder",
        "Base folder on the remote machine. Empty: '~/'.",
        _text(check.line(most=1024)),
        "",
    )
    store_workspace: str = _option(
        "workspace",
        "Store workspace",
        "Remote folder, like '~/workspace', that is stored at the end and restored by the next session.",
        _text(check.line(most=1024)),
        "",
    )
    continue_session: str = _option(
        "workspace",
        "Continue session",
        "Id of an ended session whose workspace is restored. Empty: the last one.",
        _text(check.task_id, pattern="^([0-9a-f]{32})?$"),
        "",
    )
    upload_files: tuple[str, ...] = _option(
        "workspace",
        "Upload",
        "Files or folders of this machine that appear under ~/session-files.",
        _texts(check.line(most=4096)),
        (),
    )
    clone_repo: CloneRepo | None = _option(  # noqa: RUF009 - a dataclass field, as the others
        "workspace",
        "Clone repository",
        "Git repository to clone there, with its uncommitted changes.",
        _Kind(
            _clone_repo,
            {
                "type": "object",
                "properties": {
                    "url": {"type": "string", "title": "URL"},
                    "branch": {"type": "string", "title": "Branch"},
                    "commit": {"type": "string", "title": "Commit"},
                    "diff": {"type": "string", "title": "Uncommitted changes", "x-multiline": True},
                },
                "required": ["url"],
                "additionalProperties": False,
            },
        ),
        None,
    )
    debugging_session: str = _option(
        "workspace",
        "Debug a Task",
        "Id of a Task to reproduce: its repository, commit, changes and packages.",
        _text(check.task_id, pattern="^([0-9a-f]{32})?$"),
        "",
    )

    # -- network
    docker_network: str = _option(
        "network",
        "Docker network",
        "'host': that of the machine; 'port': publish the SSH port only, and name the machine as the gateway; "
        "'none': leave it to the cluster.",
        _text(check.one_of("host", "port", "none"), enum=["host", "port", "none"]),
        "host",
    )
    public_ip: bool = _option(
        "network", "Public address", "Register the public address of the machine (cloud).", _FLAG, False
    )
    remote_ssh_port: str = _option(
        "network",
        "Remote SSH port",
        "Port of the SSH server there, or a range 'from:to'. Empty: 10022 and up.",
        _text(check.ssh_ports),
        "",
    )
    remote_gateway: str = _option(
        "network",
        "Gateway",
        "Address 'host' or 'host:port' that leads to the machine.",
        _text(check.gateway),
        "",
    )
    router_enabled: bool = _option(
        "network", "ClearML router", "Ask the ClearML router for a TCP route.", _FLAG, False
    )
    keepalive: bool = _option(
        "network", "Stable port", "Connect through the remote script's stable port.", _FLAG, False
    )

    # -- advanced
    docker_args: str = _option(
        "advanced", "Docker arguments", "Further arguments of 'docker run'.", _text(check.docker_args), ""
    )
    base_task_id: str = _option(
        "advanced",
        "Base Task",
        "Id of a session's Task to start from.",
        _text(check.base_task_id, pattern="^([0-9a-f]{32})?$"),
        "",
    )
    username: str = _option(
        "advanced",
        "SSH user",
        "User to log in as. Empty: root.",
        _text(check.username),
        "",
    )
    password: str = _option(
        "advanced",
        "SSH password",
        "Empty: a fresh random one. Never shown or stored by this extension.",
        _text(check.password, writeOnly=True, format="password"),
        "",
    )
    force_dropbear: bool = _option(
        "advanced", "Use dropbear", "Use dropbear in place of the SSH daemon.", _FLAG, False
    )
    idle_timeout_min: float = _option(
        "advanced",
        "Idle timeout (minutes)",
        "Shut the session down after so many minutes without work. 0: never.",
        _Kind(check.minutes, {"type": "number", "minimum": 0, "maximum": 525_600}),
        0,
    )

    def __repr__(self) -> str:
        defaults = _DEFAULT.to_json()
        shown = {key: value for key, value in self.to_json().items() if value != defaults[key]}
        return f"LaunchSpec({shown})"

    @classmethod
    def from_json(cls, obj: Any) -> LaunchSpec:
        """Make a LaunchSpec from a JSON object; ``null`` means the default.

        Raises
        ------
        InvalidInput
            For the first field that is unknown or has a value that cannot be used; ``detail.field`` names it.
        """
        if not isinstance(obj, Mapping):
            raise InvalidInput("What to launch must be a JSON object.", field="spec")
        values: dict[str, Any] = {}
        for key, value in obj.items():
            option = _OPTIONS.get(key) if isinstance(key, str) else None
            if option is None:
                name = str(key)[:80]
                raise InvalidInput(f"There is no launch option {name!r}.", field=name)
            if value is not None:
                values[key] = option.metadata["kind"].check(value, key)
        if values.get("debugging_session") and values.get("base_task_id"):
            raise InvalidInput(
                "A session debugs a Task or starts from a base Task, not both.", field="base_task_id"
            )
        if values.get("debugging_session") and values.get("clone_repo"):
            raise InvalidInput("A debugging session has the repository of its Task.", field="clone_repo")
        return cls(**values)

    def to_json(self, include_secrets: bool = False) -> dict[str, Any]:
        """Return a JSON object that `from_json` takes; the password only with ``include_secrets``."""
        body: dict[str, Any] = {}
        for key in _OPTIONS:
            value = getattr(self, key)
            if key == "password" and not include_secrets:
                continue
            if isinstance(value, CloneRepo):
                value = value.to_json()
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            body[key] = value
        return body

    def replace(self, **overrides: Any) -> LaunchSpec:
        """Return a copy with some fields changed; checks them as `from_json` does."""
        return LaunchSpec.from_json({**self.to_json(include_secrets=True), **overrides})


_OPTIONS = {option.name: option for option in dataclasses.fields(LaunchSpec)}
_DEFAULT = LaunchSpec()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of LaunchSpec: what the launch dialog is drawn from.

    Each property carries ``title``, ``description``, ``default`` (where it has one) and its ``x-group``, one
    of `GROUPS`; long texts carry ``x-multiline``.
    """
    defaults = _DEFAULT.to_json()
    properties: dict[str, Any] = {}
    for key, option in _OPTIONS.items():
        properties[key] = {
            "title": option.metadata["title"],
            "description": option.metadata["description"],
            **option.metadata["kind"].schema,
            "x-group": option.metadata["group"],
        }
        if defaults.get(key) is not None:
            properties[key]["default"] = defaults[key]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LaunchSpec",
        "description": "What to launch: the options of clearml-session, and ours.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "x-groups": list(GROUPS),
    }
