"""``--in`` and ``--out``: named variables between this kernel and one on a session.

Pickle protocol 5 with its buffers out of band: the data of an array goes from its own memory into the messages and
from them into the new array, with no copy in between that we make. It travels as binary buffers of comm messages,
in chunks, a bounded number of them under way: memory on the way stays bounded, and Ctrl-C is answered.
"""

from __future__ import annotations

import inspect
import pickle
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..errors import TransferFailed, TransferTooLarge, WaitInterrupted
from . import there
from .displays import size
from .link import interrupts
from .remote_kernel import RemoteKernel

LIMIT = 256_000_000
"""Bytes that are moved in one direction without ``--force``."""
CHUNK = 2_000_000
"""Bytes in a message."""
WINDOW = 16
"""Chunks under way: 32 MB, so that a link of 50 ms round trip can carry 640 MB/s."""

TELL = 0.5
"""Seconds between two lines about how far it is."""

Show = Callable[[str], None]
"""Shows a text in place of the one before."""


@dataclass
class _Variable:
    """A pickled variable: ``parts`` are the pickle, then its buffers."""

    name: str
    kind: str
    parts: list[memoryview]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(part.nbytes for part in self.parts)

    def chunks(self) -> Iterator[tuple[int, int, int]]:
        """Yield part, offset and length of every chunk."""
        for number, part in enumerate(self.parts):
            for offset in range(0, part.nbytes, CHUNK):
                yield number, offset, min(CHUNK, part.nbytes - offset)


def take(
    kernel: RemoteKernel, names: Sequence[str], namespace: Mapping[str, Any], *, force: bool, show: Show
) -> None:
    """Copy variables of ``namespace`` to the remote kernel.

    Raises TransferFailed (and TransferTooLarge before anything is sent), WaitInterrupted.
    """
    variables = [_pickled(name, namespace) for name in names]
    _check_size({variable.name: variable.size for variable in variables}, force)
    _check_language(kernel)
    began = time.monotonic()
    progress = _Progress(f"to {kernel.where}", sum(variable.size for variable in variables), show)
    with _Talk(kernel) as talk:
        talk.open({"op": "put", "sizes": {v.name: [p.nbytes for p in v.parts] for v in variables}})
        talk.expect()
        for variable in variables:
            for part, offset, count in variable.chunks():
                step = {"op": "chunk", "name": variable.name, "part": part, "offset": offset}
                talk.send(step, variable.parts[part][offset : offset + count])
                progress.add(count)
        talk.send({"op": "set"})
        talk.finish()
    show(_summary("to", kernel, variables, time.monotonic() - began))


def bring(kernel: RemoteKernel, names: Sequence[str], *, force: bool, show: Show) -> dict[str, Any]:
    """Return copies of variables of the remote kernel.

    They are unpickled here, so the remote machine is trusted as much as the code of the cell. Raises
    TransferFailed (and TransferTooLarge before anything is sent), WaitInterrupted.
    """
    _check_language(kernel)
    began = time.monotonic()
    with _Talk(kernel) as talk:
        talk.open({"op": "get", "names": list(names)})
        answer, _ = talk.expect()
        _check_size({name: sum(sizes) for name, sizes in answer["sizes"].items()}, force)
        variables = [
            _Variable(name, answer["types"][name], [memoryview(bytearray(n)) for n in sizes])
            for name, sizes in answer["sizes"].items()
        ]
        progress = _Progress(f"from {kernel.where}", sum(variable.size for variable in variables), show)
        by_name = {variable.name: variable for variable in variables}

        def fill(data: Mapping[str, Any], buffers: Sequence[memoryview]) -> None:
            target = by_name[data["name"]].parts[data["part"]]
            target[data["offset"] : data["offset"] + buffers[0].nbytes] = buffers[0].cast("B")
            progress.add(buffers[0].nbytes)

        talk.on_answer = fill
        for variable in variables:
            for part, offset, count in variable.chunks():
                place = {"op": "pull", "name": variable.name, "part": part, "offset": offset, "count": count}
                talk.send(place)
        talk.finish()
    values = {variable.name: _unpickled(variable) for variable in variables}
    show(_summary("from", kernel, variables, time.monotonic() - began))
    return values


class _Progress:
    def __init__(self, what: str, total: int, show: Show) -> None:
        self._what, self._total, self._show = what, total, show
        self._moved = 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        """Note that so many bytes were moved, and show it now and then."""
        self._moved += count
        if time.monotonic() - self._told >= TELL:
            self._told = time.monotonic()
            self._show(f"{self._what}: {size(self._moved)} of {size(self._total)}")


class _Talk:
    """A comm with `there`: steps out, one answer to each, at most `WINDOW` not answered."""

    def __init__(self, kernel: RemoteKernel) -> None:
        self.on_answer: Callable[[Mapping[str, Any], Sequence[memoryview]], None] = lambda data, buffers: None
        self._kernel = kernel
        self._id = uuid.uuid4().hex
        self._answers: deque[tuple[Mapping[str, Any], Sequence[memoryview]]] = deque()
        self._open = 0
        self._opened = False
        self._refused = False
        self._wake: int | None = None
        self._taken: Callable[[], int] = lambda: 0
        self._context = ExitStack()
        kernel.on_comm[self._id] = self._heard

    def __enter__(self) -> _Talk:
        # Ctrl-C is looked at between two steps: in the middle of one it would leave half a message behind.
        self._wake, self._taken = self._context.enter_context(interrupts())
        return self

    def __exit__(self, *raised: object) -> None:
        """End the comm; answers that still come are dropped."""
        self._context.close()
        self._kernel.on_comm[self._id] = lambda message: None
        if self._opened and not self._refused:
            self._kernel.send_comm("comm_close", {"comm_id": self._id, "data": {}})
        self._kernel.listen_late()

    def open(self, data: Mapping[str, Any]) -> None:
        self._kernel.run_hidden(_INSTALL)
        self._opened = True
        self._open += 1
        content = {"comm_id": self._id, "target_name": there.TARGET, "data": data}
        self._kernel.send_comm("comm_open", content)

    def send(self, data: Mapping[str, Any], buffer: memoryview | None = None) -> None:
        while self._open >= WINDOW:
            self.on_answer(*self.expect())
        if self._taken():
            raise _interrupted()
        self._open += 1
        content = {"comm_id": self._id, "data": data}
        self._kernel.send_comm("comm_msg", content, [] if buffer is None else [buffer])

    def expect(self) -> tuple[Mapping[str, Any], Sequence[memoryview]]:
        """Return the next answer. Raises TransferFailed where it is an error."""
        if not self._answers:
            heard = self._kernel.pump(lambda: bool(self._answers) or self._refused, self._wake, self._taken)
            if not heard:
                raise _interrupted()
        if not self._answers:
            raise TransferFailed("The remote kernel does not take variables.", variable=None)
        self._open -= 1
        data, buffers = self._answers.popleft()
        if "error" in data:
            name = data.get("variable")
            which = f"{name!r}" if name else "A variable"
            raise TransferFailed(
                f"{which} cannot be moved; on {self._kernel.where}: {data['error']}.", variable=name
            )
        return data, buffers

    def finish(self) -> None:
        while self._open:
            self.on_answer(*self.expect())

    def _heard(self, message: dict[str, Any]) -> None:
        if message["msg_type"] == "comm_close":
            self._refused = True
        elif message["msg_type"] == "comm_msg":
            self._answers.append((message["content"]["data"], message["buffers"]))


def _interrupted() -> WaitInterrupted:
    return WaitInterrupted("Moving variables was interrupted.", hint="Nothing was changed by it.")


def _pickled(name: str, namespace: Mapping[str, Any]) -> _Variable:
    if name not in namespace:
        raise TransferFailed(f"There is no variable {name!r} here.", variable=name)
    value = namespace[name]
    buffers: list[pickle.PickleBuffer] = []
    try:
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    except Exception as error:  # noqa: BLE001 - a class may raise anything while it is pickled
        raise TransferFailed(
            f"{name!r} cannot be pickled: {type(error).__name__}: {error}.", variable=name
        ) from None
    return _Variable(name, type(value).__name__, parts)


def _unpickled(variable: _Variable) -> Any:
    head, *buffers = variable.parts
    try:
        return pickle.loads(head, buffers=buffers)  # noqa: S301 - the user asked for it, see `bring`
    except Exception as error:  # noqa: BLE001 - as above
        raise TransferFailed(
            f"{variable.name!r} cannot be unpickled here: {type(error).__name__}: {error}.",
            hint="Its class must be importable here too.",
            variable=variable.name,
        ) from None


def _check_size(sizes: Mapping[str, int], force: bool) -> None:
    total = sum(sizes.values())
    if total > LIMIT and not force:
        listed = ", ".join(f"{name} {size(count)}" for name, count in sizes.items())
        raise TransferTooLarge(
            f"{size(total)} is more than the {size(LIMIT)} that are moved without being forced: {listed}.",
            variable=max(sizes, key=lambda name: sizes[name]),
            bytes=total,
            limit=LIMIT,
        )


def _check_language(kernel: RemoteKernel) -> None:
    if kernel.language != "python":
        raise TransferFailed(
            f"Variables move between Python kernels only; this one runs {kernel.language or 'another language'}.",
            variable=None,
        )


def _summary(direction: str, kernel: RemoteKernel, variables: Sequence[_Variable], seconds: float) -> str:
    total = sum(variable.size for variable in variables)
    listed = ", ".join(f"{v.name} ({v.kind}, {size(v.size)})" for v in variables)
    rate = f", {size(int(total / seconds))}/s" if total > CHUNK else ""
    return f"{direction} {kernel.where}: {listed} in {seconds:.2f} s{rate}"


_INSTALL = (
    f"(lambda space: (exec({inspect.getsource(there)!r}, space), space['install'](get_ipython())))({{}})"
    " and None"
)
