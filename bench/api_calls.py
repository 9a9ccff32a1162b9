"""API calls that a launch costs: ours and the stock ``clearml-session``, from the embedded server's access log.

Run ``python bench/api_calls.py``; prints a Markdown table (that of docs/cli-options.md). Counted is everything up
to the Task's place in the queue, logins included. Uploads go to the file server and are no API calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect

sys.path.insert(0, str(Path(__file__).parent.parent))

from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.local.server import LocalServer

PYTHON = ["--docker", "python:3.11"]


@dataclass(frozen=True)
class Launch:
    """One row: the command line's arguments, and the same as a LaunchSpec. ``{x}`` are ids on the server."""

    title: str
    cli: list[str]
    spec: dict[str, Any]


LAUNCHES = [
    Launch("defaults, the project is new", PYTHON, {"docker": "python:3.11"}),
    Launch("defaults", PYTHON, {"docker": "python:3.11"}),
    Launch(
        "packages, init script, tags",
        [*PYTHON, "--packages", "torch", "--init-script", "{script}", "--session-tags", "a"],
        {"docker": "python:3.11", "packages": ["torch"], "init_script": "true\n", "tags": ["a"]},
    ),
    Launch(
        "git credentials",
        [*PYTHON, "--git-credentials", "true"],
        {"docker": "python:3.11", "git_credentials": True},
    ),
    Launch(
        "an uploaded file",
        [*PYTHON, "--upload-files", "{script}"],
        {"docker": "python:3.11", "upload_files": ["{script}"]},
    ),
    Launch("base task", ["--base-task-id", "{base}"], {"base_task_id": "{base}"}),
    Launch("debugging session", ["--debugging-session", "{debug}"], {"debugging_session": "{debug}"}),
]


class Server:
    """The embedded server in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "access.jsonl"
        started = threading.Event()

        async def serve() -> None:
            self.credentials = LocalServer(directory).start()
            started.set()
            await asyncio.Event().wait()

        threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
        started.wait(30)

    def call(self, name: str, /, **body: Any) -> dict[str, Any]:
        pair = f"{self.credentials['access_key']}:{self.credentials['secret_key']}".encode()
        headers = {"Authorization": "Basic " + b64encode(pair).decode(), "X-ClearML-Client": "bench"}
        request = urllib.request.Request(
            f"{self.credentials['api_server']}/{name}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
            return data

    def calls(self, since: float) -> list[str]:
        """Return the calls of others than this program after ``since``, up to the first enqueue."""
        names: list[str] = []
        for line in self.log.read_text().splitlines():
            record = json.loads(line)
            if record["time"] >= since and record["client"] != "bench":
                names.append(record["call"])
                if record["call"] == "tasks.enqueue":
                    break
        return names


def run_cli(server: Server, arguments: list[str], home: Path) -> tuple[list[str], float]:
    """Launch with the command line; return its calls and seconds."""
    credentials = server.credentials
    config: dict[str, Any] = {
        name: credentials[name] for name in ("api_server", "web_server", "files_server")
    }
    config["credentials"] = {name: credentials[name] for name in ("access_key", "secret_key")}
    (home / "clearml.conf").write_text(json.dumps({"api": config}))
    began, since = time.perf_counter(), time.time()
    child = pexpect.spawn(
        sys.executable,
        [
            "-m",
            "clearml_session",
            "--yes",
            "--queue",
            "default",
            "--disable-session-cleanup",
            "true",
            *arguments,
        ],
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "CLEARML_CONFIG_FILE": str(home / "clearml.conf"),
        },
        encoding="utf-8",
        timeout=120,
    )
    child.expect("Waiting for remote machine allocation")
    seconds = time.perf_counter() - began
    child.close(force=True)
    return server.calls(since), seconds


async def run_ours(server: Server, spec: dict[str, Any], *, warm: bool) -> tuple[list[str], float]:
    """Launch with ours; ``warm`` is a client that has logged in and launched before."""
    client = ClearMLClient()
    client.use_local(server.credentials)
    if warm:
        await client.launch(LaunchSpec())
    began, since = time.perf_counter(), time.time()
    await client.launch(LaunchSpec.from_json({"queue": "default", **spec}))
    return server.calls(since), time.perf_counter() - began


def main() -> None:
    """Measure all launches and print the table."""
    os.environ.setdefault("CLEARML_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        script = directory / "init.sh"
        script.write_text("true\n")
        names = {"script": str(script)}
        print("| launch | clearml-session 0.17 | ours, first | ours, later |")
        print("| --- | --- | --- | --- |")
        details: Counter[str] = Counter()
        for number, launch in enumerate(LAUNCHES):
            row = [launch.title]
            for kind in ("cli", "first", "later"):
                home = directory / f"{number}-{kind}"
                home.mkdir()
                server = Server(home / "server")
                filled = {**names, **_tasks(server, with_project=number > 0)}
                if kind == "cli":
                    calls, seconds = run_cli(server, [text.format(**filled) for text in launch.cli], home)
                    details.update(calls)
                else:
                    spec = {key: _filled(value, filled) for key, value in launch.spec.items()}
                    calls, seconds = asyncio.run(run_ours(server, spec, warm=kind == "later"))
                row.append(f"{len(calls)} ({seconds:.1f} s)")
            print("| " + " | ".join(row) + " |")
    print("\nThe command line's calls, all rows together:")
    print(", ".join(f"{name} {count}" for name, count in details.most_common()))


def _tasks(server: Server, *, with_project: bool) -> dict[str, str]:
    project = server.call("projects.create", name="DevOps" if with_project else "Other", description="")["id"]
    script = {
        "repository": "https://host/repo.git",
        "entry_point": "a.py",
        "diff": "x",
        "requirements": {"pip": "numpy"},
    }
    section = {
        "ssh_server": {
            "section": "interactive_session",
            "name": "ssh_server",
            "value": "True",
            "type": "bool",
        }
    }
    return {
        "debug": server.call("tasks.create", name="debug", type="training", project=project, script=script)[
            "id"
        ],
        "base": server.call(
            "tasks.create",
            name="base",
            type="application",
            project=project,
            system_tags=["interactive"],
            hyperparams={"interactive_session": section},
            container={"image": "python:3.11"},
        )["id"],
    }


def _filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    return value.format(**names) if isinstance(value, str) else value


if __name__ == "__main__":
    main()
