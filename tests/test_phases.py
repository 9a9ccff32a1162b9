"""The phase machine: every phase, from the Task and what is known beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jupyterlab_clearml_session.errors import ConnectionRefused, HostKeyMismatch, JupyterPortClash
from jupyterlab_clearml_session.models import Phase, Task, TunnelState, TunnelStatus
from jupyterlab_clearml_session.phases import Circumstances, services, stand

PUBLISHED: dict[str, Any] = {
    "parameters": {
        "properties/external_address": "10.0.0.7",
        "properties/internal_ssh_port": "10022",
        "properties/jupyter_port": "8888",
        "properties/vscode_port": "-1",
    },
    "runtime": {"_ssh_password": "hunter2hunter2", "_jupyter_token": "0123456789abcdef\n"},
}


def task(status: str, **changes: Any) -> Task:
    return Task(id="a" * 32, name="t", status=status, **changes)


RUNNING = task("in_progress", **PUBLISHED)
UP = TunnelStatus(state=TunnelState.UP)
RETRYING = TunnelStatus(
    state=TunnelState.RECONNECTING, attempt=3, cause=ConnectionRefused("Refused").to_json()
)
MISMATCH = TunnelStatus(state=TunnelState.FAILED, attempt=1, cause=HostKeyMismatch("Other key").to_json())
CLASH = JupyterPortClash("Not ours").to_json()
NO_JUPYTER = replace(
    RUNNING,
    parameters={
        **RUNNING.parameters,
        "properties/jupyter_port": "",
        "interactive_session/jupyterlab": "False",
    },
)

CASES = [
    (task("created"), Circumstances(), Phase.CREATED, None),
    (task("queued"), Circumstances(position=2, workers=1), Phase.QUEUED, None),
    (task("queued"), Circumstances(stop_requested=True), Phase.STOPPING, None),
    (task("in_progress"), Circumstances(last_line="pip"), Phase.STARTING, None),
    (task("in_progress"), Circumstances(overdue=True), Phase.FAILED, "setup_deadline"),
    (task("in_progress", status_message="stopping"), Circumstances(), Phase.STOPPING, None),
    (RUNNING, Circumstances(), Phase.SERVICES_UP, None),
    (RUNNING, Circumstances(attach=True), Phase.CONNECTING, None),
    (RUNNING, Circumstances(attach=True, tunnel=UP), Phase.CONNECTING, None),
    (RUNNING, Circumstances(attach=True, tunnel=UP, jupyter=True), Phase.READY, None),
    (RUNNING, Circumstances(attach=True, tunnel=UP, trouble=CLASH), Phase.FAILED, "jupyter_port_clash"),
    (RUNNING, Circumstances(attach=True, tunnel=RETRYING), Phase.RECONNECTING, None),
    (RUNNING, Circumstances(attach=True, tunnel=MISMATCH), Phase.FAILED, "host_key_mismatch"),
    (NO_JUPYTER, Circumstances(attach=True, tunnel=UP), Phase.READY, None),
    (
        task("failed", status_reason="exit code 1"),
        Circumstances(log_tail=("boom",)),
        Phase.FAILED,
        "session_failed",
    ),
    (task("completed"), Circumstances(), Phase.FAILED, "jupyter_not_started"),
    (task("completed", **PUBLISHED), Circumstances(), Phase.ENDED, None),
    (task("stopped"), Circumstances(), Phase.ENDED, None),
    (task("stopped"), Circumstances(watched=True), Phase.ENDED, "session_aborted"),
    (task("stopped"), Circumstances(watched=True, stop_requested=True), Phase.ENDED, None),
]


@pytest.mark.parametrize(("seen", "known", "phase", "code"), CASES)
def test_stand(seen: Task, known: Circumstances, phase: Phase, code: str | None) -> None:
    standing = stand(seen, known)
    assert standing.phase is phase
    assert (standing.error["code"] if standing.error else None) == code
    assert standing.text
    assert "hunter2" not in repr(standing)


@pytest.mark.parametrize(
    ("published", "missing", "advice"),
    [({}, "SSH", "force dropbear"), ({"properties/internal_ssh_port": "10022"}, "Jupyter", "of the log")],
)
def test_what_came_too_late_is_named_with_what_helps_there(
    published: dict[str, str], missing: str, advice: str
) -> None:
    error = stand(task("in_progress", parameters=published), Circumstances(overdue=True)).error
    assert error is not None
    assert error["message"] == f"The remote {missing} server did not come up in time"
    assert advice in error["hint"]
    assert (missing == "SSH") == ("SSH" in error["hint"])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("", "The session was stopped from elsewhere"),
        ("Stopped by somebody", "Stopped by somebody"),
        ("Changed by clearml-agent machine:gpu0", "The session was stopped from elsewhere"),
    ],
)
def test_what_an_agent_writes_at_each_change_is_no_reason(message: str, shown: str) -> None:
    standing = stand(task("stopped", status_message=message), Circumstances(watched=True))
    assert standing.text == shown


def test_a_failed_session_shows_its_log_tail() -> None:
    standing = stand(task("failed"), Circumstances(log_tail=("no such package",)))
    assert standing.error is not None
    assert standing.error["detail"]["log_tail"] == ["no such package"]


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (Circumstances(workers=0), "no agent serves"),
        (Circumstances(position=1, workers=1), "place 1, 1 agent"),
        (Circumstances(position=3, workers=2), "place 3, 2 agents"),
        (Circumstances(), "Waiting in the queue"),
    ],
)
def test_a_waiting_session_says_what_it_waits_for(known: Circumstances, text: str) -> None:
    assert text in stand(task("queued"), known).text


@pytest.mark.parametrize(
    ("runtime", "parameters", "address", "port"),
    [
        ({}, {"external_address": "a", "internal_ssh_port": "1"}, "a", 1),
        ({}, {"external_address": "a", "internal_ssh_port": "1", "external_ssh_port": "2"}, "a", 2),
        (
            {},
            {
                "external_address": "a",
                "k8s-gateway-address": "k",
                "k8s-pod-port": "3",
                "external_ssh_port": "2",
            },
            "k",
            3,
        ),
        (
            {"external_address": "r", "external_tcp_port": 4},
            {"external_address": "a", "k8s-pod-port": "3"},
            "r",
            4,
        ),
        ({}, {"external_address": "a", "internal_ssh_port": ""}, "a", None),
        ({}, {"external_address": "a", "internal_ssh_port": "70000"}, "a", None),
    ],
)
def test_addresses_are_taken_in_upstream_s_order(
    runtime: dict[str, Any], parameters: dict[str, str], address: str, port: int | None
) -> None:
    named = {f"properties/{name}": value for name, value in parameters.items()}
    found = services(task("in_progress", runtime=runtime, parameters=named))
    assert (found.address, found.ssh_port) == (address, port)


def test_services_cut_the_token_s_newline_and_hide_it() -> None:
    found = services(RUNNING)
    assert found.token == "0123456789abcdef"
    assert found.vscode_port is None
    assert "0123456789abcdef" not in repr(found)
    assert "hunter2" not in repr(RUNNING)
