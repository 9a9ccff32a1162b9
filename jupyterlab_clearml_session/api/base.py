"""What all calls of the REST API share: the server's parts, the body, the query, and the form of errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web

from ..errors import ClearMLSessionError, InvalidInput
from ..forwards import ForwardManager
from ..presets import PresetManager
from ..sessions import ClearMLSessionManager

AUTH_RESOURCE = "clearml_session"

_LARGEST_BODY = 16 * 1024 * 1024
"""Three times the largest diff; reading more JSON would hold up everybody else on the event loop."""


class SessionKernels(Protocol):
    """What `kernels` offers about the remote side of a session; wired by `extension`."""

    async def kernelspecs(self, session_id: str) -> Sequence[Mapping[str, Any]]: ...
    async def list_kernels(self, session_id: str) -> Sequence[Mapping[str, Any]]: ...
    async def kill_kernel(self, session_id: str, kernel_id: str) -> None: ...
    async def adopt(self, session_id: str, kernel_id: str) -> str: ...
    async def metrics(self, session_id: str) -> Mapping[str, Any]: ...


class SessionAPIHandler(ExtensionHandlerMixin, APIHandler):
    """Base: the parts of the server, the body, and errors in the contract's form."""

    auth_resource = AUTH_RESOURCE

    @property
    def manager(self) -> ClearMLSessionManager:
        return cast(ClearMLSessionManager, self.settings["clearml_session_manager"])

    @property
    def presets(self) -> PresetManager:
        return cast(PresetManager, self.settings["clearml_session_presets"])

    @property
    def kernels(self) -> SessionKernels:
        return cast(SessionKernels, self.settings["clearml_session_kernels"])

    @property
    def forwards(self) -> ForwardManager:
        return cast(ForwardManager, self.settings["clearml_session_forwards"])

    def body(self) -> dict[str, Any]:
        """Return the request's JSON object, ``{}`` for an empty body. Raises InvalidInput."""
        if len(self.request.body) > _LARGEST_BODY:
            raise InvalidInput(f"The body is larger than {_LARGEST_BODY:,} bytes", field="body")
        if not self.request.body.strip():
            return {}
        try:
            body = json.loads(self.request.body.decode("utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError):
            raise InvalidInput("The body is not JSON", field="body") from None
        if not isinstance(body, dict):
            raise InvalidInput("The body must be a JSON object", field="body")
        return body

    def no_body(self) -> None:
        """Refuse a body that says anything, where there is nothing to say. Raises InvalidInput."""
        for name in self.body():
            raise InvalidInput(f"This call has no field {name[:80]!r}", field=name[:80])

    def flag(self, name: str) -> bool:
        value = self.get_query_argument(name, "0").lower()
        if value not in ("0", "1", "true", "false"):
            raise InvalidInput(f"{name} must be 0 or 1", field=name)
        return value in ("1", "true")

    def number(self, name: str, default: int, *, most: int) -> int:
        value = self.get_query_argument(name, str(default))
        usable = value.isascii() and value.isdigit() and len(value) <= len(str(most))
        if not usable or not 0 < int(value) <= most:
            raise InvalidInput(f"{name} must be a whole number from 1 to {most}", field=name)
        return int(value)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Read a part of the address; says by name which one is not UTF-8."""
        try:
            return str(super().decode_argument(value, name))
        except web.HTTPError:
            field = name or "path"
            raise InvalidInput(f"{field} is not UTF-8", field=field) from None

    def answer(self, body: Mapping[str, Any], status: int = 200) -> None:
        self.set_status(status)
        self.finish(json.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer any failure as ``{"error": {...}}``, with Jupyter's own ``message`` beside it."""
        raised = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(raised, ClearMLSessionError):
            self.set_status(raised.status)
            error = raised.to_json()
        else:
            message = getattr(raised, "log_message", None) or self._reason
            error = {"code": f"http_{status_code}", "message": message, "hint": "", "detail": {}}
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": error, "message": error["message"]}))

    def log_exception(self, *exc_info: Any) -> None:
        """Keep tracebacks for what nobody foresaw."""
        if isinstance(exc_info[1], ClearMLSessionError):
            self.log.info("clearml-session: %s: %s", exc_info[1].code, exc_info[1].message)
            return
        super().log_exception(*exc_info)
