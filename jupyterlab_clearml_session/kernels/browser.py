"""The websockets of remote kernels: what has gone out to a browser is noted, what comes again is not sent again.

Only this server's own websockets can tell what a browser was shown (see `shown`). For all other kernels nothing
is different.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from ..remote.messages import message_id, signed_frames
from .port import NAMES, WELCOME
from .shown import Watcher

NUMBERS = {name: number for number, name in NAMES.items()}


@lru_cache(maxsize=4)
def noting(base: type[ZMQChannelsWebsocketConnection]) -> type[ZMQChannelsWebsocketConnection]:
    """Return a class of kernel websockets that behaves as ``base`` and takes notes."""

    class NotingConnection(base):  # type: ignore[misc,valid-type]
        _watcher: Watcher | None = None

        def connect(self) -> Any:
            watch = getattr(getattr(self.kernel_manager, "provisioner", None), "watch", None)
            self._watcher = None if watch is None else watch(self.session.session)
            return super().connect()

        def disconnect(self) -> None:
            watcher, self._watcher = self._watcher, None
            if watcher is not None:
                watcher.leave()
            super().disconnect()

        @property
        def write_message(self) -> Any:
            return self._write

        def _write(self, message: Any, binary: bool = False) -> Any:
            written = self.websocket_handler.write_message(message, binary=binary)
            if self._watcher is not None:
                self._watcher.written = written
            return written

        def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
            watcher = self._watcher
            identity = b"" if watcher is None else _identity(outgoing_msg)
            if watcher is None or not identity:
                super().handle_outgoing_message(stream, outgoing_msg)
                return
            channel = NUMBERS[getattr(stream, "channel", stream)]
            if watcher.knows(channel, identity):
                return
            super().handle_outgoing_message(stream, outgoing_msg)
            connection = getattr(self.websocket_handler, "ws_connection", None)
            watcher.sent(channel, identity, waits=connection is None or connection.stream.writing())

    return NotingConnection


def _identity(parts: list[Any]) -> bytes:
    frames = signed_frames(parts)
    # The welcome comes from this process: the kernel's helper would not know it.
    return b"" if frames is None or WELCOME in frames[0] else message_id(parts)
