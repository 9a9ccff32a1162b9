"""`jupyter clearml-session doctor`: every step from the configuration to the tunnel, and what to do about it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, entry_points, version

from .backend import configuration
from .backend.client import ClearMLClient
from .errors import (
    ClearMLSessionError,
    NotConfigured,
    SessionFailed,
    TunnelDown,
    UnknownQueue,
    UnknownSession,
    UnknownTask,
)
from .models import SshTarget
from .phases import services
from .record import ssh_target
from .ssh.probe import jupyter_status
from .ssh.tunnel import Tunnel

_CONNECT_DEADLINE = 20.0
_WHERE_IDS_ARE = "'%clearml_session list' lists the sessions with their ids."

Step = tuple[str, Callable[[], Awaitable[str]]]


def check(session_id: str | None) -> int:
    """Run the steps in order and print what each found; returns 0 where all are well, else 1.

    A step that fails ends the run: those after it need what it checks.
    """
    return asyncio.run(_check(session_id))


async def _check(session_id: str | None) -> int:
    client = ClearMLClient()
    doctor = _Doctor(client, session_id or "")
    steps: list[Step] = [
        ("installation", doctor.installation),
        ("configuration", doctor.configuration),
        ("ClearML server", doctor.server),
        ("queues", doctor.queues),
    ]
    if session_id:
        steps += [("session", doctor.session), ("tunnel", doctor.tunnel), ("remote Jupyter", doctor.jupyter)]
    try:
        for name, step in steps:
            try:
                print(f"  ok   {name}: {await step()}")
            except ClearMLSessionError as error:
                print(f" FAIL  {name}: {error.message}")
                if error.hint:
                    print(f"       {error.hint}")
                return 1
    finally:
        await doctor.close()
    print("All is well.")
    return 0


class _Doctor:
    def __init__(self, client: ClearMLClient, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._target: SshTarget | None = None
        self._jupyter: tuple[int, str] | None = None
        self._tunnel: Tunnel | None = None

    async def installation(self) -> str:
        provisioners = entry_points(group="jupyter_client.kernel_provisioners", name="clearml-session")
        if not provisioners:
            raise ClearMLSessionError(
                "The kernel provisioner is not registered", hint="Install the package again with pip."
            )
        found = []
        for package in ("clearml", "clearml-session", "asyncssh", "jupyter_server"):
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                raise ClearMLSessionError(
                    f"{package} is not installed", hint=f"pip install {package}"
                ) from None
        return ", ".join(found)

    async def configuration(self) -> str:
        if not self._client.is_configured():
            raise NotConfigured(configuration.why_not())
        return "found"

    async def server(self) -> str:
        user = await self._client.user()
        status = await self._client.status()
        return f"{status.api_server}, version {status.version}, as {user.name}"

    async def queues(self) -> str:
        queues = await self._client.queues()
        if not queues:
            raise UnknownQueue("There is no queue on this server", field="queue")
        if not any(queue.workers for queue in queues):
            raise UnknownQueue(
                "No agent serves any queue",
                field="queue",
                hint="Start one: clearml-agent daemon --queue default",
            )
        return ", ".join(f"{queue.name} ({len(queue.workers)} agents)" for queue in queues)

    async def session(self) -> str:
        try:
            task = await self._client.task(self._session_id)
        except UnknownTask as error:
            raise UnknownSession(error.message, hint=_WHERE_IDS_ARE) from None
        if "interactive" not in task.system_tags:
            raise UnknownSession("This Task is not an interactive session", hint=_WHERE_IDS_ARE)
        published = services(task)
        if task.status != "in_progress":
            raise SessionFailed(
                f"The session is {task.status}", hint="Only a running session can be reached."
            )
        if not published.up:
            raise SessionFailed(
                "The remote script has not published its services yet",
                hint="Wait a little; if it stays so, the Task's console says why.",
            )
        self._target = ssh_target(task)
        if published.jupyter_port:
            self._jupyter = published.jupyter_port, published.token
        return f"{task.name}, SSH at {published.address} port {published.ssh_port}"

    async def tunnel(self) -> str:
        target = self._target
        assert target is not None

        async def answer() -> SshTarget:
            return target

        self._tunnel = Tunnel(answer, log=logging.getLogger("clearml-session"))
        self._tunnel.start()
        try:
            await self._tunnel.wait_up(_CONNECT_DEADLINE)
        except TunnelDown as error:
            cause = error.detail.get("cause") or {"message": "Nothing answered in time", "hint": ""}
            raise TunnelDown(str(cause["message"]), hint=str(cause["hint"])) from None
        return f"up, host key {target.trust.value}"

    async def jupyter(self) -> str:
        if self._jupyter is None:
            return "not wanted"
        assert self._tunnel is not None
        status = await jupyter_status(self._tunnel, *self._jupyter)
        if status != 200:
            raise SessionFailed(f"The remote Jupyter answers with HTTP {status}")
        return "answers with this session's token"

    async def close(self) -> None:
        if self._tunnel is not None:
            await self._tunnel.close()
        await self._client.close()
