"""The kernels of this notebook on its sessions: one kept for each session and kind of kernel.

Which kernel it is, the local server knows: it is the kernel of a Jupyter *session* whose path is made of this
kernel's id and the ClearML session's. So it survives a restart of this kernel, is seen among the running kernels
in JupyterLab, and opens there as a console.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ..errors import (
    ClearMLSessionError,
    KernelFailed,
    NotAttached,
    TunnelDown,
    UnknownKernel,
    UnknownSession,
)
from .choose import check_attached
from .client import Client
from .displays import named, tag
from .link import KernelLink
from .live import Live
from .remote_kernel import Hooks, RemoteKernel

START_DEADLINE = 120.0
END_DEADLINE = 3.0
SPECS_DEADLINE = 20.0
SPECS_LOOK = 0.2

Data = Mapping[str, Any]


@dataclass(frozen=True)
class _Kept:
    kernel: RemoteKernel
    jupyter_session: str


class NotebookKernels:
    """Starts, keeps and ends the remote kernels of this notebook."""

    def __init__(self, client: Client, shell: Any, owner: str, folders: Sequence[Path]) -> None:
        self._client = client
        self._shell = shell
        # An IPython that no server started has no id: its kernels are kept as long as it lives.
        self._owner = owner or uuid.uuid4().hex
        self._folders = folders
        self._kept: dict[str, _Kept] = {}
        self._live: Live | None = None
        atexit.register(self.end)

    def get(self, session: Data, name: str | None, *, new: bool) -> RemoteKernel:
        """Return the kernel of this notebook on ``session``; starts one where there is none.

        ``name`` is a kernel's name over there, its local name or its display name. Raises NotAttached,
        UnknownKernel, KernelFailed.
        """
        if threading.current_thread() is not threading.main_thread():
            raise KernelFailed(
                "Remote cells run from the notebook's own shell, not from a subshell or a thread."
            )
        spec = self._choose_spec(session, name)
        path = f".clearml-session/{self._owner}/{spec}"
        self._live = Live(self._shell)
        if new:
            self._end_one(path)
        kept = self._kept.get(path)
        if kept is not None and self._is_there(kept):
            return kept.kernel
        # A kernel outlives a detach, and is the server's again after the attach; only its sockets are new ones.
        survivor = kept.kernel.id if kept is not None and self._survived(session, kept.kernel.id) else None
        model = self._start(path, spec, session, survivor)
        self._drop(path)
        kernel = self._connect(str(model["kernel"]["id"]), session)
        self._kept[path] = _Kept(kernel, str(model["id"]))
        return kernel

    def end(self) -> None:
        """End all of them, except where this kernel is only restarted: then they are found again."""
        for path in list(self._kept):
            if self._is_restart():
                self._drop(path)
                continue
            try:
                self._end_one(path, END_DEADLINE)
            except ClearMLSessionError:
                continue  # the server is gone or going; its kernels are its own affair now

    # -- starting ----------------------------------------------------------------------------------------------

    def _choose_spec(self, session: Data, name: str | None) -> str:
        check_attached(session)
        if name is None and session.get("kernelspecs"):
            specs = [{"name": spec} for spec in session["kernelspecs"]]
        else:
            specs = self._specs(session)
        found = [spec for spec in specs if name is None or name in _names(spec)]
        if not found:
            names = ", ".join(_remote_name(spec) for spec in specs) or "none"
            raise UnknownKernel(
                f"{named(session)} has no kernel {name!r}."
                if name
                else f"{named(session)} offers no kernel.",
                hint=f"It has: {names}.",
            )
        # Its own Python first, then whatever it has.
        return str(min(found, key=lambda spec: _remote_name(spec) != "python3")["name"])

    def _specs(self, session: Data) -> list[dict[str, Any]]:
        """Return the kernelspecs of a session; they appear shortly after it is attached."""
        deadline = time.monotonic() + SPECS_DEADLINE
        while True:
            specs = self._client.kernelspecs(session["id"])
            if specs or session.get("phase") != "ready" or time.monotonic() > deadline:
                return specs
            time.sleep(SPECS_LOOK)

    def _is_there(self, kept: _Kept) -> bool:
        model = self._client.jupyter("GET", f"api/sessions/{quote(kept.jupyter_session)}")
        return isinstance(model, dict) and model.get("kernel", {}).get("id") == kept.kernel.id

    def _survived(self, session: Data, kernel_id: str) -> bool:
        """Say whether a kernel that the server had lost is there again; waits while it is being taken over."""
        deadline = time.monotonic() + SPECS_DEADLINE
        while time.monotonic() < deadline:
            if self._state(kernel_id):
                return True
            try:
                there = self._client.kernels(session["id"])
            except (NotAttached, TunnelDown):
                there = None  # the session is ready a moment before its kernels can be asked for
            if there is not None and not any(
                each["id"] == kernel_id and each.get("state") != "dead" for each in there
            ):
                return False
            time.sleep(SPECS_LOOK)
        return False

    def _start(self, path: str, spec: str, session: Data, kernel_id: str | None) -> dict[str, Any]:
        """Return the Jupyter session at ``path``: the one that is there, or one with a kernel for it."""
        notebook = PurePosixPath(os.environ.get("JPY_SESSION_NAME", "")).name
        body = {
            "path": path,
            "name": f"{session['name']} · {notebook}" if notebook else str(session["name"]),
            "type": "console",
            "kernel": {"name": spec} if kernel_id is None else {"name": spec, "id": kernel_id},
        }
        try:
            model = self._client.jupyter("POST", "api/sessions", body, deadline=START_DEADLINE)
        except ClearMLSessionError as error:
            raise KernelFailed(f"The kernel could not be started: {error.message}", hint=error.hint) from None
        if not isinstance(model, dict) or not isinstance(model.get("kernel"), dict):
            raise KernelFailed("The server did not say which kernel it started.")
        return model

    def _connect(self, kernel_id: str, session: Data) -> RemoteKernel:
        file = f"kernel-{kernel_id}.json"
        found = next((folder / file for folder in self._folders if (folder / file).exists()), None)
        if found is None:
            raise KernelFailed(
                "The kernel runs, but its connection file is not on this machine.",
                hint="'run' needs a Jupyter server on the machine of this kernel, as the same user.",
            )
        hooks = Hooks(
            interrupt=lambda: self._interrupt(kernel_id),
            state=lambda: self._state(kernel_id),
            trouble=lambda: self._trouble(str(session["id"])),
            notice=self._notify,
        )
        link = KernelLink(found)
        try:
            return RemoteKernel(link, kernel_id, str(session["name"]), self._shell, hooks)
        except BaseException:
            link.close()
            raise

    # -- while it runs -----------------------------------------------------------------------------------------

    def _interrupt(self, kernel_id: str) -> None:
        self._client.jupyter("POST", f"api/kernels/{quote(kernel_id)}/interrupt")

    def _notify(self, text: str) -> None:
        if self._live is not None:
            self._live.show(text, tag("div", text))
            self._live.close()

    def _state(self, kernel_id: str) -> str:
        model = self._client.jupyter("GET", f"api/kernels/{quote(kernel_id)}")
        return "" if model is None else str(model.get("execution_state") or "unknown")

    def _trouble(self, session_id: str) -> str:
        try:
            session = self._client.session(session_id)
        except UnknownSession as error:
            raise KernelFailed(f"The session is gone: {error.message}") from None
        if session["phase"] in ("ended", "failed"):
            raise KernelFailed(f"The session is {session['phase']}: {session.get('phase_text', '')}")
        return "" if session["phase"] == "ready" else str(session.get("phase_text") or session["phase"])

    # -- ending ------------------------------------------------------------------------------------------------

    def _end_one(self, path: str, deadline: float = START_DEADLINE) -> None:
        kept = self._drop(path)
        session_id = kept.jupyter_session if kept is not None else self._find_session(path)
        if session_id is not None:
            self._client.jupyter("DELETE", f"api/sessions/{quote(session_id)}", deadline=deadline)

    def _find_session(self, path: str) -> str | None:
        models = self._client.jupyter("GET", "api/sessions") or []
        return next((str(model["id"]) for model in models if model.get("path") == path), None)

    def _drop(self, path: str) -> _Kept | None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            kept.kernel.close()
        return kept

    def _is_restart(self) -> bool:
        message = getattr(getattr(self._shell, "kernel", None), "_shutdown_message", None)
        return bool(message and message["content"].get("restart"))


def _names(spec: Data) -> tuple[str, ...]:
    return (_remote_name(spec), str(spec["name"]), str(spec.get("display_name", "")))


def _remote_name(spec: Data) -> str:
    """Return a kernel's name over there: ``clearml-<first 8 of the session's id>-<name>`` is its name here."""
    parts = str(spec["name"]).split("-", 2)
    return parts[2] if len(parts) == 3 and parts[0] == "clearml" else str(spec["name"])
