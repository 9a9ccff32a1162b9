"""A FAKE server half, for looking at the front end: docs/rest-api.md with no ClearML behind it.

It shows any phase on command (``POST clearml-session/fake/...``), fails on command, and notes the calls that it
got. It proves nothing about the real server half; `test_real.py` does that.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from tornado import web

import jupyterlab_clearml_session
from jupyterlab_clearml_session.errors import (
    ClearMLSessionError,
    InvalidInput,
    NotARepository,
    UnknownSession,
)
from jupyterlab_clearml_session.launch_spec import LaunchSpec, json_schema
from jupyterlab_clearml_session.models import Phase
from tests.browser import stage

SCHEMA_ID = "https://schema.jupyterlab-clearml-session.org/session/v1"
SCHEMA = Path(jupyterlab_clearml_session.__file__).parent / "api" / "schemas" / "session.v1.yaml"
LIVE = ("created", "queued", "in_progress")


class Theatre:
    """What is on stage, and what was asked for."""

    def __init__(self, server: ServerApp) -> None:
        assert server.event_logger is not None
        self._events = server.event_logger
        self._events.register_event_schema(SCHEMA)
        self.revision = 0
        self.sessions: dict[str, dict[str, Any]] = {}
        self.reset()

    def reset(self) -> None:
        """Empty the stage before the eyes of the audience."""
        for session_id in list(self.sessions):
            self.remove(session_id)
        self.status = stage.status()
        self.presets: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.delays: dict[str, float] = {}
        self.forwards: dict[str, list[dict[str, Any]]] = {}
        self.repositories: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []

    def put(self, session: dict[str, Any]) -> dict[str, Any]:
        """Show a session and tell everybody."""
        self.sessions[session["id"]] = session
        self._emit({"kind": "changed", "session": session})
        return session

    def put_silently(self, session: dict[str, Any]) -> None:
        """Change a session so that its event is lost on the way."""
        self.sessions[session["id"]] = session
        self.revision += 1

    def remove(self, session_id: str) -> None:
        session = self.sessions.pop(session_id)
        self._emit({"kind": "removed", "session": session})

    def of(self, session_id: str) -> dict[str, Any]:
        if session_id not in self.sessions:
            raise UnknownSession(f"There is no session {session_id}")
        return self.sessions[session_id]

    def _emit(self, body: dict[str, Any]) -> None:
        self.revision += 1
        self._events.emit(schema_id=SCHEMA_ID, data={"revision": self.revision, **body})


class FakeHandler(APIHandler):
    """Base: the theatre, the body, errors in the contract's form."""

    @property
    def theatre(self) -> Theatre:
        theatre: Theatre = self.settings["fake_theatre"]
        return theatre

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request.body or b"{}")
        return found

    def answer(self, body: Any, status: int = 200) -> None:
        self.set_status(status)
        self.finish(json.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        raised = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(raised, ClearMLSessionError):
            super().write_error(status_code, **kwargs)
            return
        self.set_status(raised.status)
        self.finish(json.dumps({"error": raised.to_json()}))

    def log_exception(self, *exc_info: Any) -> None:
        if not isinstance(exc_info[1], ClearMLSessionError):
            super().log_exception(*exc_info)


class ApiHandler(FakeHandler):
    """The contract's calls, as far as the front end makes them."""

    @web.authenticated
    async def get(self, path: str) -> None:
        await self._play("GET", path)

    @web.authenticated
    async def post(self, path: str) -> None:
        await self._play("POST", path)

    @web.authenticated
    async def put(self, path: str) -> None:
        await self._play("PUT", path)

    @web.authenticated
    async def delete(self, path: str) -> None:
        await self._play("DELETE", path)

    async def _play(self, method: str, path: str) -> None:
        theatre, body = self.theatre, self.body()
        theatre.calls.append({"method": method, "path": path, "body": body})
        await asyncio.sleep(theatre.delays.get(f"{method} {path}", 0))
        failure = theatre.failures.get(f"{method} {path}")
        if failure:
            self.answer({"error": failure["error"]}, failure["status"])
            return
        parts = path.split("/")
        if parts[0] == "sessions" and len(parts) > 1:
            self._session(method, parts[1], parts[2:], body)
        else:
            self._room(method, parts, body)

    def _room(self, method: str, parts: list[str], body: dict[str, Any]) -> None:
        theatre = self.theatre
        match method, parts:
            case "GET", ["status"]:
                self.answer(theatre.status)
            case "POST", ["configure"]:
                theatre.status = stage.status("local" if body.get("mode") == "local" else "server")
                self.answer(theatre.status)
            case "GET", ["queues"]:
                self.answer({"queues": stage.queues()})
            case "GET", ["schema"]:
                self.answer(json_schema())
            case "GET", ["presets"]:
                self.answer({"presets": theatre.presets, "last": theatre.last, "importable": True})
            case "POST", ["import-presets"]:
                theatre.presets["clearml-session"] = stage.imported().to_json()
                body = {"presets": theatre.presets, "last": theatre.last, "importable": True}
                self.answer({**body, "refused": ["jupyter_port"]})
            case "GET", ["repo"]:
                folder = self.get_query_argument("folder")
                if folder not in theatre.repositories:
                    raise NotARepository("This folder is not in a git repository.", field="folder")
                self.answer(theatre.repositories[folder])
            case "PUT", ["presets", name]:
                theatre.presets[name] = LaunchSpec.from_json(body).to_json()
                self.answer({"presets": theatre.presets, "last": theatre.last})
            case "DELETE", ["presets", name]:
                del theatre.presets[name]
                self.answer({"presets": theatre.presets, "last": theatre.last})
            case "GET", ["tasks"]:
                self.answer({"tasks": stage.tasks(self.get_query_argument("text", ""))})
            case "GET", ["sessions"]:
                state = self.get_query_argument("state", "active")
                everybody = self.get_query_argument("all_users", "0") == "1"
                found = [
                    session
                    for session in theatre.sessions.values()
                    if (everybody or session["mine"])
                    and (state == "all" or (session["status"] in LIVE) == (state == "active"))
                ]
                self.answer({"sessions": found, "revision": theatre.revision})
            case "POST", ["sessions"]:
                spec = LaunchSpec.from_json(body)
                if spec.queue and spec.queue not in {queue["name"] for queue in stage.queues()}:
                    raise InvalidInput(f"There is no queue {spec.queue!r}", field="queue")
                launched = stage.session(
                    len(theatre.sessions) + 40, Phase.QUEUED, name=spec.name or "Interactive Session"
                )
                self.answer(theatre.put(launched), 202)
            case _:
                raise web.HTTPError(404)

    def _session(self, method: str, session_id: str, rest: list[str], body: dict[str, Any]) -> None:
        theatre = self.theatre
        session = theatre.of(session_id)
        match method, rest:
            case "GET", []:
                self.answer(session)
            case "DELETE", []:
                if self.get_query_argument("purge", "0") == "1":
                    theatre.remove(session_id)
                    self.answer(session, 202)
                else:
                    session = {**session, "phase": "stopping", "phase_text": "Shutting down"}
                    self.answer(theatre.put(session), 202)
            case "POST", ["attach" | "reconnect"]:
                self.answer(theatre.put({**session, "phase": "connecting", "attached": True}), 202)
            case "POST", ["detach"]:
                self.answer(theatre.put({**session, "phase": "services_up", "attached": False}), 202)
            case "GET", ["log"]:
                lines = [
                    {"time": f"2026-11-22T10:00:{n:02d}Z", "text": t} for n, t in enumerate(stage.LOG_TAIL)
                ]
                before = self.get_query_argument("before", None)
                self.answer({"lines": [line for line in lines if before is None or line["time"] < before]})
            case "GET", ["kernels"]:
                kernel = {
                    "id": "5f2c9a11-0000-4000-8000-000000000000",
                    "name": "python3",
                    "state": "idle",
                    "idle_s": 10800,
                }
                self.answer({"kernels": [{**kernel, "started": None, "adopted": False}]})
            case "GET", ["metrics"]:
                self.answer(stage.LOAD)
            case "GET", ["spec"]:
                self.answer(stage.launched_with().to_json())
            case "GET", ["ports"]:
                self.answer({"ports": stage.PORTS})
            case "GET", ["forwards"]:
                self.answer({"forwards": theatre.forwards.get(session_id, [])})
            case "POST", ["forwards"]:
                self.answer(self._forward(theatre.forwards.setdefault(session_id, []), body))
            case "DELETE", ["forwards", local_port]:
                kept = [one for one in theatre.forwards[session_id] if str(one["local_port"]) != local_port]
                theatre.forwards[session_id] = kept
                self.set_status(204)
                self.finish()
            case _:
                raise web.HTTPError(404)

    def _forward(self, forwards: list[dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
        """Open a local port, or answer the one to SSH again."""
        remote_port = body["remote_port"]
        known = [one for one in forwards if one["remote_port"] == remote_port == "ssh"]
        local_port = known[0]["local_port"] if known else body.get("local_port") or 40022 + len(forwards)
        if not known:
            forwards.append({"local_port": local_port, "remote_port": remote_port})
        answer = {"local_port": local_port, "remote_port": remote_port}
        if remote_port == "ssh":
            answer |= stage.ssh(local_port)
        return answer | ({"password": stage.PASSWORD} if body.get("show_password") else {})


class DirectorHandler(FakeHandler):
    """What the tests say: put, lose, status, presets, repositories ...; and what they ask: calls."""

    @web.authenticated
    async def get(self, _act: str) -> None:
        self.answer(self.theatre.calls)

    @web.authenticated
    async def post(self, act: str) -> None:
        theatre, body = self.theatre, self.body()
        match act:
            case "put":
                theatre.put(body)
            case "lose":
                theatre.put_silently(body)
            case "remove":
                theatre.remove(body["id"])
            case "status":
                theatre.status = body
            case "fail":
                theatre.failures = body
            case "delay":
                theatre.delays = body
            case "presets":
                theatre.presets, theatre.last = body["presets"], body["last"]
            case "repositories":
                theatre.repositories = body
            case "reset":
                theatre.reset()
            case _:
                raise web.HTTPError(404)
        self.answer({"revision": theatre.revision})


class PageHandler(JupyterHandler):
    """Stands where a page of the session would be."""

    @web.authenticated
    async def get(self, path: str) -> None:
        self.finish(f"<!doctype html><title>Fake page</title><h1>Fake page</h1><p id='path'>{path}</p>")


def _load_jupyter_server_extension(server: ServerApp) -> None:
    server.web_app.settings["fake_theatre"] = Theatre(server)
    base = server.web_app.settings["base_url"]
    server.web_app.add_handlers(  # type: ignore[no-untyped-call]
        ".*$",
        [
            (url_path_join(base, r"clearml-session/api/(.*)"), ApiHandler),
            (url_path_join(base, r"clearml-session/fake/(.*)"), DirectorHandler),
            (url_path_join(base, r"clearml-session/proxy/([0-9a-zA-Z/._-]+)"), PageHandler),
        ],
    )


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tests.browser.fake"}]
