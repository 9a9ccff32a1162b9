"""The kernel provisioner "clearml-session": a kernel on a session's machine in place of a local process."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Float, Unicode

from ..deadlines import within
from ..errors import KernelFailed, TunnelDown
from .channel import SessionChannel
from .hub import Hub, OutsideHub, outside_hub
from .port import HOLD_LIMIT, KernelPort
from .shown import ShownKernel, Watcher

POLL_INTERVAL = 0.05
SIGNAL_TIMEOUT = 5.0


class ClearMLSessionProvisioner(KernelProvisionerBase):
    """Starts, watches and ends a kernel through the helper of a session.

    While the link is down the kernel counts as alive; signals and requests wait and take effect on return.
    """

    session_id = Unicode(help="The session (ClearML Task id) whose machine runs the kernel.").tag(config=True)
    remote_kernel = Unicode(help="Name of the kernelspec over there.").tag(config=True)
    server_directory = Unicode(
        help="Directory of the server that wrote the kernelspec; other processes reach the session through it."
    ).tag(config=True)
    launch_timeout = Float(
        60.0, help="Seconds for a kernel to be started, waiting for the link included."
    ).tag(config=True)

    _hub: Hub | None = None
    _channel: SessionChannel | None = None
    _stream: int | None = None
    _launched = False
    _started_before = False
    _told = False
    _pid: int | None = None
    _shown: ShownKernel | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._again: dict[int, list[str]] = {}
        self._watchers: dict[str, Watcher] = {}
        self._awaited = 0

    # -- what KernelManager asks for -----------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        return self._launched and not self._left_alone

    async def poll(self) -> int | None:
        port = self._port
        if not self.has_process or port is None:
            return 0
        status = port.exit_status
        if status is not None and not self._told:
            self._told = True
            self._tell(port, status)
        return status

    async def wait(self) -> int | None:
        while (status := await self.poll()) is None:  # noqa: ASYNC110 -- set by the channel's thread
            await asyncio.sleep(POLL_INTERVAL)
        self._launched = False
        return status

    async def send_signal(self, signum: int) -> None:
        if self._channel is None or self._stream is None or await self.poll() is not None:
            return
        future = self._channel.signal(self._stream, self.kernel_id, signum)
        if self._channel.up.is_set():
            try:
                await _result(future, SIGNAL_TIMEOUT)
            except TunnelDown:
                self.log.info("The signal to the remote kernel takes effect when the link is back.")

    async def kill(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGTERM)

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Keep of the environment only what was asked for: the rest of it describes this machine."""
        given = dict(kwargs.pop("env", None) or {})
        env = {name: value for name, value in given.items() if os.environ.get(name) != value}
        return {"cmd": self.kernel_spec.argv, "env": env, "cwd": kwargs.get("cwd"), "given_env": given}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel, or take over the one of this id that lives over there.

        Raises KernelFailed, NotAttached or TunnelDown.
        """
        try:
            return await self._launch(**kwargs)
        except BaseException:
            self._give_up()
            raise

    async def _launch(self, **kwargs: Any) -> KernelConnectionInfo:
        hub = self._hub = self._hub or self._find_hub()
        channel = await hub.channel(self.session_id)
        if channel is not self._channel:
            self._channel, self._stream = channel, None
        cwd = None if kwargs.get("cwd") is None else str(kwargs["cwd"])
        session = getattr(self.parent, "session", None)
        key: bytes = session.key if session is not None else os.urandom(16).hex().encode()
        scheme: str = session.signature_scheme if session is not None else "hmac-sha256"
        if self._stream is None:
            base = hub.sockets / self.kernel_id[:8]
            self._stream = await _result(channel.open_port(base, key, scheme), self.launch_timeout)
        adopt = not self._started_before
        if adopt and self.parent is not None and self.parent.connection_file:
            # A killed server may have left one for this id. If it happened to be the same, KernelManager would
            # take it for its own and not load it.
            await asyncio.to_thread(Path(self.parent.connection_file).unlink, missing_ok=True)
        self._shown = hub.shown(self.kernel_id)
        notes = await asyncio.to_thread(self._shown.read) if adopt and self._shown is not None else []
        answer = channel.start_kernel(
            self._stream,
            # The output waits until those who watched it before are back, and for the server's own subscription.
            1 + len(notes) if notes else hub.hold_for,
            kernel_id=self.kernel_id,
            name=self.remote_kernel,
            key=key.decode(),
            signature_scheme=scheme,
            env=kwargs.get("env") or {},
            folders=hub.folders(cwd),
            meta={**hub.meta(cwd, kwargs.get("given_env") or {}), "local_name": self._local_name},
            adopt=adopt,
            after=[message for note in notes for message in note.values()],
        )
        try:
            kernel = await _result(answer, self.launch_timeout)
        except TunnelDown as error:
            raise KernelFailed(
                f"The remote kernel could not be started: {_trouble(channel)}.", cause=channel.cause
            ) from error
        self._pid = kernel["pid"]
        again = kernel.get("adopted", {}).get("again", {})
        self._again = {int(channel): messages for channel, messages in again.items()}
        self._awaited = len(notes)
        self._prepare_server(busy="adopted" in kernel and kernel["state"] == "busy")
        port = self._port
        assert port is not None
        self.connection_info = cast("KernelConnectionInfo", dict(port.info))
        self._launched = self._started_before = True
        self._told = False
        return self.connection_info

    def _give_up(self) -> None:
        """A start has failed, after which jupyter_client cleans nothing up."""
        if self._channel is None:
            return
        if self._started_before:
            # A restart: the kernel was to end. One that would have been adopted goes on living.
            self._channel.request("forget", kernel_id=self.kernel_id)
        if self._stream is not None:
            self._channel.close_port(self._stream)
            self._stream = None

    async def cleanup(self, restart: bool = False) -> None:
        if restart or self._channel is None or self._stream is None or self._left_alone:
            return
        self._launched = self._started_before = False
        if self._shown is not None:
            await asyncio.to_thread(self._shown.remove)
        self._channel.request("forget", kernel_id=self.kernel_id)
        await _result(self._channel.close_port(self._stream), SIGNAL_TIMEOUT)
        self._stream = None
        if isinstance(self._hub, OutsideHub):
            await self._hub.leave(self.session_id, self._channel)

    async def get_provisioner_info(self) -> dict[str, Any]:
        info = await super().get_provisioner_info()
        info.update(
            session_id=self.session_id,
            remote_kernel=self.remote_kernel,
            server_directory=self.server_directory,
            pid=self._pid,
        )
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        self.session_id = provisioner_info["session_id"]
        self.remote_kernel = provisioner_info["remote_kernel"]
        self.server_directory = provisioner_info["server_directory"]

    # -- for the server's websockets -----------------------------------------------------------------------

    def watch(self, session: str) -> Watcher | None:
        """Return what takes notes about a websocket, known by its Jupyter session; None where nothing is noted."""
        if self._shown is None:
            return None
        try:
            note = self._shown.browser(session)
        except OSError as error:
            self.log.warning("clearml-session: what a browser is shown cannot be noted: %s", error)
            return None
        watcher = Watcher(note, self._again, lambda watcher: self._owed(session, watcher))
        self._watchers[session] = watcher
        if self._awaited and len(self._watchers) >= self._awaited:
            self._forget_absent()
        elif self._awaited and len(self._watchers) == 1:
            asyncio.get_running_loop().call_later(HOLD_LIMIT, self._forget_absent)
        return watcher

    def _forget_absent(self) -> None:
        """The output waits no longer for those who watched before: if they come, it will have gone."""
        if self._awaited and self._shown is not None and not self._left_alone:
            self._awaited = 0
            self._shown.keep(self._watchers)

    def _owed(self, session: str, watcher: Watcher) -> bool:
        """Whether a closed websocket's note is of use: its successor has it now, or this server is ending."""
        if self._watchers.get(session) is not watcher:
            return True
        del self._watchers[session]
        return self._left_alone

    # -- helpers -------------------------------------------------------------------------------------------

    @property
    def _port(self) -> KernelPort | None:
        return None if self._channel is None or self._stream is None else self._channel.port(self._stream)

    @property
    def _left_alone(self) -> bool:
        """True when the server ends: its kernels go on living, to be adopted by the next one."""
        return self._hub is not None and self._hub.closing

    @property
    def _local_name(self) -> str:
        return str(getattr(self.parent, "kernel_name", "") or "")

    def _find_hub(self) -> Hub:
        parent = self.parent
        while parent is not None:
            settings = getattr(getattr(parent, "web_app", None), "settings", {})
            if "clearml_session_kernels" in settings:
                hub: Hub = settings["clearml_session_kernels"]
                return hub
            parent = getattr(parent, "parent", None)
        return outside_hub(Path(self.server_directory))

    def _prepare_server(self, *, busy: bool) -> None:
        """Set on the server's kernel manager what Jupyter only sets later, and in other ways."""
        parent = self.parent
        if parent is not None and parent.has_trait("last_activity"):
            # Until it is set, the list of all kernels is a status 500.
            parent.last_activity = datetime.now(timezone.utc)
            if busy:
                # Each websocket would wait for the kernel's info until the cell has ended, for up to a minute.
                parent._kernel_info_future = Future()
                parent._kernel_info_future.set_result({})

    def _tell(self, port: KernelPort, status: int) -> None:
        lines = "\n".join(port.exit_tail)
        reason = f"The remote kernel ended with status {status}." + (f"\n{lines}" if lines else "")
        self.log.warning("Kernel %s: %s", self.kernel_id, reason)
        if self.parent is not None and self.parent.has_trait("reason"):
            self.parent.reason = reason


def _trouble(channel: SessionChannel) -> str:
    if channel.up.is_set():
        return "the helper on the remote machine did not answer in time"
    return f"the link to the session is down ({channel.cause})"


async def _result(future: Future[Any], timeout: float) -> Any:
    """Wait for an answer of the channel. Raises TunnelDown after ``timeout`` seconds, and what it raises."""
    try:
        return await within(asyncio.wrap_future(future), timeout)
    except asyncio.TimeoutError as error:
        raise TunnelDown("The helper on the remote machine did not answer in time.") from error
