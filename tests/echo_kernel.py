"""A kernel in a language of its own: it says what it is told. Only pyzmq, nothing of Jupyter or IPython.

Run as ``python echo_kernel.py <connection file>``. A cell ``wait`` ends with the interrupt_request that follows.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"


class EchoKernel:
    """One poller over the five sockets."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._key = info["key"].encode()
        context: zmq.Context[Any] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[Any]] = {}
        for name, kind in {
            "shell": zmq.ROUTER,
            "iopub": zmq.PUB,
            "stdin": zmq.ROUTER,
            "control": zmq.ROUTER,
            "hb": zmq.REP,
        }.items():
            self._sockets[name] = context.socket(kind)
            self._sockets[name].bind(f"{info['transport']}://{info['ip']}:{info[name + '_port']}")
        self._waiting: tuple[list[bytes], dict[str, Any]] | None = None

    def serve(self) -> None:
        """Answer until told to end."""
        poller = zmq.Poller()
        for name in ("shell", "control", "hb"):
            poller.register(self._sockets[name], zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._sockets["hb"] in ready:
                self._sockets["hb"].send(self._sockets["hb"].recv())
            for name in ("control", "shell"):
                if self._sockets[name] in ready:
                    frames = self._sockets[name].recv_multipart()
                    split = frames.index(DELIMITER)
                    header, content = json.loads(frames[split + 2]), json.loads(frames[split + 5])
                    if not self._answer(name, frames[:split], header, content):
                        return

    def _answer(self, name: str, ident: list[bytes], header: dict[str, Any], content: dict[str, Any]) -> bool:
        kind = header["msg_type"]
        self._publish("status", {"execution_state": "busy"}, header)
        if kind == "execute_request" and content["code"] == "wait":
            self._waiting = ident, header
            return True
        if kind == "execute_request":
            self._publish("stream", {"name": "stdout", "text": content["code"]}, header)
            self._reply(
                "shell", ident, header, {"status": "ok", "execution_count": 1, "user_expressions": {}}
            )
        elif kind == "interrupt_request":
            self._reply(name, ident, header, {"status": "ok"})
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                error = {"status": "error", "ename": "Interrupted", "evalue": "", "traceback": []}
                self._reply("shell", *waiting, {**error, "execution_count": 1})
                self._publish("status", {"execution_state": "idle"}, waiting[1])
        elif kind == "kernel_info_request":
            language = {"name": "echo", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"}
            info = {"protocol_version": "5.3", "implementation": "echo", "implementation_version": "1"}
            self._reply(
                name, ident, header, {"status": "ok", **info, "language_info": language, "banner": ""}
            )
        elif kind == "shutdown_request":
            self._reply(name, ident, header, {"status": "ok", "restart": content["restart"]})
        self._publish("status", {"execution_state": "idle"}, header)
        return bool(kind != "shutdown_request")

    def _reply(self, name: str, ident: list[bytes], parent: dict[str, Any], content: dict[str, Any]) -> None:
        kind = parent["msg_type"].replace("_request", "_reply")
        self._sockets[name].send_multipart([*ident, *self._frames(kind, content, parent)])

    def _publish(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self._sockets["iopub"].send_multipart([kind.encode(), *self._frames(kind, content, parent)])

    def _frames(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        # Fields in another order, and other blanks, than Python's own kernels have.
        header = {"version": "5.3", "msg_type": kind, "session": "echo", "username": "", "date": ""}
        parts = [{**header, "msg_id": uuid.uuid4().hex}, parent, {}, content]
        frames = [json.dumps(part, separators=(",", ":")).encode() for part in parts]
        digest = hmac.new(self._key, b"".join(frames), hashlib.sha256).hexdigest()
        return [DELIMITER, digest.encode(), *frames]


if __name__ == "__main__":
    EchoKernel(json.loads(Path(sys.argv[1]).read_text())).serve()
