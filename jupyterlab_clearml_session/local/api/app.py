"""The HTTP side of the API: paths, the envelope around every answer, and who may call.

GET and POST are equal, bodies may come with either (the SDK sends nearly everything as GET with a body), and
any version in the path is fine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado.web import Application, HTTPError, RequestHandler

from . import errors, events, models, projects, queues, system, task_fields, task_status, tasks, workers
from .admission import Admission
from .auth import API_VERSION, COOKIE, Authenticator
from .schema import Answer, Body, Context, Table
from .store import Store, new_id

OnCall = Callable[["CallRecord"], None]

_PATH = re.compile(r"^/(?:v([0-9.]+)/)?([a-z_]+\.[a-z_]+)/?$")
LARGEST_BODY = 512 * 1024 * 1024


class CallRecord(dict[str, Any]):
    """One call for the access log: when, which, its result and how long. No body and no secret."""


class ApiServer(Application):
    """The API as a tornado application.

    ``on_call`` hears of every call, just before its answer is sent.
    """

    def __init__(self, authenticator: Authenticator, *, directory: Path, on_call: OnCall) -> None:
        self.authenticator = authenticator
        self.on_call = on_call
        store = Store(directory / "store.json")
        log = events.EventLog(directory / "events")
        self.context = Context(store, workers.Workers(), log, Admission(store))
        self.table = Table().merge(
            *(
                module.table
                for module in (
                    *(system, tasks, task_status, task_fields, queues),
                    *(workers, events, projects, models),
                )
            )
        )
        super().__init__([(r".*", ApiHandler)], compress_response=True, log_function=lambda handler: None)


class ApiHandler(RequestHandler):
    """One call of the API."""

    application: ApiServer

    def get(self) -> None:
        self._answer()

    def post(self) -> None:
        self._answer()

    def _answer(self) -> None:
        started = time.monotonic()
        name, version = "", API_VERSION
        data: Answer = {}
        problem: errors.ApiError | None = None
        try:
            name, version = self._parse_path()
            data = self._call(name, version)
        except errors.ApiError as error:
            problem = error
        self._record(name, problem, time.monotonic() - started)
        self._finish(name, version, data, problem)

    def _parse_path(self) -> tuple[str, str]:
        match = _PATH.match(self.request.path)
        if match is None:
            raise errors.invalid_path(self.request.path)
        return match.group(2), match.group(1) or API_VERSION

    def _call(self, name: str, version: str) -> Answer:
        app = self.application
        if name not in system.PUBLIC:
            app.authenticator.check(self.request.headers.get("Authorization"))
        body = self._parse_body(name)
        if name == "auth.login":
            token = app.authenticator.token(body.get("expiration_sec"))
            self.set_cookie(COOKIE, token, httponly=True, samesite="Lax")
            return {"token": token}
        return app.table.call(name, version, app.context, body)

    def _parse_body(self, name: str) -> Body:
        raw = self.request.body
        try:
            if name == "events.add_batch":
                return {"events": [json.loads(line) for line in raw.splitlines() if line.strip()]}
            body = json.loads(raw) if raw.strip() else {}
        except ValueError:
            raise errors.malformed_body() from None
        if not isinstance(body, dict):
            raise errors.malformed_body()
        query = {
            key: values[-1].decode("utf-8", "replace") for key, values in self.request.query_arguments.items()
        }
        return {**query, **body}

    def _finish(self, name: str, version: str, data: Answer, problem: errors.ApiError | None) -> None:
        if isinstance(data, str):
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(data)
            return
        status = problem.status if problem else 200
        call_id = new_id()
        meta = {
            "id": call_id,
            "trx": call_id,
            "endpoint": {"name": name, "requested_version": version, "actual_version": "1.0"},
            "result_code": status,
            "result_subcode": problem.subcode if problem else 0,
            "result_msg": problem.message if problem else "OK",
            "error_stack": None,
            "error_data": {},
        }
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"meta": meta, "data": data}))

    def _record(self, name: str, problem: errors.ApiError | None, seconds: float) -> None:
        headers = self.request.headers
        self.application.on_call(
            CallRecord(
                time=time.time(),
                call=name,
                status=problem.status if problem else 200,
                subcode=problem.subcode if problem else 0,
                ms=round(seconds * 1000, 2),
                client=headers.get("X-ClearML-Client", ""),
                agent=headers.get("X-ClearML-Agent", ""),
                worker=headers.get("X-ClearML-Worker", ""),
            )
        )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        # Only what tornado itself refuses comes here: another method, a compressed body, a defect of ours.
        if self.request.headers.get("Content-Encoding"):
            self.set_status(415)
            self.finish("Unsupported Media Type")
            return
        exception = kwargs.get("exc_info", (None, None))[1]
        reason = exception.reason if isinstance(exception, HTTPError) and exception.reason else self._reason
        self._finish("", API_VERSION, {}, errors.ApiError(status_code, 0, reason))
