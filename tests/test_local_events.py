"""Queues, workers, events and projects in the embedded API, as a real ClearML server has them."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from .local_calls import UNKNOWN, Server, add_events, add_lines, basic, default_queue, new_task
from .local_fixture import ApiRefusal

# -- queues and workers ------------------------------------------------------------------------------------


def test_next_task_stays_queued(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    assert clearml_server.call("queues.get_next_task", queue=queue_id) == {}
    first, second = new_task(clearml_server), new_task(clearml_server)
    for task_id in (first, second):
        clearml_server.call("tasks.enqueue", task=task_id)
    assert clearml_server.call("queues.move_task_to_front", queue=queue_id, task=second) == {"position": 0}
    assert clearml_server.call("queues.peek_task", queue=queue_id) == {"task": second}
    entry = clearml_server.call("queues.get_next_task", queue=queue_id, get_task_info=True)
    assert entry["entry"]["task"] == second
    assert set(entry["task_info"]) == {"company", "user"}
    assert clearml_server.task(second)["status"] == "queued"
    assert clearml_server.call("queues.remove_task", queue=queue_id, task=first) == {"removed": 1}
    with pytest.raises(ApiRefusal, match="task not in queue") as caught:
        clearml_server.call("queues.remove_task", queue=queue_id, task=first)
    assert caught.value.subcode == 703


def test_sessions_start_one_after_the_other(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    sessions = [new_task(clearml_server, type="application", system_tags=["interactive"]) for _ in range(2)]
    script = new_task(clearml_server)
    for task_id in (sessions[0], script, sessions[1]):
        clearml_server.call("tasks.enqueue", task=task_id)

    def next_task() -> str | None:
        entry = clearml_server.call("queues.get_next_task", queue=queue_id).get("entry")
        return entry and entry["task"]

    # Another server of this machine may just start a session of its own.
    assert poll(next_task) == sessions[0]
    assert next_task() == script
    assert next_task() is None
    clearml_server.call("tasks.started", task=sessions[0])
    assert next_task() is None
    clearml_server.set_properties(sessions[0], jupyter_port="8888")
    assert poll(next_task) == sessions[1]
    clearml_server.call("tasks.failed", task=sessions[1], force=True)


def poll(question: Callable[[], str | None], deadline: float = 90.0) -> str | None:
    end = time.monotonic() + deadline
    while (answer := question()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def test_queue_lists(clearml_server: Server) -> None:
    queue_id = clearml_server.call("queues.create", name="gpu queue", tags=["b", "a"])["id"]
    task_id = new_task(clearml_server, name="waiting")
    clearml_server.call("tasks.enqueue", task=task_id, queue=queue_id)
    clearml_server.call("workers.register", worker="host:0", queues=[queue_id])
    (queue,) = clearml_server.call("queues.get_all_ex", name="^gpu")["queues"]
    assert queue["tags"] == ["a", "b"]
    assert queue["entries"][0]["task"] == {"id": task_id, "name": "waiting"}
    assert [(worker["name"], worker["task"]) for worker in queue["workers"]] == [("host:0", None)]
    with pytest.raises(ApiRefusal, match="Queue is not empty") as caught:
        clearml_server.call("queues.delete", queue=queue_id)
    assert caught.value.subcode == 702
    assert clearml_server.call("queues.delete", queue=queue_id, force=True) == {"deleted": 1}
    assert clearml_server.task(task_id)["status"] == "created"


def test_workers(clearml_server: Server) -> None:
    queue_id = default_queue(clearml_server)
    task_id = new_task(clearml_server, name="busy task")
    clearml_server.call("workers.register", worker="host:0", queues=[queue_id], timeout=600)
    (idle,) = clearml_server.call("workers.get_all")["workers"]
    assert idle["queues"] == [{"id": queue_id, "name": "default"}]
    assert not {"queue", "task"} & set(idle)
    report = {"worker": "host:0", "timestamp": 1, "machine_stats": None, "tags": None}
    clearml_server.call("workers.status_report", task=task_id, queue=queue_id, **report)
    (busy,) = clearml_server.call("workers.get_all")["workers"]
    assert (busy["task"]["id"], busy["task"]["name"]) == (task_id, "busy task")
    assert busy["queue"] == {"id": queue_id, "name": "default", "num_tasks": 0}
    assert clearml_server.task(task_id)["last_worker"] == "host:0"
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call("workers.status_report", task=UNKNOWN, **report)
    assert caught.value.subcode == 101
    assert clearml_server.call("workers.get_count") == {"count": 1}
    assert clearml_server.call("workers.unregister", worker="host:0") == {}
    assert clearml_server.call("workers.unregister", worker="nobody") == {}
    assert clearml_server.call("workers.get_count") == {"count": 0}


# -- events and projects -----------------------------------------------------------------------------------


def log(server: Server, task_id: str, **body: Any) -> list[str]:
    return [event["msg"] for event in server.call("events.get_task_log", task=task_id, **body)["events"]]


def test_console(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    assert add_lines(clearml_server, task_id, "one", "two", "three") == {
        "added": 3,
        "errors": 0,
        "errors_info": {},
    }
    answer = clearml_server.call("events.get_task_log", task=task_id, batch_size=2)
    assert (answer["returned"], answer["total"]) == (2, 3)
    assert [event["msg"] for event in answer["events"]] == ["three", "two"]
    assert log(clearml_server, task_id, batch_size=2, order="asc") == ["two", "three"]
    assert log(clearml_server, task_id, navigate_earlier=False) == ["one", "two", "three"]
    assert log(clearml_server, task_id, navigate_earlier=False, from_timestamp=1000) == ["two", "three"]
    assert log(clearml_server, task_id, from_timestamp=1002) == ["two", "one"]


def test_downloaded_console(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    add_lines(clearml_server, task_id, "one", "two\n")

    def download(**body: str) -> str:
        request = urllib.request.Request(
            clearml_server.direct_api_server + "/events.download_task_log",
            json.dumps({"task": task_id, **body}).encode(),
            basic(clearml_server),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    assert [json.loads(line)["msg"] for line in download().splitlines()] == ["one", "two\n"]
    assert (
        download(line_type="text", line_format="{timestamp} {msg} {odd}")
        == "1000 one {odd}\n1001 two\n {odd}\n"
    )
    assert download(line_type="text").startswith("1970-01-01T00:00:01.000+00:00   one\n")


def test_late_lines_are_sorted_in(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    add_lines(clearml_server, task_id, "second", start=2000)
    add_lines(clearml_server, task_id, "first", start=1000)
    assert log(clearml_server, task_id, navigate_earlier=False) == ["first", "second"]


def test_bad_events(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    good = {"type": "log", "task": task_id, "msg": "x"}
    assert add_events(clearml_server, [good, {"type": "zzz", "task": task_id}]) == {
        "added": 1,
        "errors": 1,
        "errors_info": {"Invalid event type zzz": 1},
    }
    with pytest.raises(ApiRefusal, match="Events not added: Invalid task id X=1") as caught:
        add_events(clearml_server, [{"type": "log", "task": "X"}])
    assert caught.value.subcode == 131
    with pytest.raises(ApiRefusal, match="Batch request contains no items") as caught:
        add_events(clearml_server, [])
    assert caught.value.subcode == 17


def test_scalars_update_the_task(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    scalar = {"type": "training_stats_scalar", "task": task_id, "metric": "loss", "variant": "train"}
    add_events(clearml_server, [{**scalar, "iter": 1, "value": 5}, {**scalar, "iter": 7, "value": 3}])
    task = clearml_server.task(task_id)
    assert task["last_iteration"] == 7
    metric, variant = (hashlib.md5(name.encode()).hexdigest() for name in ("loss", "train"))
    last = task["last_metrics"][metric][variant]
    assert (last["value"], last["min_value"], last["max_value"]) == (3, 3, 5)
    histogram = clearml_server.call("events.scalar_metrics_iter_histogram", task=task_id)
    assert histogram["loss"]["train"] == {"name": "train", "x": [1, 7], "y": [5, 3]}


def test_projects(clearml_server: Server) -> None:
    project_id = clearml_server.call("projects.create", name="Team/Sub")["id"]
    names = {project["name"] for project in clearml_server.call("projects.get_all")["projects"]}
    assert names == {"Team", "Team/Sub"}
    with pytest.raises(ApiRefusal, match="Project with the same name already exists") as caught:
        clearml_server.call("projects.create", name="Team/Sub")
    assert caught.value.subcode == 801
    new_task(clearml_server, project=project_id)
    with pytest.raises(ApiRefusal, match="Project has associated tasks") as caught:
        clearml_server.call("projects.delete", project=project_id)
    assert caught.value.subcode == 402
    assert clearml_server.call("projects.delete", project=project_id, force=True)["disassociated_tasks"] == 1
