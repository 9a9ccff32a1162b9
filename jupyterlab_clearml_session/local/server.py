"""The API server, the file server and the small page about them, on free ports of the loopback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from .api.app import LARGEST_BODY, ApiServer, CallRecord
from .api.auth import Authenticator, Keys
from .files import FileServer

_SAVE_EVERY_MS = 1000
_ADMIT_EVERY_MS = 250
_LARGEST_LOG = 5_000_000


class LocalServer:
    """All that listens. ``directory`` gets the documents, the files and the access log.

    The access log is ``access.jsonl``: one JSON object a call (``time``, ``call``, ``status``, ``subcode``, ``ms``,
    ``client``, ``agent``, ``worker``), without bodies and secrets. It is renamed to ``access.1.jsonl`` at 5 MB.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys = Keys.random()
        self.access_log = AccessLog(directory / "access.jsonl")
        authenticator = Authenticator(self.keys)
        self.api = ApiServer(authenticator, directory=directory, on_call=self.access_log.write)
        self.files = FileServer(authenticator, directory / "files")
        self._servers: list[HTTPServer] = []
        self._periodic = (
            PeriodicCallback(self.api.context.store.save, _SAVE_EVERY_MS),
            PeriodicCallback(self.api.context.admission.refresh, _ADMIT_EVERY_MS),
        )

    def start(self) -> dict[str, str]:
        """Listen; the credentials, as they are pasted into ``clearml.conf``."""
        for callback in self._periodic:
            callback.start()
        files_server = self._listen(self.files)
        self.api.context.store.files_moved(files_server)
        return {
            "api_server": self._listen(self.api),
            "files_server": files_server,
            "web_server": self._listen(_about()),
            "access_key": self.keys.access_key,
            "secret_key": self.keys.secret_key,
        }

    def stop(self) -> None:
        """Close all ports and write the documents."""
        for callback in self._periodic:
            callback.stop()
        for server in self._servers:
            server.stop()
        self.api.context.store.save()
        self.api.context.admission.close()
        self.access_log.close()

    def _listen(self, application: Application) -> str:
        (socket,) = bind_sockets(0, address="127.0.0.1")
        server = HTTPServer(application, max_buffer_size=LARGEST_BODY)
        server.add_sockets([socket])
        self._servers.append(server)
        return f"http://127.0.0.1:{socket.getsockname()[1]}"


class AccessLog:
    """One line for each call of the API."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def write(self, record: CallRecord) -> None:
        if self._file.closed:
            return
        self._file.write(json.dumps(record) + "\n")
        if self._file.tell() > _LARGEST_LOG:
            self._file.close()
            self._path.replace(self._path.with_suffix(".1.jsonl"))
            self._file = self._open()

    def close(self) -> None:
        self._file.close()

    def _open(self) -> TextIO:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Line-buffered: whoever counts calls reads them as they happen.
        return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


class _AboutHandler(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            "This is the ClearML server that jupyterlab-clearml-session started on this machine.\n"
            "It has no web interface: your sessions are in the ClearML panel of JupyterLab.\n"
        )


def _about() -> Application:
    return Application([(r".*", _AboutHandler)], log_function=lambda handler: None)
