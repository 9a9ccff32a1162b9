"""Presets: kept, private, and never lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from jupyterlab_clearml_session.errors import InvalidInput, PresetsUnwritable, UnknownPreset
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.presets import PresetManager, spec_of_cli

SPEC = LaunchSpec.from_json({"queue": "gpu", "packages": ["torch"], "env": {"A": "1"}, "password": "hunter2"})


def _file(directory: Path) -> Path:
    return directory / "presets.json"


async def test_a_preset_is_there_for_the_next_server(tmp_path: Path) -> None:
    directory = tmp_path / "config"
    await PresetManager(directory).save("big one", SPEC)
    again = PresetManager(directory)
    assert await again.get("big one") == SPEC.replace(password="")
    assert list((await again.to_json())["presets"]) == ["big one"]
    await again.delete("big one")
    with pytest.raises(UnknownPreset):
        await again.get("big one")
    with pytest.raises(UnknownPreset):
        await again.delete("big one")


async def test_nothing_yet(tmp_path: Path) -> None:
    shown = await PresetManager(tmp_path / "none").to_json()
    assert shown["presets"] == {}
    assert shown["last"] is None
    assert shown["defaults"] == LaunchSpec().to_json()
    assert shown["messages"] == []
    assert not (tmp_path / "none").exists()  # reading makes nothing


async def test_the_file_is_private_and_holds_no_password(tmp_path: Path) -> None:
    manager = PresetManager(tmp_path)
    await manager.save("one", SPEC)
    await manager.remember(SPEC)
    assert _file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert "hunter2" not in _file(tmp_path).read_text()
    assert "password" not in _file(tmp_path).read_text()


async def test_last_and_defaults(tmp_path: Path) -> None:
    manager = PresetManager(tmp_path)
    await manager.remember(SPEC)
    await manager.save("default", LaunchSpec(queue="cpu"))
    shown = await manager.to_json()
    assert shown["last"]["queue"] == "gpu"
    assert shown["defaults"]["queue"] == "cpu"


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b'"text"', b'{"presets": []}', b"\xff\xfe\x00", b'{"other": 1}']
)
async def test_a_broken_file_is_set_aside_and_kept(tmp_path: Path, broken: bytes) -> None:
    _file(tmp_path).write_bytes(broken)
    manager = PresetManager(tmp_path)
    shown = await manager.to_json()
    assert shown["presets"] == {}
    (message,) = shown["messages"]
    (aside,) = tmp_path.glob("presets.json.broken-*")
    assert aside.name in message
    assert aside.read_bytes() == broken
    await manager.save("new", SPEC)  # and it works again
    assert aside.read_bytes() == broken


async def test_an_entry_of_another_version_survives(tmp_path: Path) -> None:
    foreign = {"queue": "gpu", "teleport": True}
    _file(tmp_path).write_text(json.dumps({"version": 9, "presets": {"future": foreign}, "last": foreign}))
    manager = PresetManager(tmp_path)
    shown = await manager.to_json()
    assert shown["presets"] == {}
    assert shown["last"] is None
    assert "future" in shown["messages"][0]
    with pytest.raises(UnknownPreset):
        await manager.get("future")
    await manager.save("mine", SPEC)
    assert json.loads(_file(tmp_path).read_text())["presets"]["future"] == foreign


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\nb", "x" * 101])
async def test_names_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await PresetManager(tmp_path).save(name, SPEC)
    assert caught.value.detail["field"] == "name"


async def test_two_servers_at_once_lose_nothing(tmp_path: Path) -> None:
    managers = [PresetManager(tmp_path) for _ in range(4)]
    await asyncio.gather(
        *(manager.save(f"{number}-{n}", SPEC) for number, manager in enumerate(managers) for n in range(5))
    )
    assert len((await managers[0].to_json())["presets"]) == 20


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    manager = PresetManager(tmp_path / "file" / "presets")
    with pytest.raises(PresetsUnwritable):
        await manager.save("one", SPEC)
    await manager.remember(SPEC)  # a launch does not fail for it


CLI_STATE = {
    "__version__": "0.17.0",
    "base_task_id": None,
    "debugging_session": "0" * 32,
    "disable_session_cleanup": True,
    "docker": "python:3.11",
    "git_credentials": True,
    "init_script": "echo hi\n",
    "jupyter_lab": True,
    "keepalive": False,
    "packages": ["torch==2.5", "tqdm"],
    "password": "hunter2",
    "queue": "gpu",
    "remote_ssh_port": "not a port",
    "session_name": "My session",
    "session_tags": ["a", "b"],
    "skip_docker_network": True,
    "task_id": "1" * 32,
    "username": "someone",
    "vscode_server": False,
}


def test_the_command_line_s_state_becomes_a_spec() -> None:
    spec, refused = spec_of_cli(CLI_STATE)
    assert refused == ["remote_ssh_port"]
    assert spec == LaunchSpec.from_json(
        {
            "docker": "python:3.11",
            "git_credentials": True,
            "init_script": "echo hi\n",
            "packages": ["torch==2.5", "tqdm"],
            "queue": "gpu",
            "name": "My session",
            "tags": ["a", "b"],
            "docker_network": "none",
            "username": "someone",
            "vscode_server": False,
        }
    )


async def test_import_from_the_command_line(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps(CLI_STATE))
    manager = PresetManager(tmp_path / "config")
    spec, _ = await manager.import_cli(state)
    assert await manager.get("clearml-session") == spec
    assert spec.password == ""
    assert "hunter2" not in _file(tmp_path / "config").read_text()
    with pytest.raises(UnknownPreset):
        await manager.import_cli(tmp_path / "none.json")
    for nonsense in ("{", "[]", "7"):
        state.write_text(nonsense)
        with pytest.raises(InvalidInput):
            await manager.import_cli(state)
