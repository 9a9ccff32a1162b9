"""Of the sessions on one machine, one starts at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jupyterlab_clearml_session.local.api import admission
from jupyterlab_clearml_session.local.api.admission import Admission
from jupyterlab_clearml_session.local.api.store import Store


def session(store: Store, task_id: str, *, jupyter: str = "True") -> dict[str, Any]:
    store.tasks[task_id] = {
        "id": task_id,
        "status": "queued",
        "system_tags": ["interactive"],
        "hyperparams": {
            "interactive_session": {"jupyterlab": {"value": jupyter}},
            "properties": {"jupyter_port": {"value": ""}, "internal_ssh_port": {"value": ""}},
        },
    }
    return store.tasks[task_id]


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def test_ordinary_tasks_always_go(lock_file: Path) -> None:
    store = Store()
    gate = Admission(store, lock_file)
    store.tasks["t"] = {"id": "t", "status": "queued", "system_tags": []}
    session(store, "s")
    assert gate.admit("s")
    assert gate.admit("t")
    assert gate.admit("deleted meanwhile")
    gate.close()


@pytest.mark.parametrize(("jupyter", "published"), [("True", "jupyter_port"), ("False", "internal_ssh_port")])
def test_the_turn_ends_with_the_port(lock_file: Path, jupyter: str, published: str) -> None:
    store = Store()
    gate = Admission(store, lock_file)
    first = session(store, "first", jupyter=jupyter)
    session(store, "second")
    assert gate.admit("first")
    assert not gate.admit("second")
    first["status"] = "in_progress"
    assert not gate.admit("second")
    first["hyperparams"]["properties"][published]["value"] = "8888"
    assert gate.admit("second")
    gate.close()


@pytest.mark.parametrize("ending", ["failed", "stopped", "deleted", "too long"])
def test_the_turn_ends_with_the_session(
    lock_file: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    gate = Admission(store, lock_file)
    if ending == "too long":
        monkeypatch.setattr(admission, "_LONGEST_START_S", 0.0)
    session(store, "first")
    session(store, "second")
    assert gate.admit("first")
    if ending == "deleted":
        del store.tasks["first"]
    elif ending != "too long":
        store.tasks["first"]["status"] = ending
    assert gate.admit("second")
    gate.close()


def test_two_servers_take_turns(lock_file: Path) -> None:
    stores = [Store(), Store()]
    one, other = (Admission(store, lock_file) for store in stores)
    for store in stores:
        session(store, "s")
    assert one.admit("s")
    assert not other.admit("s")
    stores[0].tasks["s"]["status"] = "failed"
    one.refresh()
    assert other.admit("s")
    other.close()
    session(stores[0], "t")
    assert one.admit("t")
    one.close()
