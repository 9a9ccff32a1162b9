"""The tests' own fault switch, and the fixture around the server."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import pytest

from .local_fixture import ApiRefusal, ClearMLUnderTest, Fault


def ping(server: ClearMLUnderTest, timeout: float = 5.0) -> bytes:
    with urllib.request.urlopen(server.credentials["api_server"] + "/debug.ping", timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


def test_passes_everything_through(clearml_server: ClearMLUnderTest) -> None:
    assert b"ClearML server" in ping(clearml_server)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error500", urllib.error.HTTPError),
        ("refuse", urllib.error.URLError),
        ("reset", ConnectionError),
        ("freeze", TimeoutError),
    ],
)
def test_faults_and_recovers(clearml_server: ClearMLUnderTest, fault: Fault, error: type[Exception]) -> None:
    with clearml_server.front.fault(fault), pytest.raises(error):
        ping(clearml_server, timeout=0.3)
    assert b"ClearML server" in ping(clearml_server)


def test_html(clearml_server: ClearMLUnderTest) -> None:
    with clearml_server.front.fault("html"):
        assert ping(clearml_server) == b"<html>Welcome, log in</html>"


def test_counts_calls_of_others(clearml_server: ClearMLUnderTest) -> None:
    start = time.time()
    clearml_server.call("server.info")
    ping(clearml_server)
    assert clearml_server.calls(since=start) == ["debug.ping"]


def test_refusals_are_typed(clearml_server: ClearMLUnderTest) -> None:
    with pytest.raises(ApiRefusal) as caught:
        clearml_server.call("tasks.nope")
    assert (caught.value.status, caught.value.subcode) == (404, 0)
