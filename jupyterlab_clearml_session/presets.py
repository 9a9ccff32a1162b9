"""Named launch presets and the last launch, in one small file of the Jupyter configuration directory.

Passwords are never in it. A file that cannot be read is set aside, an entry that this version does not understand
is kept as it is; either way there is a message for the user, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import InvalidInput, PresetsUnwritable, UnknownPreset
from .files import write_private
from .launch_spec import LaunchSpec

if os.name == "posix":
    import fcntl

T = TypeVar("T")

DEFAULT = "default"
"""The preset of this name, where there is one, is what a first launch starts from."""

CLI_PRESET = "clearml-session"
CLI_STATE = "~/.clearml_session.json"

_FILE = "presets.json"
_MAX_PRESETS = 500
# Names of the command line's state that are not the option's own; what is missing here has the same name.
_CLI_NAMES = {"session_name": "name", "session_tags": "tags"}
_CLI_LEFT_OUT = frozenset(
    {"password", "upload_files", "continue_session", "debugging_session", "requirements"}
)


@dataclass
class _Content:
    """The file: entries as JSON, so that one we do not understand survives."""

    presets: dict[str, Any] = field(default_factory=dict)
    last: Any = None
    messages: list[str] = field(default_factory=list)


class PresetManager:
    """The presets in ``directory``; several servers may share it. Its coroutines do their file work in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _FILE
        self._lock = asyncio.Lock()
        self._set_aside: list[str] = []

    async def to_json(self) -> dict[str, Any]:
        """Return the presets as JSON.

        ``presets`` by name, ``last`` (what was launched last, or None), ``defaults`` (what a first launch starts
        from), ``messages`` (what is wrong with the file) and ``importable`` (the command line has left its state
        here).
        """
        content = await self._do(self._read)
        presets = {name: spec for name, spec in content.presets.items() if _is_spec(spec)}
        messages = [
            *self._set_aside,
            *(
                f"The preset '{name}' cannot be used by this version."
                for name in content.presets
                if name not in presets
            ),
        ]
        defaults = _spec(presets[DEFAULT]) if DEFAULT in presets else LaunchSpec()
        return {
            "presets": {name: _spec(presets[name]).to_json() for name in sorted(presets)},
            "last": _spec(content.last).to_json() if _is_spec(content.last) else None,
            "defaults": defaults.to_json(),
            "messages": messages,
            "importable": await self._do(lambda: Path(CLI_STATE).expanduser().is_file()),
        }

    async def get(self, name: str) -> LaunchSpec:
        """Return one preset. Raises UnknownPreset."""
        content = await self._do(self._read)
        if name not in content.presets or not _is_spec(content.presets[name]):
            raise UnknownPreset(f"There is no preset '{name[:80]}'.")
        return _spec(content.presets[name])

    async def save(self, name: str, spec: LaunchSpec) -> None:
        """Store a preset, in place of one of the same name. Raises InvalidInput for a name that cannot be used."""
        # Browsers take "." and ".." out of addresses: nobody could delete such a preset again.
        usable = name.strip() not in ("", ".", "..") and len(name) <= 100
        if not usable or not name.isprintable() or "/" in name:
            raise InvalidInput(
                "The name of a preset is 1 to 100 characters in one line, without '/', and not '.' or '..'.",
                field="name",
            )

        def put(content: _Content) -> None:
            if name not in content.presets and len(content.presets) >= _MAX_PRESETS:
                raise InvalidInput(
                    f"There are {_MAX_PRESETS} presets already; delete one first.", field="name"
                )
            content.presets[name] = spec.to_json()

        await self._change(put)

    async def delete(self, name: str) -> None:
        """Delete a preset. Raises UnknownPreset."""

        def drop(content: _Content) -> None:
            if name not in content.presets:
                raise UnknownPreset(f"There is no preset '{name[:80]}'.")
            del content.presets[name]

        await self._change(drop)

    async def remember(self, spec: LaunchSpec) -> None:
        """Note what was launched. A disk that is full is no reason for a launch to fail: nothing is raised then."""

        def note(content: _Content) -> None:
            content.last = spec.to_json()

        with contextlib.suppress(PresetsUnwritable):
            await self._change(note)

    async def import_cli(self, path: Path | None = None) -> tuple[LaunchSpec, list[str]]:
        """Store what the command line remembered as `CLI_PRESET`; return it, and the entries that it cannot hold.

        Its password is never taken. Raises UnknownPreset where the command line has left nothing, and InvalidInput
        where that cannot be read.
        """
        state_file = path or Path(CLI_STATE)
        try:
            state = json.loads(await self._do(lambda: state_file.expanduser().read_text(encoding="utf-8")))
        except PresetsUnwritable:
            raise UnknownPreset(f"clearml-session has left no {state_file.name} that can be read.") from None
        except ValueError:
            raise InvalidInput(f"{state_file.name} is not a file of clearml-session.", field="path") from None
        if not isinstance(state, dict):
            raise InvalidInput(f"{state_file.name} is not a file of clearml-session.", field="path")
        spec, refused = spec_of_cli(state)
        await self.save(CLI_PRESET, spec)
        return spec, refused

    # -- the file --------------------------------------------------------------------------------------

    async def _do(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(function)
        except OSError as error:
            raise PresetsUnwritable(f"The presets cannot be read or written: {error.strerror}.") from None

    async def _change(self, change: Callable[[_Content], None]) -> None:
        def work() -> None:
            with self._exclusive():
                content = self._read()
                change(content)
                body = {"version": 1, "presets": content.presets, "last": content.last}
                write_private(self._path, json.dumps(body, indent=2, sort_keys=True) + "\n")

        async with self._lock:
            await self._do(work)

    def _read(self) -> _Content:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return _Content()
        except UnicodeDecodeError:
            return self._put_aside()
        try:
            body = json.loads(text)
            presets = body["presets"]
        except (ValueError, KeyError, TypeError):
            return self._put_aside()
        if not isinstance(presets, dict):
            return self._put_aside()
        return _Content(presets, body.get("last"))

    def _put_aside(self) -> _Content:
        aside = self._path.with_name(f"{_FILE}.broken-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):  # another server was faster
            self._path.rename(aside)
            self._set_aside.append(f"The file of the presets could not be read. It was kept as {aside.name}.")
        return _Content()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other servers from writing between our reading and writing (advisory; POSIX only)."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name != "posix":
            yield
            return
        descriptor = os.open(self._directory / ".presets.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def spec_of_cli(state: Mapping[str, Any]) -> tuple[LaunchSpec, list[str]]:
    """Return the LaunchSpec that the command line's state stands for, and the names of entries that are no good."""
    known = LaunchSpec().to_json()
    values: dict[str, Any] = {}
    refused: list[str] = []
    for key, found in state.items():
        name, value = _CLI_NAMES.get(key, key), found
        if key == "skip_docker_network":
            name, value = "docker_network", "none" if found else "host"
        if name not in known or key in _CLI_LEFT_OUT or value is None:
            continue
        try:
            LaunchSpec.from_json({name: value})
        except InvalidInput:
            refused.append(key)
        else:
            values[name] = value
    return LaunchSpec.from_json(values), sorted(refused)


def _spec(body: Any) -> LaunchSpec:
    return LaunchSpec.from_json(body)


def _is_spec(body: Any) -> bool:
    try:
        LaunchSpec.from_json(body)
    except InvalidInput:
        return False
    return True
