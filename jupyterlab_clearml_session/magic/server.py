"""Which local Jupyter server is ours: the one that owns this kernel, with its address and token.

Jupyter servers leave a ``jpserver-<pid>.json`` in the user's runtime folder (readable by the user only), and start
kernels with ``JPY_PARENT_PID``; under JupyterHub the kernel's environment carries the server's own API token.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import ClearMLSessionError, ServerNotFound, ServerRefused, ServerUnreachable
from .http import request

URL_VARIABLE = "JUPYTERLAB_CLEARML_SESSION_URL"
TOKEN_VARIABLE = "JUPYTERLAB_CLEARML_SESSION_TOKEN"  # noqa: S105 - the name of a variable

FIND_DEADLINE = 5.0
_KERNEL_FILE = re.compile(r"kernel-(?P<id>[0-9A-Za-z_-]+)\.json")
_PAGE = re.compile(r"(?<!/)/(lab|tree|notebooks|doc)/.*$")
_START = "Start JupyterLab with this extension, or name a server: %clearml_session server URL"


@dataclass(frozen=True)
class Server:
    """A Jupyter server. ``url`` ends in a slash; ``socket`` is the path where it listens on a Unix socket."""

    url: str
    token: str = field(default="", repr=False)
    socket: str = ""
    pid: int = 0
    found: str = ""
    """How it was found, as the end of a sentence."""

    @property
    def base_url(self) -> str:
        """Path of the server, as a browser sees it."""
        return urlsplit(self.url).path or "/"

    def call(self, method: str, path: str, body: Any = None, *, deadline: float) -> tuple[int, Any]:
        """Send one request below the base URL; returns status and JSON. Raises ServerUnreachable."""
        return request(
            method, self.url + path, body, token=self.token, socket_path=self.socket, deadline=deadline
        )


def kernel_id_of(connection_file: str) -> str | None:
    """Return the id that the owning server knows a kernel by, from the name of its connection file."""
    match = _KERNEL_FILE.fullmatch(Path(connection_file).name)
    return match["id"] if match else None


def find_server(
    kernel_id: str | None, folders: Sequence[Path], environment: Mapping[str, str] = os.environ
) -> Server:
    """Return the server to talk to.

    In this order: the one that the environment names; the one that owns the kernel ``kernel_id``; the only one of
    this user that runs. ``folders`` are where servers leave their notes. Raises ServerNotFound, which says what is
    missing.
    """
    named = environment.get(URL_VARIABLE)
    if named:
        return server_at(
            named, environment.get(TOKEN_VARIABLE, ""), folders, found=f"named by {URL_VARIABLE}"
        )
    servers = running_servers(folders, environment)
    usable: list[Server] = []
    trouble: list[tuple[Server, ClearMLSessionError]] = []
    for server in servers:
        try:
            if kernel_id is not None and _owns(server, kernel_id):
                return replace(server, found="it owns this kernel")
            _greet(server)
            usable.append(server)
        except ClearMLSessionError as error:
            trouble.append((server, error))
    parent = [error for server, error in trouble if str(server.pid) == environment.get("JPY_PARENT_PID")]
    if parent:
        # It started this kernel: another one would be the wrong one.
        raise ServerNotFound(parent[0].message, hint=parent[0].hint)
    if len(usable) == 1:
        return replace(usable[0], found="the only one of yours that runs")
    if usable:
        urls = ", ".join(server.url for server in usable)
        raise ServerNotFound(
            f"Several Jupyter servers of yours run, and none of them owns {_this(kernel_id, environment)}: {urls}.",
            hint="Choose one: %clearml_session server URL",
            servers=[server.url for server in usable],
        )
    if trouble:
        raise ServerNotFound(trouble[0][1].message, hint=trouble[0][1].hint)
    raise ServerNotFound(_missing(kernel_id, environment), hint=_START)


def server_at(url: str, token: str, folders: Sequence[Path], *, found: str) -> Server:
    """Return the server at an address that somebody named; the token of a running one is looked up.

    The address may be that of a page, with its token, as Jupyter prints it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port, or an IPv6 address
        usable = False
    if not usable:
        shown = url.partition("?")[0].rpartition("@")[2]  # neither token nor password
        raise ServerNotFound(
            f"{shown!r} is not the address of a Jupyter server.", hint="As in http://host:8888/"
        )
    token = token or parse_qs(parts.query).get("token", [""])[0]
    clean = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/"
    known = next((server for server in running_servers(folders, {}) if _leads_to(clean, server.url)), None)
    if known is None:
        return Server(_PAGE.sub("/", clean), token, found=found)
    return replace(known, token=token or known.token, found=found)


def running_servers(folders: Sequence[Path], environment: Mapping[str, str]) -> list[Server]:
    """Return the servers of this user: the kernel's parent process first, then the newest."""
    parent = environment.get("JPY_PARENT_PID", "")
    servers = sorted(_noted(folders), key=lambda server: str(server.pid) != parent)
    prefix, token = environment.get("JUPYTERHUB_SERVICE_PREFIX"), environment.get("JUPYTERHUB_API_TOKEN")
    if prefix and token:
        # A single-user server has no token of its own in its note; it takes the one it has from the hub.
        servers = [
            replace(server, token=token) if server.base_url == prefix and not server.token else server
            for server in servers
        ]
        hub = _hub_server(prefix, token, environment)
        if hub is not None and not any(server.base_url == prefix for server in servers):
            servers.insert(0, hub)
    return servers


def _noted(folders: Sequence[Path]) -> Iterator[Server]:
    notes = {note.resolve(): note for folder in folders for note in folder.glob("jpserver-*.json")}
    for note in sorted(notes.values(), key=_age, reverse=True):
        try:
            info = json.loads(note.read_text(encoding="utf-8"))
            server = _from_note(info)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written or taken away just now
        if _alive(server.pid):
            yield server


def _from_note(info: Mapping[str, Any]) -> Server:
    base_url = "/" + str(info.get("base_url", "/")).strip("/")
    base_url = base_url if base_url.endswith("/") else base_url + "/"
    token, pid = str(info.get("token") or ""), int(info["pid"])
    if info.get("sock"):
        return Server(f"http://localhost{base_url}", token, str(info["sock"]), pid)
    scheme = "https" if info.get("secure") else "http"
    return Server(
        f"{scheme}://{_reachable(str(info['hostname']))}:{int(info['port'])}{base_url}", token, "", pid
    )


def _hub_server(prefix: str, token: str, environment: Mapping[str, str]) -> Server | None:
    parts = urlsplit(environment.get("JUPYTERHUB_SERVICE_URL", ""))
    if not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return Server(f"{parts.scheme}://{_reachable(parts.hostname)}{port}{prefix.rstrip('/')}/", token)


def _reachable(host: str) -> str:
    """Return the address by which a server bound to ``host`` is reached from here."""
    host = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _age(note: Path) -> float:
    try:
        return note.stat().st_mtime
    except OSError:
        return 0.0


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would be Ctrl-C there; the request tells
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _leads_to(url: str, server: str) -> bool:
    """Say whether an address is one of this server."""
    a, b = urlsplit(url), urlsplit(server)
    loopback = ("127.0.0.1", "localhost", "::1")
    hosts_match = a.hostname == b.hostname or (a.hostname in loopback and b.hostname in loopback)
    return hosts_match and a.port == b.port and a.path.startswith(b.path)


def _owns(server: Server, kernel_id: str) -> bool:
    status, body = server.call("GET", f"api/kernels/{kernel_id}", deadline=FIND_DEADLINE)
    return status == 200 and isinstance(body, dict) and body.get("id") == kernel_id


def _greet(server: Server) -> None:
    status, _ = server.call("GET", "api/status", deadline=FIND_DEADLINE)
    if status in (401, 403):
        raise ServerRefused(
            f"The Jupyter server at {server.url} runs, but does not accept the token in its note.",
            hint="It may be protected by a password only: start it with a token (JUPYTER_TOKEN), "
            f"or give one: %clearml_session server {server.url}",
        )
    if status != 200:
        raise ServerUnreachable(f"The Jupyter server at {server.url} answers with HTTP {status}.")


def _this(kernel_id: str | None, environment: Mapping[str, str]) -> str:
    return "this kernel" if kernel_id is not None or "JPY_PARENT_PID" in environment else "this IPython"


def _missing(kernel_id: str | None, environment: Mapping[str, str]) -> str:
    if any(name in environment for name in ("VSCODE_PID", "VSCODE_CWD", "VSCODE_IPC_HOOK", "VSCODE_CLI")):
        who = "VS Code started this kernel by itself, without a Jupyter server"
    elif kernel_id is None and "JPY_PARENT_PID" not in environment:
        who = "This is IPython without a Jupyter server"
    else:
        who = "No Jupyter server owns this kernel"
    return f"{who}, and no Jupyter server of yours is running on this machine."
