"""Kernelspecs of attached sessions, in a directory of this server under Jupyter's runtime directory.

Never in the user's kernels folder: what a crashed server leaves is removed by the next one that starts.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models import Session

PROVISIONER = "clearml-session"
GATE = "gate"
SOCKETS_FILE = "sockets"
SOCKET_PATH_LIMIT = 80
CURRENT = "current"
"""A link to the directory of the server that started last: what JUPYTER_PATH of other programs can name."""
PNG = b"\x89PNG\r\n\x1a\n"
EXPLANATION = (
    "This kernel runs on the machine of a ClearML session. It needs the clearml-session provisioner: a program "
    "that starts kernels by jupyter_client 7 or newer, with jupyterlab-clearml-session installed."
)
PLACEHOLDER = [sys.executable, "-c", f"raise SystemExit({EXPLANATION!r})"]
"""What a program runs that ignores provisioners. Never the command of the remote machine: it is for over there."""


class ServerDirectory:
    """This server's directory: ``kernels/`` with the kernelspecs, and the socket of the gate.

    Parameters
    ----------
    root:
        Holds the directories of all of this user's servers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / str(os.getpid())
        self.kernels = self.path / "kernels"
        self.sockets = self.path / "s"
        """For the sockets of kernels and of the gate; elsewhere where this path would be too long for one."""
        self._lock: int | None = None

    def open(self) -> None:
        """Remove what dead servers left and make ours. Raises OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        guard = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Two servers that start together must not take each other's fresh directory for a dead one.
            fcntl.flock(guard, fcntl.LOCK_EX)
            for other in self._others():
                if not _alive(other):
                    _remove(other)
            self.kernels.mkdir(mode=0o700, parents=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(guard)
        if len(str(self.sockets)) <= SOCKET_PATH_LIMIT:
            self.sockets.mkdir(mode=0o700)
        else:
            self.sockets = short_directory()
        (self.path / SOCKETS_FILE).write_text(str(self.sockets))
        self._point_to(self.path)

    def close(self) -> None:
        """Remove our directory; another server that lives, if any, becomes the current one."""
        if self._lock is None:
            return
        _remove(self.path)
        os.close(self._lock)
        self._lock = None
        current = self.root / CURRENT
        if current.is_symlink() and not current.exists():
            current.unlink()
            for other in self._others():
                if _alive(other):
                    self._point_to(other)

    def _others(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.name.isdigit() and path.is_dir()]

    def write(self, session: Session, specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Write the kernelspecs of a session, `distinct` ones; return their local names."""
        self.remove(session.id)
        names = []
        for remote_name, spec in sorted(specs.items()):
            name = local_name(session.id, remote_name)
            folder = self.kernels / name
            folder.mkdir(mode=0o700)
            for file_name, content in spec.get("resources", {}).items():
                data = base64.b64decode(content)
                if _is_logo(file_name, data, session):
                    (folder / file_name).write_bytes(data)
            body = kernel_json(session, remote_name, spec, self.path)
            (folder / "kernel.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
            names.append(name)
        return names

    def remove(self, session_id: str) -> None:
        """Remove the kernelspecs of a session."""
        for folder in self.kernels.glob(_prefix(session_id) + "*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _point_to(self, path: Path) -> None:
        link = self.root / f".{CURRENT}-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(self.root / CURRENT)


def short_directory() -> Path:
    """Make a directory of mode 0700 whose name leaves room for the name of a socket."""
    places = (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp")  # noqa: S108 -- made 0700
    usable = [
        place
        for place in places
        if place and len(place) < SOCKET_PATH_LIMIT - 12 and os.access(place, os.W_OK)
    ]
    return Path(tempfile.mkdtemp(prefix="cs-", dir=(usable or places)[0]))


def gates(server_directory: Path) -> list[Path]:
    """Return the gates to try for a kernelspec of a server: its own, then those of the user's other servers."""
    found = []
    others = sorted(server_directory.parent.glob(f"*/{SOCKETS_FILE}"))
    for note in [server_directory / SOCKETS_FILE, *others]:
        with contextlib.suppress(OSError):
            gate = Path(note.read_text()) / GATE
            if gate not in found:
                found.append(gate)
    return found


def local_name(session_id: str, remote_name: str) -> str:
    """Return the local name of a remote kernelspec (docs/rest-api.md)."""
    return _prefix(session_id) + re.sub(r"[^a-zA-Z0-9._-]", "-", remote_name)


def distinct(session_id: str, specs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kernelspecs without those whose local name, upper and lower case apart, another one has."""
    by_local_name: dict[str, str] = {}
    for remote_name in sorted(specs):
        by_local_name.setdefault(local_name(session_id, remote_name).lower(), remote_name)
    return {remote_name: specs[remote_name] for remote_name in by_local_name.values()}


def kernel_json(
    session: Session, remote_name: str, spec: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """Return the content of the local ``kernel.json``. It holds no secret."""
    metadata = dict(spec.get("metadata") or {})
    metadata["kernel_provisioner"] = {
        "provisioner_name": PROVISIONER,
        "config": {
            "session_id": session.id,
            "remote_kernel": remote_name,
            "server_directory": str(directory),
        },
    }
    metadata["clearml_session"] = {"session_id": session.id, "remote_kernel": remote_name}
    return {
        "argv": PLACEHOLDER,
        "display_name": f"{spec['display_name']} · {session.name}",
        "language": spec["language"],
        "interrupt_mode": spec["interrupt_mode"],
        "metadata": metadata,
    }


def _is_logo(file_name: str, data: bytes, session: Session) -> bool:
    """Jupyter serves these files in its own origin: from someone else's machine none that could hold a script."""
    if file_name == "logo-svg.svg":
        return session.mine
    return file_name in ("logo-32x32.png", "logo-64x64.png") and data.startswith(PNG)


def _prefix(session_id: str) -> str:
    return f"clearml-{session_id[:8]}-"


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        sockets = Path((directory / SOCKETS_FILE).read_text())
        if sockets.parent != directory:
            shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _alive(directory: Path) -> bool:
    """Whether the server of a directory lives: it holds the lock for as long as it does."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
