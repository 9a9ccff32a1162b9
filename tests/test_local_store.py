"""What survives a restart of the embedded server."""

from __future__ import annotations

import stat
from pathlib import Path

from jupyterlab_clearml_session.local.api.events import EventLog
from jupyterlab_clearml_session.local.api.store import Store


def test_documents_survive(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = Store(path)
    queue = store.add_queue("another")
    store.tasks["t"] = {"id": "t", "name": "a task", "runtime": {"_ssh_password": "x"}}
    store.changed()
    store.save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Store(path)
    assert again.tasks == store.tasks
    assert again.queue(queue["id"])["name"] == "another"
    assert len(again.queues) == 2


def test_saves_only_changes(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = Store(path)
    store.save()
    path.unlink()
    store.save()
    assert not path.exists()
    store.changed()
    store.save()
    assert path.exists()


def test_a_torn_write_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = Store(path)
    store.save()
    (tmp_path / "store.tmp").write_text('{"tasks": {"half')
    assert Store(path).default_queue() == store.default_queue()


def test_events_survive_and_are_forgotten(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    log.add("t", [{"type": "log", "msg": "one", "timestamp": 1}])
    log.add("t", [{"type": "log", "msg": "two", "timestamp": 2}])
    with (tmp_path / "events" / "t.jsonl").open("a") as file:
        file.write('{"type": "log", "msg": "torn')
    again = EventLog(tmp_path / "events")
    assert [event["msg"] for event in again.of("t")] == ["one", "two"]
    again.forget("t")
    assert EventLog(tmp_path / "events").of("t") == []


def test_uploads_are_found_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = Store(path)
    store.files_moved("http://127.0.0.1:1000")
    uris = ["http://127.0.0.1:1000/project/snapshot.tar.gz", "s3://bucket/x", "http://127.0.0.1:10001/other"]
    store.tasks["t"] = {"id": "t", "execution": {"artifacts": [{"key": uri, "uri": uri} for uri in uris]}}
    store.models["m"] = {"id": "m", "uri": uris[0]}
    store.save()
    again = Store(path)
    again.files_moved("http://127.0.0.1:2000")
    moved = "http://127.0.0.1:2000/project/snapshot.tar.gz"
    assert [item["uri"] for item in again.tasks["t"]["execution"]["artifacts"]] == [moved, *uris[1:]]
    assert again.models["m"]["uri"] == moved
