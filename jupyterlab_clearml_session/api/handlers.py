"""REST for the front end, the magic and other programs: parse, ask the manager, answer (docs/rest-api.md)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from .. import workspace
from ..errors import InvalidInput, UnknownPreset
from ..forwards import SSH
from ..launch_spec import LaunchSpec, json_schema
from ..models import BackendStatus, Task
from ..ssh.ports import listening_ports
from .base import SessionAPIHandler

_LOG_LIMIT = 10_000


class StatusHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer((await self.manager.status()).to_json())


class ConfigureHandler(SessionAPIHandler):
    _work: asyncio.Task[BackendStatus] | None = None

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self._work = asyncio.create_task(self.manager.configure(self.body()))
        await asyncio.wait({self._work})
        if not self._work.cancelled():
            self.answer(self._work.result().to_json())

    def on_connection_close(self) -> None:
        """Who cancels must not find a configuration of which nobody has seen that it is right."""
        super().on_connection_close()
        if self._work is not None:
            self._work.cancel()


class QueuesHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer({"queues": [queue.to_json() for queue in await self.manager.queues()]})


class SessionsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        sessions, revision = await self.manager.list(
            state=self.get_query_argument("state", "active"),
            all_users=self.flag("all_users"),
            tag=self.get_query_argument("tag", None),
            project=self.get_query_argument("project", None),
        )
        self.answer({"sessions": [session.to_json() for session in sessions], "revision": revision})

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = self.body()
        launched_by = body.pop("launched_by", "panel")
        if launched_by not in ("panel", "magic", "api"):
            raise InvalidInput("launched_by must be panel, magic or api", field="launched_by")
        spec = await self._spec(body)
        session = await self.manager.launch(spec, launched_by=launched_by)
        await self.presets.remember(spec)
        self.answer(session.to_json(), 202)

    async def _spec(self, body: dict[str, Any]) -> LaunchSpec:
        if "preset" not in body:
            return LaunchSpec.from_json(body)
        name = body.pop("preset")
        if not isinstance(name, str):
            raise InvalidInput("preset must be the name of a preset", field="preset")
        try:
            preset = await self.presets.get(name)
        except UnknownPreset as error:
            raise InvalidInput(error.message, field="preset") from None
        return LaunchSpec.from_json({**preset.to_json(), **body})


class SessionHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer((await self.manager.get(session_id)).to_json())

    @web.authenticated
    @authorized
    async def delete(self, session_id: str) -> None:
        session = await self.manager.shutdown(session_id, purge=self.flag("purge"))
        self.answer(session.to_json(), 202)


class SessionActionHandler(SessionAPIHandler):
    """attach, detach, reconnect"""

    @web.authenticated
    @authorized
    async def post(self, session_id: str, action: str) -> None:
        self.no_body()
        act = {
            "attach": self.manager.attach,
            "detach": self.manager.detach,
            "reconnect": self.manager.reconnect,
        }[action]
        self.answer((await act(session_id)).to_json(), 202)


class LogHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        limit = self.number("limit", 200, most=_LOG_LIMIT)
        lines = await self.manager.log(session_id, limit, self.get_query_argument("before", None))
        self.answer({"lines": [line.to_json() for line in lines]})


class MetricsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        await self.manager.get(session_id)
        self.answer(await self.kernels.metrics(session_id))


class KernelspecsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        await self.manager.get(session_id)
        self.answer({"kernelspecs": [dict(spec) for spec in await self.kernels.kernelspecs(session_id)]})


class KernelsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        await self.manager.get(session_id)
        self.answer({"kernels": [dict(kernel) for kernel in await self.kernels.list_kernels(session_id)]})


class KernelHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def delete(self, session_id: str, kernel_id: str) -> None:
        await self.manager.get(session_id)
        await self.kernels.kill_kernel(session_id, kernel_id)
        self.set_status(204)
        self.finish()


class KernelAdoptHandler(SessionAPIHandler):
    """Make a kernel that was left behind one of this server's kernels."""

    @web.authenticated
    @authorized
    async def post(self, session_id: str, kernel_id: str) -> None:
        self.no_body()
        await self.manager.get(session_id)
        self.answer({"id": await self.kernels.adopt(session_id, kernel_id)})


class TasksHandler(SessionAPIHandler):
    """Tasks that can be debugged, found by a part of their name or id."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        tasks = await self.manager.find_tasks(self.get_query_argument("text", ""))
        self.answer({"tasks": [_task(task) for task in tasks]})


class RepoHandler(SessionAPIHandler):
    """What ``clone_repo`` would send of the git repository around a folder of this server; sends nothing."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        root = self.settings["server_root_dir"]
        folder = await asyncio.to_thread(_below, root, self.get_query_argument("folder", ""))
        snapshot = await self.manager.client.collect_repo(folder)
        self.answer(snapshot.to_json())


class PortsHandler(SessionAPIHandler):
    """The ports that something listens on over there, and what it is."""

    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        ports = await listening_ports(await self.manager.tunnel(session_id))
        self.answer({"ports": [{"port": found.port, "process": found.process} for found in ports]})


class ForwardsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer({"forwards": list(await self.forwards.list(session_id))})

    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        body = self.body()
        remote_port = body.pop("remote_port", None)
        if remote_port != SSH:
            remote_port = _port(remote_port, "remote_port", least=1)
        local_port = body.pop("local_port", None)
        local_port = 0 if local_port is None else _port(local_port, "local_port", least=0)
        show_password = body.pop("show_password", False)
        if not isinstance(show_password, bool):
            raise InvalidInput("show_password must be true or false", field="show_password")
        if show_password and remote_port != SSH:
            raise InvalidInput("Only the SSH port has a password", field="show_password")
        if body:
            unknown = sorted(body)[0]
            raise InvalidInput(f"There is no field {unknown}", field=unknown)
        self.answer(
            await self.forwards.open(session_id, remote_port, local_port, show_password=show_password)
        )


class ForwardHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def delete(self, session_id: str, local_port: str) -> None:
        await self.forwards.close(session_id, int(local_port))
        self.set_status(204)
        self.finish()


class WorkspaceHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        self.no_body()
        self.answer((await workspace.store(self.manager, session_id)).to_json(), 202)


class PresetsHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer(await self.presets.to_json())


class PresetHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def put(self, name: str) -> None:
        spec = LaunchSpec.from_json(self.body())
        await self.presets.save(name, spec)
        self.answer(await self.presets.to_json())

    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        await self.presets.delete(name)
        self.answer(await self.presets.to_json())


class ImportPresetHandler(SessionAPIHandler):
    """Take what the command line remembered as a preset; its password is never taken."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.no_body()
        _, refused = await self.presets.import_cli()
        self.answer({**await self.presets.to_json(), "refused": refused})


class SpecHandler(SessionAPIHandler):
    """What a session was launched with, the long texts included: to launch it again."""

    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer((await self.manager.spec(session_id)).to_json())


class SchemaHandler(SessionAPIHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer(json_schema())


class UnknownHandler(SessionAPIHandler):
    """Everything else under the API: a typed 404 instead of a page."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        raise web.HTTPError(404, "There is no such call in clearml-session/api")

    post = put = patch = delete = get


def _below(root: str, folder: str) -> Path:
    top = Path(root).expanduser().resolve()
    try:
        found = (top / folder.strip("/")).resolve()
        is_folder = found.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        raise InvalidInput("folder is not the name of a folder", field="folder") from None
    if not found.is_relative_to(top):
        raise InvalidInput("folder must lie below this server's root", field="folder")
    if not is_folder:
        raise InvalidInput("There is no such folder", field="folder")
    return found


def _task(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "status": task.status,
        "project": task.project.name if task.project else "",
        "created": task.created,
        "repository": task.script.get("repository", ""),
        "branch": task.script.get("branch") or "",
        "commit": task.script.get("version_num") or "",
    }


def _port(value: Any, name: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 65535:
        raise InvalidInput(f"{name} must be a port number from {least} to 65535", field=name)
    return value


_ID = r"(?P<session_id>[^/]+)"
_API = r"/clearml-session/api"

handlers = [
    (rf"{_API}/status", StatusHandler),
    (rf"{_API}/configure", ConfigureHandler),
    (rf"{_API}/queues", QueuesHandler),
    (rf"{_API}/schema", SchemaHandler),
    (rf"{_API}/presets", PresetsHandler),
    (rf"{_API}/presets/(?P<name>[^/]+)", PresetHandler),
    (rf"{_API}/import-presets", ImportPresetHandler),
    (rf"{_API}/sessions", SessionsHandler),
    (rf"{_API}/sessions/{_ID}", SessionHandler),
    (rf"{_API}/sessions/{_ID}/(?P<action>attach|detach|reconnect)", SessionActionHandler),
    (rf"{_API}/sessions/{_ID}/spec", SpecHandler),
    (rf"{_API}/sessions/{_ID}/log", LogHandler),
    (rf"{_API}/sessions/{_ID}/metrics", MetricsHandler),
    (rf"{_API}/sessions/{_ID}/kernelspecs", KernelspecsHandler),
    (rf"{_API}/sessions/{_ID}/kernels", KernelsHandler),
    (rf"{_API}/sessions/{_ID}/kernels/(?P<kernel_id>[^/]+)", KernelHandler),
    (rf"{_API}/sessions/{_ID}/kernels/(?P<kernel_id>[^/]+)/adopt", KernelAdoptHandler),
    (rf"{_API}/tasks", TasksHandler),
    (rf"{_API}/repo", RepoHandler),
    (rf"{_API}/sessions/{_ID}/workspace", WorkspaceHandler),
    (rf"{_API}/sessions/{_ID}/ports", PortsHandler),
    (rf"{_API}/sessions/{_ID}/forwards", ForwardsHandler),
    (rf"{_API}/sessions/{_ID}/forwards/(?P<local_port>\d{{1,5}})", ForwardHandler),
    (rf"{_API}/.*", UnknownHandler),
]
