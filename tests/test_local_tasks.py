"""Tasks in the embedded API: reading, changing, and their status machine, as a real ClearML server has it."""

from __future__ import annotations

from typing import Any

import pytest

from .local_calls import UNKNOWN, Server, add_lines, bring_to, default_queue, new_task
from .local_fixture import ApiRefusal

# -- tasks: reading and changing ---------------------------------------------------------------------------


def test_a_fresh_task_has_all_its_parts(clearml_server: Server) -> None:
    task_id = new_task(
        clearml_server,
        tags=["b", "a"],
        script={"entry_point": "a.py", "diff": "print(1)"},
        hyperparams={"Args": {"lr": {"value": "0.1", "type": "float"}}},
        configuration={"General": {"value": "{a:1}", "type": "json"}},
        runtime={"k": 2},
        container={"image": "py"},
    )
    task = clearml_server.task(task_id)
    assert task["status"] == "created"
    assert task["tags"] == ["a", "b"]
    assert task["script"] == {"requirements": {}, "entry_point": "a.py", "diff": "print(1)"}
    assert task["hyperparams"]["Args"]["lr"] == {
        "section": "Args",
        "name": "lr",
        "value": "0.1",
        "type": "float",
    }
    assert task["configuration"]["General"] == {"name": "General", "value": "{a:1}", "type": "json"}
    assert task["runtime"] == {"k": 2}
    assert task["execution"] == {
        "test_split": 0,
        "parameters": {},
        "model_desc": {},
        "model_labels": {},
        "artifacts": [],
    }
    assert task["models"] == {"input": [], "output": []}
    assert "started" not in task
    assert task["created"].endswith("000+00:00")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["name"], {"name": "a task"}),
        (["execution.queue"], {"execution": {}}),
        (["script.entry_point"], {"script": {"entry_point": "a.py"}}),
        (["status", "runtime.k"], {"status": "created", "runtime": {"k": "v"}}),
    ],
)
def test_only_fields(clearml_server: Server, only: list[str], expected: dict[str, Any]) -> None:
    new_task(clearml_server, script={"entry_point": "a.py"}, runtime={"k": "v", "other": "x"})
    assert clearml_server.call("tasks.get_all", only_fields=only)["tasks"] == [expected]


def test_excluded_fields(clearml_server: Server) -> None:
    new_task(clearml_server)
    (task,) = clearml_server.call("tasks.get_all", only_fields=["-script"])["tasks"]
    assert "script" not in task
    assert "name" in task


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"one", "two"}),
        ({"name": "^one$"}, {"one"}),
        ({"tags": ["a"]}, {"one"}),
        ({"tags": ["a", "c"]}, {"one", "two"}),
        ({"tags": ["-a"]}, {"two"}),
        ({"tags": ["__$all", "a", "b"]}, {"one"}),
        ({"tags": ["__$all", "a", "c"]}, set()),
        ({"tags": ["__$any", "a", "c"]}, {"one", "two"}),
        ({"status": ["in_progress"]}, {"two"}),
        ({"status": ["created", "in_progress"]}, {"one", "two"}),
        ({"status": ["nonsense"]}, set()),
        ({"id": [UNKNOWN]}, set()),
        ({"type": ["training"], "status": ["created"]}, {"one"}),
        ({"nonsense": ["x"]}, {"one", "two"}),
        ({"status_changed": [">2020-01-01T00:00:00"]}, {"two"}),
        ({"status_changed": [">=2020-01-01T00:00:00", "<2021-01-01T00:00:00"]}, set()),
        ({"_any_": {"pattern": "TW", "fields": ["name", "comment"]}}, {"two"}),
        ({"_all_": {"pattern": "o", "fields": ["name", "comment"]}}, set()),
        ({"search_text": "one"}, {"one"}),
    ],
)
def test_filters(clearml_server: Server, filters: dict[str, Any], found: set[str]) -> None:
    new_task(clearml_server, name="one", tags=["a", "b"])
    second = new_task(clearml_server, name="two", tags=["b", "c"])
    clearml_server.call("tasks.started", task=second)
    answer = clearml_server.call("tasks.get_all", only_fields=["name"], **filters)
    assert {task["name"] for task in answer["tasks"]} == found


def test_order_and_pages(clearml_server: Server) -> None:
    for name in ("bbb", "aaa", "ccc"):
        new_task(clearml_server, name=name)

    def names(**body: Any) -> list[str]:
        tasks = clearml_server.call("tasks.get_all", only_fields=["name"], **body)["tasks"]
        return [task["name"] for task in tasks]

    assert names(order_by=["name"]) == ["aaa", "bbb", "ccc"]
    assert names(order_by=["-name"]) == ["ccc", "bbb", "aaa"]
    assert names(order_by=["name"], page=1, page_size=2) == ["ccc"]
    # A field that is unset on all of them changes nothing.
    assert len(names(order_by=["-started"])) == 3


def test_references_and_scroll(clearml_server: Server) -> None:
    project = clearml_server.call("projects.create", name="Some project")["id"]
    ids = {new_task(clearml_server, name=f"task {number}", project=project) for number in range(3)}
    seen: set[str] = set()
    scroll = ""
    for size in (2, 1, 0):
        answer = clearml_server.call(
            "tasks.get_all_ex", scroll_id=scroll, size=2, only_fields=["id", "project"]
        )
        assert len(answer["tasks"]) == size
        assert all(task["project"] == {"id": project, "name": "Some project"} for task in answer["tasks"])
        seen |= {task["id"] for task in answer["tasks"]}
        scroll = answer["scroll_id"]
    assert seen == ids


def test_edit_needs_a_draft_or_force(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"}, script={"entry_point": "a.py"})
    clearml_server.call("tasks.edit", task=task_id, runtime={"b": "2"}, script={"diff": "x"})
    task = clearml_server.task(task_id)
    assert task["runtime"] == {"b": "2"}
    assert task["script"]["entry_point"] == "a.py"
    assert task["script"]["diff"] == "x"
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal, match="expected=created, status=queued") as caught:
        clearml_server.call("tasks.edit", task=task_id, comment="x")
    assert caught.value.subcode == 110
    assert (
        clearml_server.call("tasks.edit", task=task_id, comment="x", force=True)["fields"]["comment"] == "x"
    )


def test_update_changes_light_fields_only(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    answer = clearml_server.call("tasks.update", task=task_id, name="new name", status="failed")
    assert answer["updated"] == 1
    assert answer["fields"]["name"] == "new name"
    assert "status" not in answer["fields"]
    assert clearml_server.call("tasks.update", task=task_id, status="failed") == {"updated": 0, "fields": {}}


def test_legacy_model_design_becomes_configuration(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.edit", task=task_id, execution={"model_desc": {"design": "x=1"}})
    assert clearml_server.task(task_id)["configuration"] == {
        "design": {"name": "design", "value": "x=1", "type": "legacy"}
    }


def test_hyper_parameters(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)

    def edit(section: str, name: str, value: str, **more: Any) -> None:
        item = {"section": section, "name": name, "value": value}
        assert clearml_server.call("tasks.edit_hyper_params", task=task_id, hyperparams=[item], **more) == {
            "updated": 1
        }

    def params() -> set[tuple[str, str, str]]:
        (answer,) = clearml_server.call("tasks.get_hyper_params", tasks=[task_id])["params"]
        return {(item["section"], item["name"], item["value"]) for item in answer["hyperparams"]}

    edit("A", "a.b$c", "1")
    edit("B", "x", "2")
    edit("B", "y", "3", replace_hyperparams="section")
    assert params() == {("A", "a.b$c", "1"), ("B", "y", "3")}
    delete = [{"section": "B", "name": "y"}]
    assert clearml_server.call("tasks.delete_hyper_params", task=task_id, hyperparams=delete) == {
        "deleted": 1
    }
    assert params() == {("A", "a.b$c", "1")}
    edit("C", "z", "4", replace_hyperparams="all")
    assert params() == {("C", "z", "4")}
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal):
        edit("C", "z", "5")
    edit("C", "z", "5", force=True)
    with pytest.raises(ApiRefusal, match="expected type"):
        clearml_server.call(
            "tasks.edit_hyper_params",
            task=task_id,
            hyperparams=[{"section": "A", "name": "n", "value": 5}],
            force=True,
        )


def test_configurations(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    items = [{"name": "SSH", "value": "x", "type": "json"}, {"name": "init", "value": "y"}]
    assert clearml_server.call("tasks.edit_configuration", task=task_id, configuration=items) == {
        "updated": 1
    }
    (answer,) = clearml_server.call("tasks.get_configurations", tasks=[task_id], names=["SSH"])[
        "configurations"
    ]
    assert answer["configuration"] == [items[0]]
    assert clearml_server.call("tasks.delete_configuration", task=task_id, configuration=["SSH"]) == {
        "deleted": 1
    }
    assert set(clearml_server.task(task_id)["configuration"]) == {"init"}


def test_runtime_takes_additions_and_removals(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"})
    clearml_server.call("tasks.started", task=task_id)
    edit = {"add_or_update": {"b": 2}, "remove": ["a"]}
    assert clearml_server.call("tasks.edit_runtime", task=task_id, **edit) == {"updated": 1}
    assert clearml_server.task(task_id)["runtime"] == {"b": 2}
    assert clearml_server.call("tasks.edit_runtime", task=task_id, runtime={"c": 3}) == {"updated": 0}


def test_artifacts(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    artifact = {"key": "data", "type": "custom", "uri": "http://x/y"}
    clearml_server.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[artifact])
    clearml_server.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[{**artifact, "hash": "h"}])
    assert clearml_server.task(task_id)["execution"]["artifacts"] == [
        {**artifact, "mode": "output", "hash": "h"}
    ]
    clearml_server.call("tasks.delete_artifacts", task=task_id, artifacts=[{"key": "data"}])
    assert clearml_server.task(task_id)["execution"]["artifacts"] == []


# -- the status machine ------------------------------------------------------------------------------------

STATUSES = (
    "created",
    "queued",
    "in_progress",
    "stopped",
    "closed",
    "failed",
    "completed",
    "publishing",
    "published",
)
ALLOWED: dict[str, set[str]] = {
    # by the action: from which statuses it goes without force
    "enqueue": {"created", "stopped", "failed", "queued"},
    "started": {"created", "queued", "stopped", "completed", "in_progress"},
    "stopped": {"queued", "in_progress", "closed", "failed", "stopped"},
    "failed": {"in_progress", "stopped", "closed", "failed"},
    "completed": {"in_progress", "stopped", "completed"},
    "stop": {"queued", "in_progress", "closed", "failed", "stopped"},
    "reset": set(STATUSES) - {"published"},
}


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "publishing"])
@pytest.mark.parametrize("action", ALLOWED)
def test_status_machine(clearml_server: Server, action: str, status: str) -> None:
    task_id = new_task(clearml_server)
    bring_to(clearml_server, task_id, status)
    if action == "enqueue" and status == "queued":
        # Into another queue: moved. (Into the same one is an error of its own.)
        clearml_server.call("tasks.enqueue", task=task_id, queue_name="another")
        return
    if status in ALLOWED[action]:
        clearml_server.call(f"tasks.{action}", task=task_id)
        return
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call(f"tasks.{action}", task=task_id)
    assert caught.value.subcode == 110
    clearml_server.call(f"tasks.{action}", task=task_id, force=True)


def test_enqueue_and_dequeue(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, system_tags=["development", "x"])
    queue_id = default_queue(clearml_server)
    answer = clearml_server.call("tasks.enqueue", task=task_id, verify_watched_queue=True)
    assert (answer["queued"], answer["updated"], answer["queue_watched"]) == (1, 1, False)
    fields = answer["fields"]
    assert (fields["status"], fields["enqueue_status"]) == ("queued", "created")
    assert (fields["execution.queue"], fields["status_reason"], fields["status_message"]) == (
        queue_id,
        "",
        "",
    )
    assert clearml_server.task(task_id)["system_tags"] == ["x"]
    with pytest.raises(ApiRefusal, match="already queued") as caught:
        clearml_server.call("tasks.enqueue", task=task_id)
    assert caught.value.subcode == 706
    task = clearml_server.task(task_id)
    assert (task["status"], task["status_reason"]) == ("queued", "failed enqueueing")
    answer = clearml_server.call("tasks.dequeue", task=task_id)
    assert (answer["dequeued"], answer["fields"]["status"]) == (1, "created")
    task = clearml_server.task(task_id)
    assert task["execution"]["queue"] == queue_id
    assert "enqueue_status" not in task
    assert clearml_server.call("tasks.dequeue", task=task_id) == {"dequeued": 1, "updated": 0, "fields": {}}


def test_enqueue_moves_and_makes_queues(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    clearml_server.call("tasks.enqueue", task=task_id, queue_name="brand new")
    queues = {queue["name"]: queue for queue in clearml_server.call("queues.get_all")["queues"]}
    assert queues["default"]["entries"] == []
    assert [entry["task"] for entry in queues["brand new"]["entries"]] == [task_id]
    with pytest.raises(ApiRefusal, match="Either queue id or queue name should be provided"):
        clearml_server.call("tasks.enqueue", task=task_id, queue="x", queue_name="y")


def test_stop_of_a_queued_task_is_at_once(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    fields = clearml_server.call("tasks.stop", task=task_id, status_reason="why", status_message="x")[
        "fields"
    ]
    assert (fields["status"], fields["status_reason"]) == ("stopped", "why")
    assert fields["status_message"].startswith("Stopped by ")
    assert "completed" not in clearml_server.task(task_id)
    assert clearml_server.call("queues.get_next_task", queue=default_queue(clearml_server)) == {}


def test_stop_of_a_running_task_asks_its_agent(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.started", task=task_id)
    clearml_server.call("workers.status_report", worker="w:0", task=task_id, timestamp=1)
    for force in (False, True):
        fields = clearml_server.call("tasks.stop", task=task_id, force=force)["fields"]
        assert (fields["status"], fields["status_message"]) == ("in_progress", "stopping")
    fields = clearml_server.call("tasks.stopped", task=task_id, status_reason="done")["fields"]
    assert (fields["status"], fields["status_reason"]) == ("stopped", "done")
    assert "completed" in fields


def test_reset_forgets_the_run_and_keeps_the_recipe(clearml_server: Server) -> None:
    task_id = new_task(clearml_server, runtime={"a": "1"}, script={"entry_point": "a.py"})
    clearml_server.call("tasks.enqueue", task=task_id)
    clearml_server.call("tasks.started", task=task_id)
    clearml_server.call("workers.status_report", worker="w:0", task=task_id, timestamp=1)
    add_lines(clearml_server, task_id, "hello")
    answer = clearml_server.call("tasks.reset", task=task_id)
    assert answer["dequeued"] == {"removed": 1}
    task = clearml_server.task(task_id)
    assert (task["status"], task["status_reason"], task["status_message"]) == ("created", "reset", "reset")
    assert task["runtime"] == {}
    assert task["script"]["entry_point"] == "a.py"
    assert not {"started", "last_worker", "enqueue_status"} & set(task)
    assert "queue" not in task["execution"]
    assert clearml_server.console(task_id) == ""


def test_clone(clearml_server: Server) -> None:
    source = new_task(
        clearml_server, runtime={"a": "1"}, tags=["t"], system_tags=["development", "archived", "keep"]
    )
    clearml_server.call("tasks.started", task=source)
    clone = clearml_server.task(
        clearml_server.call("tasks.clone", task=source, new_task_name="the clone")["id"]
    )
    assert (clone["name"], clone["status"], clone["parent"]) == ("the clone", "created", source)
    assert (clone["runtime"], clone["tags"], clone["system_tags"]) == ({}, ["t"], ["keep"])
    assert "started" not in clone
    again = clearml_server.task(clearml_server.call("tasks.clone", task=clone["id"])["id"])
    assert again["parent"] == source


def test_delete(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    clearml_server.call("tasks.enqueue", task=task_id)
    with pytest.raises(ApiRefusal, match="expected=created, current=queued") as caught:
        clearml_server.call("tasks.delete", task=task_id)
    assert caught.value.subcode == 123
    answer = clearml_server.call("tasks.delete", task=task_id, force=True)
    assert (answer["deleted"], answer["urls"]) == (True, None)
    assert clearml_server.call("queues.get_num_entries", queue=default_queue(clearml_server)) == {"num": 0}


def test_many_at_once(clearml_server: Server) -> None:
    task_id = new_task(clearml_server)
    answer = clearml_server.call("tasks.stop_many", ids=[task_id, UNKNOWN])
    assert [item["error"]["codes"] for item in answer["failed"]] == [[400, 110], [400, 101]]
    answer = clearml_server.call("tasks.archive_many", ids=[task_id])
    assert answer == {"succeeded": [{"id": task_id, "archived": True}], "failed": []}
    assert clearml_server.task(task_id)["system_tags"] == ["archived"]


def test_ping_is_always_fine(clearml_server: Server) -> None:
    assert clearml_server.call("tasks.ping", task=UNKNOWN) == {}
