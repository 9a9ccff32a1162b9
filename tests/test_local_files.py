"""The file server of the embedded default."""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from .local_fixture import ClearMLUnderTest

BOUNDARY = b"a-boundary"


def send(
    server: ClearMLUnderTest, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    pair = f"{server.credentials['access_key']}:{server.credentials['secret_key']}"
    request = urllib.request.Request(
        f"{server.credentials['files_server']}/{path}",
        body or None,
        {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode(), **(headers or {})},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def form(**parts: bytes) -> tuple[bytes, dict[str, str]]:
    body = b""
    for name, content in parts.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="x"\r\nContent-Type: text/plain'
        body += b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"
    body += b"--" + BOUNDARY + b"--\r\n"
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


TRICKY = {
    "empty": b"",
    "line-ends": b"\r\n\r\n--\r\n",
    "almost-a-boundary": b"--" + BOUNDARY + b"x\r\n--a-bound\r\n",
    "across-chunks": os.urandom((1 << 20) - 30) + b"\r\n--a-boundarX" + os.urandom(3_000_000),
}


def test_form_of_several_parts(clearml_server: ClearMLUnderTest) -> None:
    parts = {f"project/task/{name}.bin": content for name, content in TRICKY.items()}
    status, answer = send(clearml_server, "POST", "", *form(**parts))
    assert status == 200, answer
    for path, content in parts.items():
        assert send(clearml_server, "GET", path) == (200, content), path


def test_put_get_delete(clearml_server: ClearMLUnderTest) -> None:
    content = os.urandom(2_500_000)
    assert send(clearml_server, "PUT", "some/file%20name.bin", content)[0] == 200
    assert send(clearml_server, "GET", "some/file%20name.bin") == (200, content)
    assert send(clearml_server, "HEAD", "some/file%20name.bin") == (200, b"")
    assert send(clearml_server, "DELETE", "some/file%20name.bin")[0] == 200
    assert send(clearml_server, "GET", "some/file%20name.bin")[0] == 404
    assert send(clearml_server, "DELETE", "some/file%20name.bin")[0] == 404


@pytest.mark.parametrize("path", ["../escaped", "a/../../escaped", "%2e%2e/escaped", "..%2fescaped", ""])
def test_stays_inside(clearml_server: ClearMLUnderTest, path: str, tmp_path: Path) -> None:
    assert send(clearml_server, "PUT", path, b"x")[0] == 400
    body, headers = form(**{path: b"x"})
    assert send(clearml_server, "POST", "", body, headers)[0] == 400
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_needs_credentials(clearml_server: ClearMLUnderTest, method: str) -> None:
    body = b"x" if method in ("POST", "PUT") else b""
    status, _ = send(clearml_server, method, "file", body, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="})
    assert status == 401


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x", {"Content-Type": "text/plain"}),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}),
        (
            b"--b\r\nContent-Type: x\r\n\r\nx\r\n--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b"},
        ),
    ],
)
def test_bad_forms(clearml_server: ClearMLUnderTest, body: bytes, headers: dict[str, str]) -> None:
    assert send(clearml_server, "POST", "", body, headers)[0] == 400
