"""The stock ``clearml`` SDK against the embedded default, unmodified, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.local_fixture import ClearMLUnderTest, write_config

pytestmark = pytest.mark.integration


def run_sdk(server: ClearMLUnderTest, home: Path, code: str) -> Any:
    """Run ``code`` with the SDK configured for the server; what it leaves in ``result``."""
    script = home / "script.py"
    output = home / "result.json"
    script.write_text(f"{code}\nimport json\njson.dump(result, open({str(output)!r}, 'w'))\n")
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "CLEARML_CONFIG_FILE": str(write_config(server, home)),
        # Else the SDK itself waits for its reporting process, for 5 to 10 s at a time.
        "CLEARML__SDK__DEVELOPMENT__REPORT_USE_SUBPROCESS": "false",
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())


def test_create_enqueue_clone_and_stop(clearml_server: ClearMLUnderTest, tmp_path: Path) -> None:
    result = run_sdk(
        clearml_server,
        tmp_path,
        """
from clearml import Task
task = Task.create(project_name="Team/Project", task_name="from the sdk", task_type="application")
task.set_system_tags(["interactive"])
task.set_parameters({"Args/lr": 0.1, "properties/jupyter_port": ""})
task.set_user_properties(owner="me")
task._set_runtime_properties({"_jupyter_token": "", "n": 1})
task.connect_configuration({"key": "value"}, name="SSH")
task.set_base_docker("some/image --network host")
Task.enqueue(task, queue_name="default")
queued = task.get_status()
clone = Task.clone(source_task=task.id, name="its clone")
found = [item.name for item in Task.get_tasks(task_name="^from the sdk$", project_name="Team/Project")]
task.mark_stopped(force=True)
result = dict(
    queued=queued,
    stopped=task.get_status(),
    clone=[clone.name, clone.get_status(), clone.parent == task.id],
    parameters=task.get_parameters(),
    configuration=task.get_configuration_object("SSH"),
    runtime=task._get_runtime_properties(),
    docker=task.get_base_docker(),
    found=found,
    project=task.get_project_name(),
    system_tags=list(task.get_system_tags()),
)
""",
    )
    assert (result["queued"], result["stopped"]) == ("queued", "stopped")
    assert result["clone"] == ["its clone", "created", True]
    assert result["parameters"]["Args/lr"] == "0.1"
    assert re.fullmatch(r'\s*"?key"?\s*[=:]\s*"?value"?\s*', result["configuration"])
    assert result["runtime"]["n"] == 1
    assert result["docker"] == "some/image --network host"
    assert result["found"] == ["from the sdk"]
    assert result["project"] == "Team/Project"
    assert result["system_tags"] == ["interactive"]


def test_init_logs_and_artifacts(clearml_server: ClearMLUnderTest, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file.txt").write_text("content of the file")
    (tmp_path / "big.bin").write_bytes(os.urandom(3_000_001))
    result = run_sdk(
        clearml_server,
        tmp_path,
        """
import hashlib
from pathlib import Path
from clearml import Task
task = Task.init(
    project_name="Project", task_name="with artifacts", output_uri=True, auto_resource_monitoring=False
)
print("a line on the console")
task.get_logger().report_scalar("loss", "train", value=0.5, iteration=3)
task.upload_artifact("folder", artifact_object=Path("folder"), wait_on_upload=True)
task.upload_artifact("big", artifact_object=Path("big.bin"), wait_on_upload=True)
again = Task.get_task(task_id=task.id)
folder = Path(again.artifacts["folder"].get_local_copy(extract_archive=True))
big = Path(again.artifacts["big"].get_local_copy(extract_archive=False))
task.close()
result = dict(
    id=task.id,
    status=Task.get_task(task_id=task.id).get_status(),
    text=(folder / "deep" / "file.txt").read_text(),
    same=hashlib.sha256(big.read_bytes()).digest() == hashlib.sha256(Path("big.bin").read_bytes()).digest(),
    url=again.artifacts["big"].url,
    console="".join(Task.get_task(task_id=task.id).get_reported_console_output(10)),
    scalars=Task.get_task(task_id=task.id).get_reported_scalars(),
    last=Task.get_task(task_id=task.id).get_last_iteration(),
)
""",
    )
    assert result["status"] == "completed"
    assert result["text"] == "content of the file"
    assert result["same"] is True
    assert result["url"].startswith(clearml_server.credentials["files_server"])
    assert "a line on the console" in result["console"]
    assert result["scalars"]["loss"]["train"] == {"name": "train", "x": [3], "y": [0.5]}
    assert result["last"] == 3
    assert "a line on the console" in clearml_server.console(result["id"])


def test_api_client_and_bad_credentials(clearml_server: ClearMLUnderTest, tmp_path: Path) -> None:
    result = run_sdk(
        clearml_server,
        tmp_path,
        """
from clearml.backend_api import Session
from clearml.backend_api.session.client import APIClient
client = APIClient()
user = client.session.send_request("users", "get_current_user").json()["data"]["user"]["id"]
try:
    Session(api_key="wrong", secret_key="wrong")
    refused = ""
except Exception as error:
    refused = type(error).__name__
result = dict(
    queues=[queue.name for queue in client.queues.get_all()],
    user=user,
    min_version=Session.check_min_api_version("2.20"),
    refused=refused,
)
""",
    )
    assert result == {"queues": ["default"], "user": "local", "min_version": True, "refused": "LoginError"}
