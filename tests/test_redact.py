"""No secret of a session's console is shown."""

from __future__ import annotations

import pytest

from jupyterlab_clearml_session.redact import MASK, redact, secrets_of

RUNTIME = {
    "_ssh_password": "s3cret-password",
    "_jupyter_token": "deadbeefdeadbeef\n",
    "_jupyter_url": "http://h:1",
}


def test_secrets_of_takes_the_values_without_white_space() -> None:
    assert secrets_of(RUNTIME) == ("deadbeefdeadbeef", "s3cret-password")
    assert secrets_of({"_ssh_password": "abc"}) == ()


@pytest.mark.parametrize(
    "line",
    [
        "http://10.0.0.1:8888/lab?token=deadbeefdeadbeef",
        "the token is deadbeefdeadbeef, he said",
        "{'ssh_password': 's3cret-password'}",
        "password: other-password",
        "Authorization: token unknown-token-value",
        "cloning https://me:ghp_0123456789@host/repo.git",
        "cloning https://ghp_0123456789@host/repo.git",
        "api.credentials.access_key = ACCESS-KEY-OF-THE-AGENT",
        "#\tLOGIN u:root p:abc",
        "sdk.aws.s3.secret_key = 'SECRET-KEY-OF-THE-AGENT'",
    ],
)
def test_a_secret_is_masked(line: str) -> None:
    (masked,) = redact([line], secrets_of(RUNTIME))
    assert MASK in masked
    for secret in ("deadbeef", "s3cret", "other-password", "unknown-token", "ghp_", "OF-THE-AGENT", "p:abc"):
        assert secret not in masked


def test_private_keys_are_masked_over_several_lines() -> None:
    lines = ["before", "-----BEGIN EC PRIVATE KEY-----", "MHcCAQEE", "-----END EC PRIVATE KEY-----", "after"]
    assert redact(lines) == ["before", MASK, MASK, MASK, "after"]


def test_the_end_of_a_private_key_is_masked_where_its_beginning_is_not_among_the_lines() -> None:
    body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW"
    assert redact([body, body[:64], "-----END OPENSSH PRIVATE KEY-----", "after"])[:2] == [MASK, MASK]


def test_a_private_key_in_one_line_is_masked() -> None:
    (masked,) = redact(["k='-----BEGIN RSA PRIVATE KEY-----\\nMIIE\\n-----END RSA PRIVATE KEY-----\\n' rest"])
    assert "MIIE" not in masked
    assert masked.endswith("rest")


def test_ordinary_lines_stay_as_they_are() -> None:
    lines = ["Collecting torch==2.1", "Installing SSH Server on host [10.0.0.1]", "", "ssh://git@host/x.git"]
    lines += ["0123456789abcdef" * 4, "/home/someone/" + "folder/" * 8]
    assert redact(lines, secrets_of(RUNTIME)) == lines
