"""The kernels of attached sessions in this server: kernelspecs that come and go, and what lives over there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from ..deadlines import within
from ..errors import (
    ClearMLSessionError,
    Conflict,
    HelperFailed,
    KernelFailed,
    NotAttached,
    RemoteDeadline,
    TunnelDown,
    UnknownKernel,
)
from ..models import Session
from .attach import ByteProcess, StartProcess, as_socket, open_channel
from .browser import noting
from .channel import SessionChannel
from .gate import Gate
from .hub import relative_folders
from .shown import KERNEL_ID, ShownFolder, ShownKernel
from .specs import GATE, ServerDirectory, distinct, local_name

REQUEST_TIMEOUT = 20.0
TUNNEL_WAIT = 30.0
DIAL_TIMEOUT = 120.0


class ProcessStarter(Protocol):
    """What is needed of a tunnel."""

    async def start_process(self, command: str) -> ByteProcess: ...


class Sessions(Protocol):
    """What is needed of the session manager."""

    async def tunnel(self, session_id: str, wait: float = 0.0) -> Any: ...
    def set_kernelspecs(self, session_id: str, names: Iterable[str]) -> None: ...
    def set_kernels_error(self, session_id: str, error: ClearMLSessionError | None) -> None: ...
    def add_hook(
        self,
        on_ready: Callable[[Session, Any], Awaitable[None]] | None = None,
        on_gone: Callable[[str], Awaitable[None]] | None = None,
        on_reconnect: Callable[[str], None] | None = None,
    ) -> None: ...


class SessionKernelManager:
    """Holds the channel of each attached session, writes its kernelspecs, and answers for its kernels.

    It is the `Hub` of this server's provisioners. Lives on the server's event loop.

    Parameters
    ----------
    sessions:
        Tells when a session is ready and when it is gone.
    kernel_spec_manager:
        Jupyter's; our directory is added to its ``kernel_dirs``.
    runtime_dir:
        Jupyter's runtime directory.
    """

    hold_for = 2
    """The server itself subscribes to each kernel; the second one is a notebook or console."""

    def __init__(
        self,
        sessions: Sessions,
        kernel_spec_manager: Any,
        *,
        log: logging.Logger | logging.LoggerAdapter[Any],
        runtime_dir: Path | None = None,
    ) -> None:
        self.closing = False
        self._sessions = sessions
        self._kernel_spec_manager = kernel_spec_manager
        self._log = log
        root = (runtime_dir or Path(jupyter_runtime_dir())) / "clearml-session"
        self._directory = ServerDirectory(root)
        self._shown = ShownFolder(root / "shown")
        self._gate: Gate | None = None
        self._channels: dict[str, SessionChannel] = {}
        self._specs: dict[str, dict[str, dict[str, Any]]] = {}
        self._names: dict[str, Session] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        sessions.add_hook(self._on_ready, self._on_gone, self._on_reconnect)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make our directory known to Jupyter and open the gate for other processes."""
        self._loop = asyncio.get_running_loop()
        try:
            self._directory.open()
            self._gate = Gate(self._directory.sockets / GATE, self._open_channel)
            self._gate.start()
            self._shown.tidy()
        except OSError as error:
            self._log.error("clearml-session: remote kernels are not available: %s", error)
            return
        self._kernel_spec_manager.kernel_dirs = [
            *self._kernel_spec_manager.kernel_dirs,
            str(self._directory.kernels),
        ]
        settings = self._server.web_app.settings
        websocket = settings.get("kernel_websocket_connection_class")
        if websocket is not None and issubclass(websocket, ZMQChannelsWebsocketConnection):
            settings["kernel_websocket_connection_class"] = noting(websocket)

    async def close(self) -> None:
        """Let go of everything. The kernels go on living, to be adopted by the next server."""
        self.closing = True
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(asyncio.to_thread(channel.close) for channel in channels))
        if self._gate is not None:
            await self._gate.close()
        await asyncio.to_thread(self._directory.close)

    # -- REST ----------------------------------------------------------------------------------------------

    async def kernelspecs(self, session_id: str) -> list[dict[str, Any]]:
        """Return ``[{"name", "display_name", "language"}]`` with local names. Raises NotAttached."""
        await self.channel(session_id)
        return [
            {
                "name": local_name(session_id, name),
                "display_name": f"{spec['display_name']} · {self._names[session_id].name}",
                "language": spec["language"],
            }
            for name, spec in sorted(self._specs.get(session_id, {}).items())
        ]

    async def list_kernels(self, session_id: str) -> list[dict[str, Any]]:
        """Return the kernels that live there: ``id, name, state, started, adopted`` and more.

        ``adopted`` says whether it is one of this server's kernels. Raises NotAttached, TunnelDown.
        """
        listed: list[dict[str, Any]] = await self._ask(session_id, "kernels")
        # They become names of files here, and the remote machine may say anything.
        kernels = [kernel for kernel in listed if re.fullmatch(KERNEL_ID, str(kernel["id"]))]
        own = self._kernels_of(session_id)
        return [{**kernel, "adopted": kernel["id"] in own} for kernel in kernels]

    async def kill_kernel(self, session_id: str, kernel_id: str) -> None:
        """Shut a kernel down, adopted here or not. Raises UnknownKernel, NotAttached, TunnelDown."""
        if kernel_id in self._kernels_of(session_id):
            await self._kernel_manager.shutdown_kernel(kernel_id)
            return
        answer = await self._ask(session_id, "forget", kernel_id=kernel_id)
        if not answer["known"]:
            raise UnknownKernel(f"No kernel {kernel_id} lives on the session.")

    async def metrics(self, session_id: str) -> dict[str, Any]:
        """Return cpu_percent, memory, disk, gpus, idle_s. Raises NotAttached, TunnelDown."""
        metrics: dict[str, Any] = await self._ask(session_id, "metrics")
        return metrics

    async def adopt(self, session_id: str, kernel_id: str) -> str:
        """Make a kernel that lives there one of this server's kernels, under the same id; return the id.

        A kernel of a notebook gets its Jupyter session again, so that the notebook finds it when it is opened;
        where the session is the user's own. Raises UnknownKernel, Conflict, KernelFailed, NotAttached, TunnelDown.
        """
        if self._kernel_manager is None:
            raise KernelFailed("This server has no kernel manager.")
        if kernel_id in self._kernels_of(session_id):
            return kernel_id
        for kernel in await self.list_kernels(session_id):
            if kernel["id"] == kernel_id and kernel["state"] != "dead":
                await self._adopt(session_id, kernel)
                return kernel_id
        raise UnknownKernel(f"No kernel {kernel_id} lives on the session.")

    # -- Hub -----------------------------------------------------------------------------------------------

    async def channel(self, session_id: str) -> SessionChannel:
        channel = self._channels.get(session_id)
        if channel is None or channel.closed:
            raise NotAttached("The session is not attached.")
        return channel

    @property
    def sockets(self) -> Path:
        return self._directory.sockets

    def meta(self, cwd: str | None, env: Mapping[str, str]) -> dict[str, Any]:
        return {"origin": self._origin, "notebook": env.get("JPY_SESSION_NAME", ""), "cwd": cwd or ""}

    def folders(self, cwd: str | None) -> list[str]:
        return relative_folders(cwd, self._root_dir)

    def shown(self, kernel_id: str) -> ShownKernel | None:
        return self._shown.kernel(kernel_id)

    # -- sessions come and go ------------------------------------------------------------------------------

    async def _on_ready(self, session: Session, tunnel: ProcessStarter) -> None:
        if self.closing or self._loop is None:
            return
        self._names[session.id] = session
        channel = self._channels.get(session.id)
        if channel is None or channel.closed:
            # Otherwise this is another try: the channel is there, perhaps with kernels that were adopted meanwhile.
            channel = self._channels[session.id] = SessionChannel(
                lambda client_id: self._dial(session.id, client_id), on_taken=self._on_taken, log=self._log
            )
            channel.start()
        minutes = float(session.spec.get("idle_timeout_min") or 0)
        await self._ask(session.id, "idle_limit", timeout=DIAL_TIMEOUT, minutes=minutes)
        listed = await self._ask(session.id, "kernelspecs", timeout=DIAL_TIMEOUT)
        if self._channels.get(session.id) is not channel:
            return  # detached meanwhile
        specs = self._specs[session.id] = distinct(session.id, listed)
        for name in listed.keys() - specs.keys():
            self._log.warning("clearml-session: the kernel %r is left out: its name is like another's", name)
        names = await asyncio.to_thread(self._directory.write, session, specs)
        self._sessions.set_kernelspecs(session.id, names)
        # Someone else's machine could say of any kernel that it was ours, and of which notebook.
        if session.mine:
            await self._adopt_own(session.id)

    async def _on_gone(self, session_id: str) -> None:
        channel = self._channels.pop(session_id, None)
        self._specs.pop(session_id, None)
        if channel is None:
            return
        for kernel_id in self._kernels_of(session_id):
            self._drop(kernel_id, "The session was detached or has ended.")
        await asyncio.to_thread(self._directory.remove, session_id)
        await asyncio.to_thread(channel.close)

    def _on_reconnect(self, session_id: str) -> None:
        """What kept the helper from running may be mended now: it is not waited for any longer."""
        channel = self._channels.get(session_id)
        if channel is not None:
            channel.redial()

    async def _adopt_own(self, session_id: str) -> None:
        """Take over again what this server had before it was restarted, unless somebody else uses it now."""
        for kernel in await self.list_kernels(session_id):
            own = kernel["meta"].get("origin") == self._origin
            if own and not kernel["adopted"] and not kernel["connected"] and kernel["state"] != "dead":
                try:
                    await self._adopt(session_id, kernel)
                except (ClearMLSessionError, RuntimeError) as error:
                    self._log.warning("clearml-session: kernel %s was not adopted: %s", kernel["id"], error)

    async def _adopt(self, session_id: str, kernel: Mapping[str, Any]) -> None:
        manager = self._kernel_manager
        if kernel["id"] in manager:
            raise Conflict(f"Another kernel with the id {kernel['id']} is here already.")
        name = local_name(session_id, kernel["name"])
        notebook = str(kernel["meta"].get("notebook") or "") if self._names[session_id].mine else ""
        env = {"JPY_SESSION_NAME": notebook} if notebook else {}
        await manager.start_kernel(kernel_id=kernel["id"], kernel_name=name, env=env)
        manager.get_kernel(kernel["id"]).execution_state = kernel["state"]
        await self._restore_session(kernel["id"], name, notebook)

    async def _restore_session(self, kernel_id: str, kernel_name: str, notebook: str) -> None:
        sessions = getattr(self._server, "session_manager", None)
        folders = relative_folders(notebook or None, self._root_dir)
        if sessions is None or not folders or not await asyncio.to_thread(Path(notebook).is_file):
            return
        path = Path(folders[0]).as_posix()
        if not await sessions.session_exists(path=path):
            await sessions.create_session(
                path=path, name=Path(path).name, type="notebook", kernel_name=kernel_name, kernel_id=kernel_id
            )

    def _on_taken(self, kernel_id: str) -> None:
        """Another client took a kernel over: it is not ours any more. Called in the channel's thread."""
        self._log.info("clearml-session: kernel %s was taken over by another client", kernel_id)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drop, kernel_id, "Another client took the kernel over.")

    def _kernels_of(self, session_id: str) -> list[str]:
        manager = self._kernel_manager
        if manager is None:
            return []
        return [
            kernel_id
            for kernel_id in manager.list_kernel_ids()
            if getattr(manager.get_kernel(kernel_id).provisioner, "session_id", None) == session_id
        ]

    def _drop(self, kernel_id: str, reason: str) -> None:
        """Take a kernel out of this server without ending it; notebooks that show it are told it is dead here."""
        manager = self._kernel_manager
        if manager is None or kernel_id not in manager:
            return
        kernel = manager.get_kernel(kernel_id)
        kernel.reason = reason
        kernel.stop_restarter()
        restarter = kernel._restarter
        if restarter is not None:
            restarter._fire_callbacks("dead")
        kernel.cleanup_connection_file()
        if kernel_id in manager:
            manager.remove_kernel(kernel_id)

    # -- channels ------------------------------------------------------------------------------------------

    def _dial(self, session_id: str, client_id: str) -> socket.socket:
        """Called in a thread of the channel."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(self._connect(session_id, client_id), self._loop)
        try:
            return future.result(DIAL_TIMEOUT)
        except concurrent.futures.TimeoutError as error:  # before Python 3.11 not the built-in one
            future.cancel()
            raise RemoteDeadline("The kernel helper did not answer in time.") from error

    async def _connect(self, session_id: str, client_id: str) -> socket.socket:
        try:
            process, first = await self._open_channel(session_id, client_id)
        except HelperFailed as error:
            self._sessions.set_kernels_error(session_id, error)
            raise
        # What fails otherwise, as without a tunnel, says nothing of the helper.
        self._sessions.set_kernels_error(session_id, None)
        return as_socket(process, first)

    async def _open_channel(self, session_id: str, client_id: str) -> tuple[ByteProcess, bytes]:
        tunnel = await self._sessions.tunnel(session_id, TUNNEL_WAIT)
        start: StartProcess = tunnel.start_process
        return await open_channel(start, session_id, client_id)

    async def _ask(
        self, session_id: str, method: str, *, timeout: float = REQUEST_TIMEOUT, **params: Any
    ) -> Any:
        channel = await self.channel(session_id)
        future = channel.request(method, **params)
        try:
            return await within(asyncio.wrap_future(future), timeout)
        except asyncio.TimeoutError as error:
            if channel.up.is_set():
                raise RemoteDeadline("The helper on the remote machine did not answer in time.") from error
            message = f"The link to the session's kernels is down: {channel.cause}"
            raise TunnelDown(message, cause=channel.cause) from error

    # -- the server ----------------------------------------------------------------------------------------

    @property
    def _server(self) -> Any:
        return getattr(self._kernel_spec_manager, "parent", None)

    @property
    def _kernel_manager(self) -> Any:
        return getattr(self._server, "kernel_manager", None)

    @property
    def _root_dir(self) -> Path:
        return Path(getattr(self._server, "root_dir", None) or Path.home())

    @property
    def _origin(self) -> str:
        """What tells this server's kernels from those of another machine or folder."""
        return f"{socket.gethostname()}:{self._root_dir}"
