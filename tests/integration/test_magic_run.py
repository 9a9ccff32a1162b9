"""`%%clearml_session run` and what it needs of a kernel, in a notebook's kernel of a real Jupyter server.

The session itself is only said to be there: its one kernel is a second kernel of the same server. The whole chain
is in test_magic_notebook.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixture import LabServer
from tests.magic_fixture import session
from tests.notebook_fixture import Message, Notebook

pytestmark = pytest.mark.integration

SESSION = session(0xABC, name="far away", kernelspecs=["python3"])
PRELUDE = f"""
%load_ext jupyterlab_clearml_session
from jupyterlab_clearml_session.magic.client import Client
from jupyterlab_clearml_session.magic import transfer
there = {SESSION!r}
Client.sessions = lambda self, *args, **kwargs: [dict(there)]
Client.session = lambda self, session_id: dict(there)
Client.kernels = lambda self, session_id: []
Client.kernelspecs = lambda self, session_id, **kwargs: [
    {{"name": name, "display_name": "Python (there)", "language": "python"}} for name in there["kernelspecs"]
]
s = %clearml_session status far away
"""
RUN = "%%clearml_session run"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("lab"), command="server").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared(lab: LabServer) -> Iterator[Notebook]:
    notebook = Notebook(lab)
    notebook.ok(PRELUDE)
    yield notebook
    notebook.close()


@pytest.fixture
def notebook(shared: Notebook) -> Notebook:
    """The notebook with its remote kernel, names of earlier tests removed."""
    shared.ok("there['attached'] = True; there['phase'] = 'ready'")
    shared.ok(f"{RUN}\n%reset -f")
    return shared


@pytest.fixture
def own(lab: LabServer) -> Iterator[Notebook]:
    """A notebook for one test, which may break it."""
    notebook = Notebook(lab)
    notebook.ok(PRELUDE)
    yield notebook
    notebook.close()


def remote_kernels(lab: LabServer) -> dict[str, str]:
    """Ids of the kernels that `run` started, by the owner's id."""
    models = lab.call("GET", "api/sessions").body
    return {
        m["path"].split("/")[1]: m["kernel"]["id"]
        for m in models
        if m["path"].startswith(".clearml-session/")
    }


def test_the_cell_runs_in_another_process_and_shows_its_output_here(notebook: Notebook) -> None:
    here = notebook.ok("import os; os.getpid()").result
    outcome = notebook.ok(f"{RUN}\nimport os\nprint('hello')\nos.getpid()")
    assert outcome.stdout == "hello\n"
    assert outcome.result != here
    (result,) = outcome.of("execute_result")
    assert result["content"]["execution_count"] == outcome.reply["content"]["execution_count"]


def test_streams_keep_their_order(notebook: Notebook) -> None:
    code = (
        "import sys\nfor n in range(5):\n    print(n, flush=True)\n    print(n, file=sys.stderr, flush=True)"
    )
    outcome = notebook.ok(f"{RUN}\n{code}")
    text = "".join(m["content"]["text"] for m in outcome.of("stream"))
    assert text == "".join(f"{n}\n{n}\n" for n in range(5))
    assert outcome.text("stderr") == outcome.stdout


def test_much_output_is_complete(notebook: Notebook) -> None:
    outcome = notebook.ok(f"{RUN}\nfor n in range(100_000): print(n)")
    assert outcome.stdout == "".join(f"{n}\n" for n in range(100_000))


def test_rich_output_and_its_updates(notebook: Notebook) -> None:
    here = notebook.ok("from IPython.display import display, HTML; h = display('local', display_id='x')")
    (local,) = here.of("display_data")
    code = (
        "from IPython.display import display, HTML, Image\n"
        "display(HTML('<b>bold</b>'), metadata={'isolated': True})\n"
        "handle = display('one', display_id='x')\nhandle.update('two')\n"
        "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n', format='png'))"
    )
    outcome = notebook.ok(f"{RUN}\n{code}")
    bold, one, image = outcome.of("display_data")
    assert bold["content"]["data"]["text/html"] == "<b>bold</b>"
    assert bold["content"]["metadata"]["isolated"] is True
    assert image["content"]["data"]["image/png"].strip() == "iVBORw0KGgo="
    (two,) = outcome.of("update_display_data")
    assert two["content"]["transient"] == one["content"]["transient"]
    # The same id may be in use here: they are not the same display.
    assert one["content"]["transient"]["display_id"] != local["content"]["transient"]["display_id"]


def test_an_update_from_a_later_cell_reaches_the_display(notebook: Notebook) -> None:
    first = notebook.ok(f"{RUN}\nfrom IPython.display import display\nh = display('one', display_id=True)")
    later = notebook.ok(f"{RUN}\nh.update('two')")
    (shown,), (update,) = first.of("display_data"), later.of("update_display_data")
    assert update["content"]["transient"] == shown["content"]["transient"]


def test_clear_output(notebook: Notebook) -> None:
    code = "from IPython.display import clear_output\nprint(1)\nclear_output(wait=True)\nprint(2)"
    outcome = notebook.ok(f"{RUN}\n{code}")
    assert [m["msg_type"] for m in outcome.messages if m["msg_type"] in ("stream", "clear_output")] == [
        "stream",
        "clear_output",
        "stream",
    ]


def test_a_remote_exception_shows_the_remote_traceback(notebook: Notebook) -> None:
    notebook.ok(f"{RUN}\ndef outer():\n    return inner()\ndef inner():\n    raise ValueError('over there')")
    outcome = notebook.cell(f"{RUN}\nouter()")
    assert outcome.status == "error"
    assert outcome.error == "RemoteCellError: ValueError: over there (on far away)"
    for part in ("inner()", "raise ValueError", "over there"):
        assert part in outcome.traceback
    assert "remote_kernel.py" not in outcome.traceback
    assert notebook.ok(f"{RUN}\nprint('goes on')").stdout == "goes on\n"
    caught = (
        "try:\n    s.run('1/0')\nexcept Exception as error:\n    print(error.detail['ename'], error.code)"
    )
    assert notebook.ok(caught).stdout == "ZeroDivisionError remote_exception\n"


def test_a_traceback_that_ends_no_cell_is_shown_where_it_belongs(notebook: Notebook) -> None:
    notebook.cell(f"{RUN}\n1/0")
    outcome = notebook.ok(f"{RUN}\n%tb")
    assert outcome.error == "ZeroDivisionError: division by zero"
    code = "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    int('inside')\nprint('goes on')"
    outcome = notebook.ok(f"{RUN}\n{code}")
    assert outcome.error.startswith("ValueError: ")
    kinds = [m["msg_type"] for m in outcome.messages]
    assert "comm_msg" in kinds[kinds.index("error") :]  # the widget no longer takes what comes
    assert outcome.stdout == "goes on\n"


def test_an_exception_of_a_value_that_cannot_be_shown_has_its_name(notebook: Notebook) -> None:
    code = "class Shy:\n    def __repr__(self): raise ValueError('not here')\nShy()"
    outcome = notebook.cell(f"{RUN}\n{code}")
    assert outcome.error == "RemoteCellError: ValueError: not here (on far away)"
    assert len(outcome.of("error")) == 1


def test_a_syntax_error_is_a_remote_exception_too(notebook: Notebook) -> None:
    assert notebook.cell(f"{RUN}\nif").error.startswith("RemoteCellError: SyntaxError: ")


def test_the_kernel_is_kept_and_new_starts_a_fresh_one(own: Notebook) -> None:
    own.ok(f"{RUN}\nx = 1")
    before = remote_kernels(own.lab)[own.kernel_id]
    assert own.ok(f"{RUN}\nx").result == "1"
    assert remote_kernels(own.lab)[own.kernel_id] == before
    assert "NameError" in own.cell(f"{RUN} --new\nx").error
    assert remote_kernels(own.lab)[own.kernel_id] != before
    assert own.lab.call("GET", f"api/kernels/{before}").status == 404


def test_a_restart_here_keeps_the_kernel_there_and_the_end_ends_it(lab: LabServer) -> None:
    notebook = Notebook(lab)
    notebook.ok(PRELUDE)
    notebook.ok(f"{RUN}\nx = 'kept'")
    there = remote_kernels(lab)[notebook.kernel_id]
    notebook.restart()
    notebook.ok(PRELUDE)
    assert notebook.ok(f"{RUN}\nx").result == "'kept'"
    notebook.close()
    lab.until(lambda: lab.call("GET", f"api/kernels/{there}").status == 404, 20)


def test_two_notebooks_have_two_kernels(notebook: Notebook, own: Notebook) -> None:
    own.ok(f"{RUN}\nx = 1")
    kernels = remote_kernels(own.lab)
    assert kernels[own.kernel_id] != kernels[notebook.kernel_id]


def test_input(notebook: Notebook) -> None:
    code = "from getpass import getpass\na = input('name? ')\nb = getpass()\nprint(a, b)"
    assert notebook.ok(f"{RUN}\n{code}", answers=["Ada", "word"]).stdout == "Ada word\n"
    refused = notebook.cell(f"{RUN}\ninput()")
    assert refused.error.startswith("RemoteCellError: StdinNotImplementedError: ")


def test_an_interrupt_interrupts_the_remote_cell_once(notebook: Notebook) -> None:
    code = (
        "import time\nseen = 0\nprint('begun', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    seen += 1\n"
        "time.sleep(0.5)\nprint('seen', seen)"
    )
    outcome = notebook.ok(f"{RUN}\n{code}", during=_when_begun(notebook.interrupt))
    assert outcome.stdout.endswith("seen 1\n")


def test_an_interrupted_cell_says_so(notebook: Notebook) -> None:
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    began = time.monotonic()
    outcome = notebook.cell(f"{RUN}\n{code}", during=_when_begun(notebook.interrupt))
    assert time.monotonic() - began < 20
    assert outcome.error == "RemoteCellInterrupted: The cell was interrupted on far away."
    assert "time.sleep(60)" in outcome.traceback
    assert notebook.ok(f"{RUN}\n1").result == "1"


def test_an_interrupted_cell_that_awaits_something_says_so(notebook: Notebook) -> None:
    code = "import asyncio\nprint('begun', flush=True)\nawait asyncio.sleep(60)"
    outcome = notebook.cell(f"{RUN}\n{code}", during=_when_begun(notebook.interrupt))
    assert outcome.error == "RemoteCellInterrupted: The cell was interrupted on far away."
    raised = notebook.cell(f"{RUN}\nraise asyncio.CancelledError('of itself')")
    assert raised.error == "RemoteCellError: CancelledError: of itself (on far away)"


def test_an_interrupt_while_input_is_asked_for(notebook: Notebook) -> None:
    code = "print('begun', flush=True)\ninput('name? ')"
    outcome = notebook.cell(f"{RUN}\n{code}", answers=[], during=_when_begun(notebook.interrupt, wait=1.0))
    assert outcome.error == "RemoteCellInterrupted: The cell was interrupted on far away."


def test_a_second_interrupt_stops_the_waiting(own: Notebook) -> None:
    code = (
        "import time\nprint('begun', flush=True)\n"
        "for _ in range(3):\n    try:\n        time.sleep(30)\n    except KeyboardInterrupt:\n"
        "        print('no', flush=True)"
    )

    def during(message: Message) -> None:
        if message["msg_type"] == "stream":
            own.interrupt()

    outcome = own.cell(f"{RUN}\n{code}", during=during)
    assert outcome.error == "WaitInterrupted: Stopped waiting for the cell. It still runs on far away."
    assert "--new" in outcome.traceback
    assert own.ok(f"{RUN} --new\n1").result == "1"


def test_a_kernel_that_dies_is_no_endless_wait(own: Notebook) -> None:
    outcome = own.cell(f"{RUN}\nimport os\nprint('begun', flush=True)\nos._exit(1)")
    assert outcome.error == "KernelFailed: The kernel on far away was started anew; what it held is gone."
    assert own.ok(f"{RUN}\n'new'").result == "'new'"


def test_a_kernel_that_dies_is_found_out_by_asking_it(own: Notebook) -> None:
    """The first word of the new process may be lost: it comes before anybody is subscribed."""
    own.ok(f"{RUN}\n1")
    own.ok(
        "from jupyterlab_clearml_session.magic import remote_kernel\n"
        "heard = remote_kernel.RemoteKernel._on_iopub\n"
        "def deaf(self, message, result):\n"
        "    starting = message['content'].get('execution_state') == 'starting'\n"
        "    return False if starting else heard(self, message, result)\n"
        "remote_kernel.RemoteKernel._on_iopub = deaf\n"
        "remote_kernel.LOOK = 1.0"
    )
    outcome = own.cell(f"{RUN}\nimport os\nos._exit(1)")
    assert outcome.error == "KernelFailed: The kernel on far away was started anew; what it held is gone."


def test_a_long_silence_is_no_failure(own: Notebook) -> None:
    own.ok(f"{RUN}\n1")
    own.ok("from jupyterlab_clearml_session.magic import remote_kernel\nremote_kernel.LOOK = 0.2")
    assert own.ok(f"{RUN}\nimport time\ntime.sleep(1)\n'done'").result == "'done'"


def test_a_kernel_that_is_shut_down_elsewhere(own: Notebook) -> None:
    def shut_down() -> None:
        kernel_id = remote_kernels(own.lab)[own.kernel_id]
        assert own.lab.call("DELETE", f"api/kernels/{kernel_id}").status == 204

    own.ok("from jupyterlab_clearml_session.magic import remote_kernel\nremote_kernel.LOOK = 1.0")
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    outcome = own.cell(f"{RUN}\n{code}", during=_when_begun(shut_down))
    assert outcome.error == "KernelFailed: The kernel on far away has ended."
    assert own.ok(f"{RUN}\n1").result == "1"


def test_a_session_that_is_not_attached(notebook: Notebook) -> None:
    notebook.ok("there['attached'] = False")
    outcome = notebook.cell(f"{RUN}\n1")
    assert outcome.error == "NotAttached: 'far away' (00000abc) is not attached."
    assert "Attach first: %clearml_session attach 00000abc" in outcome.traceback


def test_a_kernel_by_name(notebook: Notebook) -> None:
    for name in ("python3", "'Python (there)'"):
        assert notebook.ok(f"{RUN} --kernel {name}\n1").result == "1"
    outcome = notebook.cell(f"{RUN} --kernel ir\n1")
    assert outcome.error == "UnknownKernel: 'far away' (00000abc) has no kernel 'ir'."
    assert "It has: python3." in outcome.traceback


@pytest.mark.parametrize("options", ["", " --out moved"])
def test_output_after_the_cell_belongs_to_it(notebook: Notebook, options: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    code = (
        "import threading\nmoved = 1\n"
        f"def late():\n    open({str(tmp_path / 'go')!r}).read()\n    print('late')\n"
        "threading.Thread(target=late).start()"
    )
    outcome = notebook.ok(f"{RUN}{options}\n{code}")
    (tmp_path / "go").write_text("now")
    late = notebook.until(lambda m: m["msg_type"] == "stream" and "late" in m["content"]["text"])
    assert late["parent_header"]["msg_id"] == outcome.message_id


def test_help_is_shown_in_the_pager(notebook: Notebook) -> None:
    notebook.ok(f"{RUN}\ndef far():\n    'Only known over there.'")
    (page,) = notebook.ok(f"{RUN}\nfar?").reply["content"]["payload"]
    assert page["source"] == "page"
    assert "Only known over there." in page["data"]["text/plain"]


def test_widgets_reach_the_kernel_that_made_them(notebook: Notebook) -> None:
    code = (
        "import ipywidgets\nslider = ipywidgets.IntSlider(value=3)\n"
        "slider.observe(lambda change: print('now', change['new']), 'value')\nslider"
    )
    outcome = notebook.ok(f"{RUN}\n{code}")
    opened = {m["content"]["data"]["state"].get("_model_name"): m for m in outcome.of("comm_open")}
    slider = opened["IntSliderModel"]
    assert slider["content"]["target_name"] == "jupyter.widget"
    assert slider["metadata"]["version"].startswith("2.")
    (shown,) = outcome.of("execute_result")
    comm_id = slider["content"]["comm_id"]
    assert shown["content"]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"] == comm_id
    # As the browser does when the slider is moved.
    moved = notebook.comm(comm_id, {"method": "update", "state": {"value": 7}, "buffer_paths": []})
    assert moved.stdout == "now 7\n"
    assert moved.messages[-1]["content"]["execution_state"] == "idle"
    assert notebook.ok(f"{RUN}\nslider.value").result == "7"
    changed = notebook.ok(f"{RUN}\nslider.value = 9")
    updates = [m for m in changed.of("comm_msg") if m["content"]["comm_id"] == comm_id]
    assert updates[-1]["content"]["data"]["state"] == {"value": 9}
    notebook.ok(f"{RUN}\nslider.close()")


def test_an_output_widget_captures_by_the_id_of_the_cell(notebook: Notebook) -> None:
    code = "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    print('inside')"
    outcome = notebook.ok(f"{RUN}\n{code}")
    ids = [m["content"]["data"].get("state", {}).get("msg_id") for m in outcome.of("comm_msg")]
    assert outcome.message_id in ids


def test_variables_go_there_and_come_back(notebook: Notebook) -> None:
    notebook.ok(
        "import numpy as np\na = np.arange(12).reshape(3, 4)\nb = {'x': [1, 'é']}\nempty = np.empty(0)"
    )
    notebook.ok("fortran = np.asfortranarray(a)\nholes = a[:, ::2]")
    outcome = notebook.ok(
        f"{RUN} --in a,b,empty,fortran,holes --out c,d,empty,fortran,holes\n"
        "a[0, 0] = 100\nc = a * 2\nd = b['x'] + [a.flags.writeable]"
    )
    assert outcome.shown[0].startswith("to far away: a (ndarray, ")
    assert outcome.shown[1].startswith("from far away: c (ndarray, ")
    check = "(c[0, 0], d, a[0, 0], c.flags.writeable, empty.size, (fortran == a).all(), (holes == a[:, ::2]).all())"
    values = "(200, [1, 'é', True], 0, True, 0, True, True)"
    assert (
        notebook.ok(f"print(tuple(v.item() if hasattr(v, 'item') else v for v in {check}))").stdout
        == values + "\n"
    )


def test_a_large_array_comes_back_the_same(notebook: Notebook) -> None:
    notebook.ok(
        "import numpy as np, hashlib\nbig = np.random.default_rng(1).integers(0, 256, 50_000_000, np.uint8)"
    )
    notebook.ok("transfer.TELL = 0")
    outcome = notebook.ok(f"{RUN} --in big --out back\nback = big")
    notebook.ok("transfer.TELL = 0.5")
    assert "to far away: 2.0 MB of 50.0 MB" in outcome.shown
    assert "from far away: 50.0 MB of 50.0 MB" in outcome.shown
    assert any("to far away: big (ndarray, 50.0 MB) in " in text for text in outcome.shown)
    assert len(outcome.of("display_data")) == 2  # one for each direction, and updates of it
    assert notebook.ok("hashlib.sha256(back).digest() == hashlib.sha256(big).digest()").result == "True"


@pytest.mark.parametrize(
    ("prepare", "arguments", "error"),
    [
        ("", "--in nothing", "TransferFailed: There is no variable 'nothing' here."),
        (
            "f = lambda: 1",
            "--in f",
            "TransferFailed: 'f' cannot be pickled: ",
        ),
        (
            "",
            "--out nothing",
            "TransferFailed: 'nothing' cannot be moved; on far away: there is no such variable.",
        ),
        ("", "--out function", "TransferFailed: 'function' cannot be moved; on far away: "),
        (
            "transfer.LIMIT = 1000; a = bytes(2000)",
            "--in a",
            "TransferTooLarge: 2.0 kB is more than the 1.0 kB that are moved without being forced: a 2.0 kB.",
        ),
        (
            "transfer.LIMIT = 1000",
            "--out large",
            "TransferTooLarge: 2.0 kB is more than the 1.0 kB that are moved",
        ),
        (
            "class Mine: pass\nm = Mine()",
            "--in m",
            "TransferFailed: 'm' cannot be moved; on far away: AttributeError",
        ),
        (
            "",
            "--out mine",
            "TransferFailed: 'mine' cannot be unpickled here: AttributeError: ",
        ),
        ("", "--in 1x", "BadArguments: '1x' is not the name of a variable."),
    ],
)
def test_what_cannot_be_moved(notebook: Notebook, prepare: str, arguments: str, error: str) -> None:
    notebook.ok(prepare)
    code = "function = lambda: 1\nlarge = bytes(2000)\nclass Theirs: pass\nmine = Theirs()"
    outcome = notebook.cell(f"{RUN} {arguments}\n{code}")
    notebook.ok("transfer.LIMIT = 256_000_000")
    assert outcome.error.startswith(error)
    assert "transfer.py" not in outcome.traceback


def test_force_moves_what_is_too_large(notebook: Notebook) -> None:
    notebook.ok("transfer.LIMIT = 1000; a = bytes(2000)")
    notebook.ok(f"{RUN} --in a --out b --force\nb = a * 2")
    notebook.ok("transfer.LIMIT = 256_000_000")
    assert notebook.ok("len(b)").result == "4000"


def test_nothing_comes_back_from_a_cell_that_failed(notebook: Notebook) -> None:
    notebook.ok("c = 'old'")
    assert notebook.cell(f"{RUN} --out c\nc = 'new'\n1/0").error.startswith(
        "RemoteCellError: ZeroDivisionError"
    )
    assert notebook.ok("c").result == "'old'"


def test_a_transfer_can_be_interrupted(own: Notebook) -> None:
    own.ok(f"{RUN}\n1")
    own.ok("import _thread\na = bytes(200_000_000)\nsend, steps = transfer._Talk.send, []")
    own.ok(
        "def counted(self, *args):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 20:\n"
        "        _thread.interrupt_main()\n"
        "    send(self, *args)\n"
        "transfer._Talk.send = counted"
    )
    outcome = own.cell(f"{RUN} --in a\n1")
    assert outcome.error == "WaitInterrupted: Moving variables was interrupted."
    assert own.ok("len(steps)").result == "20"
    assert "NameError" in own.cell(f"{RUN}\na").error
    assert own.ok(f"{RUN}\n'goes on'").result == "'goes on'"


def test_run_in_scripts(notebook: Notebook) -> None:
    notebook.ok("a = 20\nr = s.run('b = a + 1; print(b)\\nb', take=['a'], bring=['b'])")
    assert notebook.ok("print(b, repr(r.stdout), r.result, r.where, r.seconds > 0)").stdout == (
        "21 '21\\n' {'text/plain': '21'} far away True\n"
    )
    notebook.ok("from IPython.utils.capture import capture_output")
    notebook.ok("with capture_output() as c:\n    s.run('print(1); 2')")
    assert notebook.ok("print(repr(c.stdout), c.outputs[0].data)").stdout == "'1\\n' {'text/plain': '2'}\n"


def _when_begun(act: Any, wait: float = 0.0) -> Any:
    """Return an observer that acts once the remote cell has printed "begun"."""
    done: list[bool] = []

    def during(message: Message) -> None:
        if not done and message["msg_type"] == "stream" and "begun" in message["content"]["text"]:
            done.append(True)
            time.sleep(wait)
            act()

    return during
