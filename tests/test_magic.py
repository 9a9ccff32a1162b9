"""The line magics in a real IPython shell, against a server of canned answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from IPython.core.error import StdinNotImplementedError

from jupyterlab_clearml_session import errors
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.magic import ClearMLSessionMagics, SessionHandle
from jupyterlab_clearml_session.magic.commands import commands
from jupyterlab_clearml_session.magic.displays import link, since, size, tag
from jupyterlab_clearml_session.magic.live import Live
from jupyterlab_clearml_session.magic.objects import SessionList
from jupyterlab_clearml_session.magic.server import Server
from jupyterlab_clearml_session.magic.waiting import wait_until_ready

from .magic_fixture import FakeJupyter, error, fake_fixture, magics_fixture, session, shell_fixture  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("magics")


@pytest.fixture
def line(shell: Any) -> Callable[[str], Any]:
    return lambda text: shell.run_line_magic("clearml_session", text)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[str]], list[str]]:
    """Let ``input`` give these answers in turn; returns the questions. Without it nobody can be asked."""

    def give(values: Iterable[str]) -> list[str]:
        waiting, questions = list(values), []

        def ask(question: str) -> str:
            questions.append(question)
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", ask)
        return questions

    def nobody(question: str) -> str:
        raise StdinNotImplementedError(
            "raw_input was called, but this frontend does not support input requests."
        )

    monkeypatch.setattr("builtins.input", nobody)
    return give


def test_alone_it_prints_help(line: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert line("") is None
    shown = capsys.readouterr().out
    for name in commands():
        assert f"  {name}" in shown
    assert line("launch --help") is None
    assert "--docker-args" in capsys.readouterr().out


def test_list_shows_a_table_and_is_a_sequence(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    fake.active = [session(1), session(2, phase="queued", phase_text="Waiting, place 1")]
    listed = line("list")
    assert isinstance(listed, SessionList)
    assert [handle.id for handle in listed] == [s["id"] for s in fake.active]
    assert listed.data == fake.active
    rows = repr(listed).splitlines()
    assert rows[0].split() == ["ID", "NAME", "PHASE", "QUEUE", "SINCE"]
    assert rows[1].startswith("00000001  session 1  ready")
    assert "Waiting, place 1" in rows[2]
    assert '<a href="https://app.clear.ml/projects/1"' in listed._repr_html_()
    fake.active = []
    assert repr(line("list")) == "There is no active session."
    line("list -a --ended --tag t --project p")
    assert fake.asked[-1][1] == "clearml-session/api/sessions"


def test_what_the_server_says_is_escaped(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    evil = '<script>alert(1)</script>"'
    fake.active = [
        session(1, name=evil, phase_text=evil, web_url="javascript:alert(1)", comment=evil, tags=[evil])
    ]
    fake.lines = [{"time": "", "text": evil}]
    fake.queues = [{"id": "q", "name": evil, "length": 1, "tags": [evil], "workers": []}]
    fake.presets = {"presets": {evil: {"docker": evil}}, "last": {}}
    for command in ("list", "info", "status 00000001", "status", "log", "queues", "presets", "open"):
        shown = line(command)._repr_html_()
        assert "<script" not in shown
        assert 'href="javascript' not in shown
    assert tag("a", "x", title='"><b>') == '<a title="&quot;&gt;&lt;b&gt;">x</a>'
    assert link("x", "//evil.org") == "x"


@pytest.mark.parametrize(
    "wanted", ["session 2", "00000002", "0000 ", "00000002" + "0" * 24, "--id 00000002", ""]
)
def test_a_session_by_id_by_its_beginning_by_name_or_because_it_is_the_only_one(
    wanted: str, line: Callable[[str], Any], fake: FakeJupyter
) -> None:
    fake.active = [session(2)]
    handle = line(f"attach {wanted} --no-wait")
    assert handle.id == fake.active[0]["id"]


def test_ended_sessions_and_those_of_others_are_found_too(
    line: Callable[[str], Any], fake: FakeJupyter
) -> None:
    fake.active = [session(1)]
    fake.ended = [session(2, phase="ended")]
    fake.of_others = [session(3, mine=False)]
    fake.lines = [{"time": "t", "text": f"line {n}\n"} for n in range(9)]
    assert repr(line("log session 2 -n 2")) == "line 7\nline 8"
    info = line("info session 3")
    assert info.data["id"] == fake.of_others[0]["id"]
    assert "created         2026-11-22 09:58:00 UTC" in repr(info)
    assert '<a href="https://app.clear.ml/projects/1" target="_blank"' in info._repr_html_()


def test_unknown_session(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    with pytest.raises(errors.UnknownSession) as caught:
        line("attach nothing")
    assert caught.value.message == "There is no session 'nothing'."
    with pytest.raises(errors.UnknownSession) as caught:
        line("shutdown")
    assert caught.value.message == "There is no active session."


def test_an_ambiguous_beginning_where_nobody_can_be_asked(
    line: Callable[[str], Any], fake: FakeJupyter, answers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.active = [session(1), session(2)]
    with pytest.raises(errors.AmbiguousSession) as caught:
        line("attach 0000")
    assert caught.value.message == (
        "2 sessions match '0000': 'session 1' (00000001), 'session 2' (00000002)."
    )
    assert caught.value.detail["sessions"][1]["name"] == "session 2"
    with pytest.raises(errors.AmbiguousSession) as caught:
        line("shutdown")
    assert caught.value.message.startswith("2 sessions are active: ")
    assert "session 2" in capsys.readouterr().out
    assert not any(method == "DELETE" for method, *_ in fake.asked)


@pytest.mark.parametrize("answer", [["2"], ["00000002"], ["session 2"], ["what?", "9", "2"]])
def test_several_sessions_are_asked_for(
    answer: list[str], line: Callable[[str], Any], fake: FakeJupyter, answers: Any
) -> None:
    fake.active = [session(1), session(2)]
    questions = answers(answer)
    assert line("attach --no-wait").id == session(2)["id"]
    assert questions == ["Which one (number, id or name)? "] * len(answer)


@pytest.mark.parametrize("answer", [[""], ["what?", "0000", "1" * 5000]])
def test_nothing_is_done_where_nobody_chooses(
    answer: list[str], line: Callable[[str], Any], fake: FakeJupyter, answers: Any
) -> None:
    fake.active = [session(1), session(2)]
    answers(answer)
    with pytest.raises(errors.AmbiguousSession):
        line("shutdown")


def test_launch_sends_what_was_given_and_nothing_else(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    handle = line("launch --preset p --queue q --packages a b --vscode-server false")
    assert isinstance(handle, SessionHandle)
    assert fake.asked[-1] == (
        "POST",
        "clearml-session/api/sessions",
        {"preset": "p", "queue": "q", "packages": ["a", "b"], "vscode_server": False, "launched_by": "magic"},
    )
    assert handle.data["phase"] == "queued"


def test_a_launch_may_take_as_long_as_its_upload(
    line: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deadlines: dict[tuple[str, str], float] = {}
    real = Server.call

    def noting(self: Server, method: str, path: str, body: Any = None, *, deadline: float) -> Any:
        deadlines[method, path] = deadline
        return real(self, method, path, body, deadline=deadline)

    monkeypatch.setattr(Server, "call", noting)
    line(f"launch --upload-files {tmp_path}")
    assert deadlines["POST", "clearml-session/api/sessions"] > ClearMLClient.upload_timeout.default_value


def test_variables_are_expanded_as_ipython_does(shell: Any, fake: FakeJupyter) -> None:
    shell.user_ns.update(queue="gpu 1", tags=["a", "b"])
    result = shell.run_cell(
        "s = %clearml_session launch --queue '{queue}' --tags {' '.join(tags)} --docker '$queue'"
    )
    assert result.success
    body = fake.asked[-1][2]
    assert (body["queue"], body["tags"]) == ("gpu 1", ["a", "b"])
    assert shell.user_ns["s"].id == session(0xABC)["id"]


def test_waiting_shows_how_far_it_is_in_one_display(
    line: Callable[[str], Any], shell: Any, fake: FakeJupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyterlab_clearml_session.magic.waiting.LOOK", 0)
    monkeypatch.setattr("jupyterlab_clearml_session.magic.waiting.LOOK_QUEUED", 0)
    steps: list[dict[str, Any]] = [
        {
            "phase": "queued",
            "phase_text": "Waiting",
            "progress": {"step": 2, "steps": 5, "text": "", "last_line": ""},
        },
        {"phase": "starting", "progress": {"step": 3, "steps": 5, "text": "", "last_line": "<b>pip</b>"}},
        {"phase": "ready", "phase_text": "Ready"},
    ]
    fake.on_get_session = lambda found: found.update(steps.pop(0))
    shell.kernel = object()  # a notebook, not a terminal
    handle = line("launch --wait")
    assert handle.data["phase"] == "ready"
    shown = shell.display_pub.outputs
    assert len({output["transient"]["display_id"] for output in shown}) == 1
    assert [output["update"] for output in shown] == [False, True, True]
    assert 'aria-label="step 2 of 5"' in shown[0]["data"]["text/html"]
    assert "&lt;b&gt;pip&lt;/b&gt;" in shown[1]["data"]["text/html"]
    assert shown[1]["data"]["text/plain"].endswith("s | <b>pip</b>")
    assert shown[2]["data"]["text/plain"].startswith("session 2748 is ready, after ")


def test_in_a_terminal_progress_is_plain_text(
    line: Callable[[str], Any], fake: FakeJupyter, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.active = [session(1)]
    fake.on_get_session = lambda found: found.update(phase="ready")
    line("attach")
    assert capsys.readouterr().out == "session 1 is ready, after 0 s.\n"


def test_ctrl_c_stops_the_waiting_only(magics: ClearMLSessionMagics, shell: Any, fake: FakeJupyter) -> None:
    fake.active = [session(1, phase="starting", phase_text="Starting")]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(errors.WaitInterrupted) as caught:
        wait_until_ready(magics.client, session(1)["id"], Live(shell), pause=interrupt)
    assert caught.value.message == (
        "Stopped waiting for 'session 1' (00000001). The session goes on: it is starting."
    )
    assert caught.value.hint == (
        "'%clearml_session attach 00000001' waits again, '%clearml_session shutdown 00000001' ends it."
    )
    assert {method for method, *_ in fake.asked} == {"GET"}


@pytest.mark.parametrize("code", ["%clearml_session list", "handle.kernels", "handle.run('1')"])
def test_ctrl_c_while_the_server_is_asked_shows_no_frames_of_ours(
    code: str,
    shell: Any,
    line: Callable[[str], Any],
    fake: FakeJupyter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.active = [session(1)]
    shell.user_ns["handle"] = line("status session 1")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "call", interrupted)
    result = shell.run_cell(code)
    assert isinstance(result.error_in_exec, errors.WaitInterrupted)
    shown = "".join(capsys.readouterr())
    assert "Interrupted: the answer is no longer waited for." in shown
    assert "Traceback" not in shown


def test_ctrl_c_in_place_of_an_answer(shell: Any, fake: FakeJupyter, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    fake.active = [session(1), session(2)]
    result = shell.run_cell("%clearml_session shutdown")
    assert isinstance(result.error_in_exec, errors.WaitInterrupted)
    assert not any(method == "DELETE" for method, *_ in fake.asked)


def test_a_line_of_a_terminal_is_not_longer_than_the_terminal(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    live = Live(shell)
    live.show("short", tag("div", ""))
    live.show("long " * 9, tag("div", ""))
    live.show("short again", tag("div", ""))
    live.show("much longer than the terminal is", tag("div", ""))
    live.close()
    live.close()
    written = capsys.readouterr().out
    parts = written.removesuffix("\n").split("\r")
    assert parts == [
        "",
        "short",
        "long long long long long l...",
        "short again".ljust(29),
        "much longer than the termi...",
        "much longer than the terminal is",
    ]


def test_waiting_ends_with_the_deadline_or_the_sessions_own_error(
    line: Callable[[str], Any], fake: FakeJupyter
) -> None:
    fake.active = [session(1, phase="starting")]
    with pytest.raises(errors.NotReadyInTime, match="was not ready within 0 seconds: it is connecting"):
        line("attach --timeout 0")
    failure = error("jupyter_not_started", "The remote Jupyter server ended", log_tail=["x"])
    fake.on_get_session = lambda found: found.update(phase="failed", error=failure["error"])
    with pytest.raises(errors.JupyterNotStarted) as caught:
        line("attach")
    assert caught.value.detail == {"log_tail": ["x"]}
    fake.on_get_session = lambda found: found.update(phase="ended", error=None)
    with pytest.raises(errors.SessionAborted, match="has ended"):
        line("attach")


def test_a_handle_works_in_scripts(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    fake.active = [session(1)]
    fake.on_get_session = lambda found: found.update(phase="ready")
    handle = line("status 00000001")
    assert (handle.id, handle.name, handle.phase) == (session(1)["id"], "session 1", "ready")
    assert handle.kernels[0]["name"] == "python3"
    assert handle.wait(timeout=5) is handle
    assert handle.detach().data["attached"] is False
    assert handle.attach().data["attached"] is True
    assert handle.refresh().data == fake.active[0]
    fake.lines = [{"time": "", "text": "hello"}]
    assert repr(handle.log(1)) == "hello"
    assert handle.shutdown().data["phase"] == "stopping"
    assert repr(handle) == "session 1 (00000001): stopping, Ready"


def test_open_gives_a_command_for_the_lab_and_a_link(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    fake.active = [session(1)]
    place = line("open")
    assert place.url == "/clearml-session/proxy/x/jupyter/lab"
    assert "clearml-session:open-jupyter" in place._repr_html_()
    assert "clearml-session:open-terminal" in line("open session 1 terminal")._repr_html_()
    with pytest.raises(errors.WrongPhase, match=r"\(00000001\) shows no VS Code: it is ready"):
        line("open vscode")
    fake.active = [session(1, attached=False)]
    with pytest.raises(errors.NotAttached) as caught:
        line("open")
    assert caught.value.message == "'session 1' (00000001) is not attached."
    assert caught.value.hint == "Attach first: %clearml_session attach 00000001"


def test_status_alone_shows_clearml_and_the_sessions(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    fake.active = [session(1)]
    status = line("status")
    assert status.data == fake.status
    assert "the embedded default on this machine" in repr(status)
    assert "session 1" in repr(status)
    fake.status = {"mode": "unconfigured", "reachable": False, "error": {"message": "No configuration"}}
    assert "session 1" not in repr(line("status"))


def test_queues_and_presets(line: Callable[[str], Any], fake: FakeJupyter) -> None:
    workers = [{"id": "w", "busy": True, "idle_s": None}]
    fake.queues = [
        {"id": "a", "name": "gpu", "length": 3, "tags": ["interactive"], "workers": workers},
        {"id": "b", "name": "cpu", "length": 0, "tags": [], "workers": []},
    ]
    queues = line("queues")
    assert queues.data == fake.queues
    assert "gpu    3        1 (1 busy)  interactive" in repr(queues)
    spec = LaunchSpec(
        queue="gpu", jupyter_lab=False, public_ip=True, env={"TOKEN": "hush-hush", "MODE": "fast"}
    )
    fake.presets = {"presets": {"mine": spec.to_json()}, "last": {}}
    presets = repr(line("presets"))
    assert "hush-hush" not in presets
    (row,) = [row for row in presets.splitlines() if row.startswith("mine")]
    assert sorted(row.split(None, 1)[1].split(", ")) == sorted(
        ["queue=gpu", "jupyter_lab=False", "public_ip=True", "env=['MODE'", "'TOKEN']"]
    )


def test_server_says_which_and_takes_another(
    line: Callable[[str], Any], fake: FakeJupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repr(line("server")) == f"{fake.url}: in the test"

    def nobody(prompt: str) -> str:
        raise StdinNotImplementedError

    monkeypatch.setattr("jupyterlab_clearml_session.magic.magics.getpass", nobody)
    with pytest.raises(errors.ServerNotFound, match="none of the Jupyter servers that run here"):
        line("server http://127.0.0.1:1/")
    monkeypatch.setattr(
        "jupyterlab_clearml_session.magic.magics.getpass", lambda prompt: "local-token-0123456789"
    )
    assert line(f"server {fake.url}").found == "named in this notebook"


def test_an_error_shows_no_frames_of_ours(
    shell: Any, fake: FakeJupyter, capsys: pytest.CaptureFixture[str]
) -> None:
    result = shell.run_cell("%clearml_session attach nothing")
    assert isinstance(result.error_in_exec, errors.UnknownSession)
    shown = "".join(capsys.readouterr())
    assert "There is no session 'nothing'." in shown
    assert "Traceback" not in shown
    assert "line " not in shown


def test_cells_belong_to_run_only(shell: Any) -> None:
    with pytest.raises(errors.BadArguments, match="What shall be done with the cell"):
        shell.run_cell_magic("clearml_session", "", "1")
    with pytest.raises(errors.BadArguments, match="'list' takes no cell"):
        shell.run_cell_magic("clearml_session", "list", "1")
    with pytest.raises(errors.BadArguments, match="'run' needs a cell"):
        shell.run_line_magic("clearml_session", "run")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(commands())), st.text(max_size=30))
def test_any_line_is_an_object_or_a_typed_error(
    shell: Any, fake: FakeJupyter, answers: Any, name: str, rest: str
) -> None:
    fake.active = [session(1)]
    fake.on_get_session = lambda found: found.update(phase="ready")
    with suppress(errors.ClearMLSessionError):
        shell.run_line_magic("clearml_session", f"{name} {rest}")


def test_loading_it_is_light() -> None:
    """Neither ClearML nor an SSH library comes into the kernel process."""
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance();"
        "s.run_line_magic('load_ext', 'jupyterlab_clearml_session'); s.run_cell('%clearml_session launch --help');"
        "print([m for m in ('clearml', 'asyncssh', 'jupyter_server', 'tornado', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**8, "200.0 MB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_times_that_are_none_are_left_out() -> None:
    assert since(None) == since("yesterday") == ""
