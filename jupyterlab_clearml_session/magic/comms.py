"""Comms of a remote kernel, mirrored in this one, so that widgets reach the kernel that made them.

The front end only knows this kernel. For each comm that the remote kernel opens, a stand-in with the same id is
registered here; what the front end sends to it is sent on, and this kernel stays busy until the remote one has
dealt with it, as it would with a comm of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
Forward = Callable[[Message], None]
"""Sends a comm message of the front end to the remote kernel and waits until it is dealt with."""


class Comms:
    """The mirrored comms of one remote kernel."""

    def __init__(self, manager: Any, forward: Forward) -> None:
        self._manager = manager
        self._forward = forward
        self._ids: set[str] = set()

    def heard(self, message: Message) -> None:
        """Take note of a comm message of the remote kernel."""
        content = message["content"]
        comm_id = content["comm_id"]
        if message["msg_type"] == "comm_open":
            self._manager.register_comm(MirroredComm(comm_id, content["target_name"], self._forward))
            self._ids.add(comm_id)
        elif message["msg_type"] == "comm_close" and comm_id in self._ids:
            self._ids.discard(comm_id)
            self._manager.comms.pop(comm_id, None)

    def close(self) -> None:
        """Forget them: their kernel is gone."""
        for comm_id in self._ids:
            self._manager.comms.pop(comm_id, None)
        self._ids.clear()


class MirroredComm:
    """Has what a comm manager expects of a comm (`comm.base_comm.BaseComm`), and sends everything on."""

    def __init__(self, comm_id: str, target_name: str, forward: Forward) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self._forward = forward
        self._closed = False

    def handle_msg(self, message: Message) -> None:
        self._forward(message)

    def handle_close(self, message: Message) -> None:
        self._forward(message)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """The remote kernel closes its comms itself; this is called when the local one ends."""
