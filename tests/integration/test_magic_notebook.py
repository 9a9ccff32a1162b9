"""The whole chain: a notebook with every subcommand, on a session of the embedded default."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.lab_fixture import LabServer, clearml_environment
from tests.local_fixture import ClearMLUnderTest
from tests.notebook_fixture import Message, Notebook

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

CELLS = [
    "%load_ext jupyterlab_clearml_session",
    "%clearml_session",
    "%clearml_session server",
    "%clearml_session status",
    "%clearml_session queues",
    "%clearml_session presets",
    "name = 'from a notebook'",
    "s = %clearml_session launch --name '{name}' --vscode-server false --tags magic --wait --timeout 200\ns",
    "%clearml_session list --tag magic",
    "%clearml_session status from a notebook",
    "%clearml_session info",
    "%clearml_session log -n 3",
    "%clearml_session open jupyter",
    "%%clearml_session run\nimport os\nprint(os.environ['HOME'])\n6 * 7",
    "import numpy as np\na = np.arange(1000)",
    "%%clearml_session run --in a --out b\nb = a[::-1].copy()",
    "assert (b[::-1] == a).all()",
    "s.kernels",
    "%clearml_session detach",
    "%clearml_session attach",
]


@pytest.fixture(scope="module")
def lab(local_mode: ClearMLUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(
        tmp_path_factory.mktemp("lab"),
        base_url="/user/someone/",
        environment=clearml_environment(local_mode.credentials),
        command="server",
    ).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def executed(lab: LabServer) -> Any:
    """The notebook after nbclient has run it, in a kernel that no server owns."""
    while True:
        notebook = notebook_of(CELLS)
        client = NotebookClient(notebook, kernel_name="python3", timeout=220)
        try:
            client.execute(env=lab.environment())
        except CellExecutionError as error:
            if error.ename != "JupyterPortClash":
                raise
            (clashed,) = lab.api("GET", "sessions?tag=magic")["sessions"]
            end(lab, clashed["id"])
        else:
            return notebook


def end(lab: LabServer, session_id: str) -> None:
    """Shut down a session whose Jupyter found its port taken, by a session that another test had just started."""
    lab.api("DELETE", f"sessions/{session_id}")
    lab.until(lambda: over(lab, session_id, "ended"))


def over(lab: LabServer, session_id: str, *phases: str) -> Any:
    session = lab.api("GET", f"sessions/{session_id}")
    return session if session["phase"] in phases else None


def named(lab: LabServer, name: str) -> Any:
    return next(session for session in lab.api("GET", "sessions")["sessions"] if session["name"] == name)


def notebook_of(codes: list[str]) -> Any:
    empty = {"cell_type": "code", "execution_count": None}
    document = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [
            {**empty, "id": f"c{number}", "source": code, "metadata": {}, "outputs": []}
            for number, code in enumerate(codes)
        ],
    }
    return nbformat.from_dict(document)  # type: ignore[no-untyped-call]


def shown(executed: Any, code: str) -> str:
    """Return the plain text of all that the cell with this beginning shows."""
    cell = next(cell for cell in executed.cells if cell.source.startswith(code))
    return "\n".join(
        o["text"] if o.output_type == "stream" else o["data"]["text/plain"] for o in cell.outputs
    )


def test_every_subcommand_in_a_notebook(executed: Any, lab: LabServer, local_mode: ClearMLUnderTest) -> None:
    assert shown(executed, "%clearml_session server") == f"{lab.url}: the only one of yours that runs"
    assert "a ClearML server" in shown(executed, "%clearml_session status")
    assert "default" in shown(executed, "%clearml_session queues")
    waited = shown(executed, "s = %clearml_session launch")
    assert "from a notebook is ready, after " in waited
    assert waited.splitlines()[-1].startswith("from a notebook (")
    assert "from a notebook" in shown(executed, "%clearml_session list --tag")
    info = shown(executed, "%clearml_session info")
    assert "host key pinned" in info
    assert "launched by     magic" in info
    assert len(shown(executed, "%clearml_session log").splitlines()) >= 3
    assert "/user/someone/clearml-session/proxy/" in shown(executed, "%clearml_session open")
    run = shown(executed, "%%clearml_session run\nimport os")
    assert run.splitlines()[-1] == "42"
    assert run.startswith(str(local_mode.directory))
    assert "to from a notebook: a (ndarray, 8." in shown(executed, "%%clearml_session run --in")
    assert "'name': 'python3'" in shown(executed, "s.kernels")
    assert "services_up" in shown(executed, "%clearml_session detach")
    assert "is ready, after " in shown(executed, "%clearml_session attach")


def test_no_secret_is_in_the_notebook(executed: Any, lab: LabServer, local_mode: ClearMLUnderTest) -> None:
    text = json.dumps(executed)
    assert lab.token not in text
    assert local_mode.credentials["secret_key"] not in text
    assert "token=***" in text or "token=" not in text


def test_a_form_that_nobody_answers_is_an_error_under_nbclient(lab: LabServer) -> None:
    fake = (
        "from jupyterlab_clearml_session.magic.client import Client\n"
        "two = [{'id': c * 32, 'name': 'same', 'phase': 'ready'} for c in 'ab']\n"
        "Client.sessions = lambda self, *args, **kwargs: two"
    )
    codes = ["%load_ext jupyterlab_clearml_session", fake, "%clearml_session shutdown same"]
    notebook = notebook_of(codes)
    with pytest.raises(CellExecutionError, match="2 sessions match 'same'") as caught:
        NotebookClient(notebook, kernel_name="python3", timeout=60).execute(env=lab.environment())
    assert "AmbiguousSession" in str(caught.value)
    assert "magics.py" not in str(caught.value)


def test_two_of_several_servers_and_the_one_that_owns_the_kernel(lab: LabServer, tmp_path: Any) -> None:
    other = LabServer(
        tmp_path, environment={"JUPYTER_RUNTIME_DIR": str(lab.folder / "runtime")}, command="server"
    )
    other.folder.joinpath("runtime").symlink_to(lab.folder / "runtime")
    other.start()
    try:
        for server in (lab, other):
            notebook = Notebook(server)
            notebook.ok("%load_ext jupyterlab_clearml_session")
            assert notebook.ok("%clearml_session server").result == f"{server.url}: it owns this kernel"
            notebook.close()
    finally:
        other.stop()


def test_in_a_terminal(lab: LabServer) -> None:
    """Plain IPython, with the only server of this user."""
    code = "%load_ext jupyterlab_clearml_session\n%clearml_session status\n%clearml_session attach nothing\n"
    shown = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
        input=code,
        env=lab.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "connected to a ClearML server" in shown
    assert "There is no session 'nothing'." in shown
    assert "Traceback" not in shown


@pytest.fixture(scope="module")
def notebook(lab: LabServer, executed: Any) -> Iterator[Notebook]:
    """Another notebook, of this server, on the session that the first one has launched."""
    made = Notebook(lab)
    made.ok("%load_ext jupyterlab_clearml_session")
    yield made
    made.close()


RUN = "%%clearml_session run from a notebook\n"


def test_a_remote_cell_is_interrupted(notebook: Notebook) -> None:
    def during(message: Message) -> None:
        if message["msg_type"] == "stream":
            notebook.interrupt()

    outcome = notebook.cell(f"{RUN}import time\nprint('begun', flush=True)\ntime.sleep(60)", during=during)
    assert outcome.error == "RemoteCellInterrupted: The cell was interrupted on from a notebook."


def test_no_output_is_lost_where_the_connection_is_made_anew(notebook: Notebook, lab: LabServer) -> None:
    session = named(lab, "from a notebook")
    cut: list[bool] = []

    def during(message: Message) -> None:
        if message["msg_type"] == "stream" and not cut:
            cut.append(True)
            lab.api("POST", f"sessions/{session['id']}/reconnect")

    code = "import time\nfor n in range(60):\n    print(n, flush=True)\n    time.sleep(0.05)\n'the end'"
    outcome = notebook.ok(f"{RUN}{code}", during=during)
    assert outcome.stdout == "".join(f"{n}\n" for n in range(60))
    assert outcome.result == "'the end'"


def test_the_kernel_outlives_a_detach(notebook: Notebook) -> None:
    notebook.ok(f"{RUN}kept = 'still here'")
    notebook.ok("%clearml_session detach from a notebook")
    assert "is not attached" in notebook.cell(f"{RUN}kept").error
    notebook.ok("%clearml_session attach from a notebook")
    assert notebook.ok(f"{RUN}kept").result == "'still here'"


def test_an_array_comes_back_the_same_from_the_session(notebook: Notebook) -> None:
    notebook.ok(
        "import numpy as np, hashlib\na = np.random.default_rng(2).integers(0, 256, 20_000_000, np.uint8)"
    )
    notebook.ok("%%clearml_session run from a notebook --in a --out b,there\nimport hashlib\nb = a + 0\n"
                "there = hashlib.sha256(a).hexdigest()")  # fmt: skip
    digests = notebook.ok("print(hashlib.sha256(a).hexdigest() == hashlib.sha256(b).hexdigest() == there)")
    assert digests.stdout == "True\n"


def test_it_is_shut_down_and_ends(notebook: Notebook, lab: LabServer) -> None:
    session = named(lab, "from a notebook")
    assert ": stopping" in notebook.ok("%clearml_session shutdown from a notebook").result
    lab.until(lambda: over(lab, session["id"], "ended"))
    assert "from a notebook" in notebook.ok("%clearml_session list --ended").result
