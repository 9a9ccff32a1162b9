"""What a remote kernel says, shown here: streams, displays and their updates, results, and comms (widgets)."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]

_PARENTS_KEPT = 1000


class Outputs:
    """Shows the output of one remote kernel in this IPython.

    A message belongs to the local cell (or widget event) that caused it: `begin` notes which. In a Jupyter kernel
    later output of an earlier cell goes to that cell; a terminal has one place only.
    """

    def __init__(self, shell: Any, kernel_id: str, client: str) -> None:
        """``client`` is the session id by which the remote kernel knows us."""
        self._shell = shell
        self._client = client
        self._kernel = getattr(shell, "kernel", None)
        self._prefix = f"clearml-{kernel_id[:8]}-"
        self._parents: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._current: str | None = None
        self._last: Mapping[str, Any] | None = None
        self._stream = ""
        self._errors: list[Mapping[str, Any]] = []
        """Tracebacks that wait: the last one may be the end of the cell, which the local cell shows as its own."""

    def begin(self, message_id: str, parent: Mapping[str, Any]) -> None:
        """Output of ``message_id`` is that of the local cell that runs now and has the header ``parent``."""
        self.expect(message_id, parent)
        self._current, self._last = message_id, parent
        self._stream = ""

    def expect(self, message_id: str, parent: Mapping[str, Any]) -> None:
        """Output of ``message_id`` belongs to the local request with the header ``parent``."""
        self._parents[message_id] = parent
        self._parents.move_to_end(message_id)
        while len(self._parents) > _PARENTS_KEPT:
            self._parents.popitem(last=False)

    def end(self, reply: Mapping[str, Any]) -> None:
        """What comes from now on comes late. ``reply`` is what the cell ended with."""
        self._errors = [each for each in self._errors if each.get("traceback") != reply.get("traceback")]
        self._show_errors()
        self.flush()
        self._current = None

    def flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def show(self, message: Message) -> None:
        """Show a message of the remote IOPub channel; kinds that show nothing are ignored."""
        show = self._shown().get(message["msg_type"])
        parent_id = message["parent_header"].get("msg_id", "")
        parent = self._parent(message)
        if show is None or (parent is None and message["msg_type"] not in _WITHOUT_PARENT):
            return
        if message["msg_type"] == "error" and parent_id not in self._parents:
            return  # code of ours failed, which is told in another way
        if self._kernel is not None and parent_id != self._current:
            self._show_late(message, parent or {})
            return
        show(message["content"], message)

    def _parent(self, message: Message) -> Mapping[str, Any] | None:
        """Return the header of the local request that a message belongs to, None where it is not for us."""
        header = message["parent_header"]
        known = self._parents.get(header.get("msg_id", ""))
        if known is None and header.get("session") == self._client:
            # A thread prints in the name of whatever was asked of its kernel last: that may be a request which
            # stands for no cell (moving a variable, a sign of life).
            return self._last
        return known

    def _shown(self) -> Mapping[str, Callable[[Mapping[str, Any], Message], None]]:
        return {
            "stream": self._show_stream,
            "display_data": self._show_display,
            "update_display_data": self._show_display,
            "execute_result": self._show_result,
            "error": self._hold_error,
            "clear_output": self._clear,
            "comm_open": self._comm,
            "comm_msg": self._comm,
            "comm_close": self._comm,
        }

    def _show_stream(self, content: Mapping[str, Any], message: Message) -> None:
        name = "stderr" if content.get("name") == "stderr" else "stdout"
        if self._stream not in ("", name):
            self.flush()  # the two are buffered apart, and would change their order
        self._stream = name
        getattr(sys, name).write(content.get("text", ""))

    def _show_display(self, content: Mapping[str, Any], message: Message) -> None:
        self._shell.display_pub.publish(
            content["data"],
            content.get("metadata") or {},
            transient=self._transient(content),
            update=message["msg_type"] == "update_display_data",
        )

    def _show_result(self, content: Mapping[str, Any], message: Message) -> None:
        publisher = self._shell.display_pub
        if not hasattr(publisher, "pub_socket"):  # a terminal, or captured
            publisher.publish(content["data"], content.get("metadata") or {})
            return
        self.flush()
        self._send("execute_result", self._local_result(content), publisher.parent_header)

    def _clear(self, content: Mapping[str, Any], message: Message) -> None:
        self._shell.display_pub.clear_output(wait=bool(content.get("wait")))

    def _comm(self, content: Mapping[str, Any], message: Message) -> None:
        if self._kernel is not None:
            # An output widget takes what comes between two of these: nothing may wait in a buffer meanwhile.
            self._show_errors()
            self.flush()
            self._pass_on(message, self._parent(message) or {})

    def _hold_error(self, content: Mapping[str, Any], message: Message) -> None:
        self._errors.append(content)

    def _show_errors(self) -> None:
        for content in self._errors:
            self.flush()
            if self._kernel is None:
                sys.stdout.write("\n".join(content.get("traceback") or ()) + "\n")
            else:
                self._send("error", content, self._parents.get(self._current or "", {}))
        self._errors.clear()

    def _show_late(self, message: Message, parent: Mapping[str, Any]) -> None:
        """Send a message under the header of the cell that it belongs to, which is not the running one."""
        content, kind = message["content"], message["msg_type"]
        if kind in ("display_data", "update_display_data"):
            content = {**content, "transient": self._transient(content)}
        elif kind == "execute_result":
            content = self._local_result(content)
        elif kind.startswith("comm_"):
            self._pass_on(message, parent)
            return
        self._send(kind, content, parent)

    def _pass_on(self, message: Message, parent: Mapping[str, Any]) -> None:
        topic = f"comm-{message['content'].get('comm_id', '')}".encode()
        self._send(
            message["msg_type"],
            message["content"],
            parent,
            topic=topic,
            metadata=message["metadata"],
            buffers=message["buffers"],
        )

    def _send(
        self,
        kind: str,
        content: Mapping[str, Any],
        parent: Mapping[str, Any],
        *,
        topic: bytes | None = None,
        metadata: Mapping[str, Any] | None = None,
        buffers: Any = None,
    ) -> None:
        kernel = self._kernel
        assert kernel is not None
        kernel.session.send(
            kernel.iopub_socket,
            kind,
            dict(content),
            parent=dict(parent),
            ident=topic or kind.encode(),
            metadata=dict(metadata or {}),
            buffers=list(buffers or ()),
        )

    def _local_result(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {**content, "execution_count": self._shell.displayhook.prompt_count, "transient": {}}

    def _transient(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the transient part, its display id made one of this kernel only: it may be used here too."""
        transient = dict(content.get("transient") or {})
        if "display_id" in transient:
            transient["display_id"] = f"{self._prefix}{transient['display_id']}"
        return transient


# The state of a widget belongs to no cell; an update of a display goes to wherever the display is.
_WITHOUT_PARENT = ("comm_msg", "comm_close", "update_display_data")
