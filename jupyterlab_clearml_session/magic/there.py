"""The other end of a transfer of variables. Its source text is sent to the remote kernel and run there.

Python 3.8 or later with the standard library and ipykernel; nothing of this package is there. One comm is one
transfer: "put" fills buffers chunk by chunk and then sets variables, "get" pickles variables and sends the chunks
that it is asked for.
"""

from __future__ import annotations

import pickle
from typing import Any

TARGET = "clearml_session_transfer"


class Transfer:
    """One comm. Buffers of a variable: the pickle itself, then its out-of-band buffers."""

    def __init__(self, shell: Any, comm: Any, request: dict[str, Any]) -> None:
        self.shell = shell
        self.comm = comm
        self.parts: dict[str, list[Any]] = {}
        comm.on_msg(self.on_message)
        try:
            if request["op"] == "get":
                self.pickle(request["names"])
            else:
                self.parts = {
                    name: [bytearray(size) for size in sizes] for name, sizes in request["sizes"].items()
                }
                comm.send({"ok": True})
        except Exception as error:  # noqa: BLE001 - told to the other end
            self.fail(None, error)

    def pickle(self, names: list[str]) -> None:
        """Pickle variables, and say how large they are."""
        sizes, types = {}, {}
        for name in names:
            if name not in self.shell.user_ns:
                self.comm.send({"error": "there is no such variable", "variable": name})
                return
            value = self.shell.user_ns[name]
            buffers: list[pickle.PickleBuffer] = []
            try:
                head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
                self.parts[name] = [memoryview(head), *(buffer.raw() for buffer in buffers)]
            except Exception as error:  # noqa: BLE001 - told to the other end
                self.fail(name, error)
                return
            sizes[name] = [part.nbytes for part in self.parts[name]]
            types[name] = type(value).__name__
        self.comm.send({"sizes": sizes, "types": types})

    def on_message(self, message: dict[str, Any]) -> None:
        """Deal with one step."""
        step = message["content"]["data"]
        name = step.get("name")
        try:
            if step["op"] == "chunk":
                data = memoryview(message["buffers"][0]).cast("B")
                part = self.parts[name][step["part"]]
                part[step["offset"] : step["offset"] + data.nbytes] = data
                self.comm.send({"ok": True})
            elif step["op"] == "pull":
                data = self.parts[name][step["part"]][step["offset"] : step["offset"] + step["count"]]
                place = {"name": name, "part": step["part"], "offset": step["offset"]}
                self.comm.send(place, buffers=[data])
            elif step["op"] == "set":
                values = {}
                for name, (head, *buffers) in self.parts.items():
                    values[name] = pickle.loads(head, buffers=buffers)  # noqa: S301 - from the user
                self.parts = {}
                self.shell.user_ns.update(values)
                self.comm.send({"ok": True})
        except Exception as error:  # noqa: BLE001 - told to the other end
            self.fail(name, error)

    def fail(self, name: str | None, error: Exception) -> None:
        """Say what went wrong; nothing more is done with this comm."""
        self.parts = {}
        self.comm.send({"error": f"{type(error).__name__}: {error}", "variable": name})


def install(shell: Any) -> None:
    """Answer transfers in this kernel."""
    shell.kernel.comm_manager.register_target(
        TARGET, lambda comm, message: Transfer(shell, comm, message["content"]["data"])
    )
