"""SSH host keys: fresh, readable by sshd's own tools, and the public halves found again."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import asyncssh
import pytest

from jupyterlab_clearml_session.backend import host_keys, remote_script
from jupyterlab_clearml_session.errors import RemoteScriptMissing


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return host_keys.generate()


def _default_names() -> set[str]:
    scope: dict[str, object] = {}
    source = remote_script.remote_source("interactive_session_task.py")
    begin = source.index("default_ssh_fingerprint = {")
    exec(source[begin : source.index("\n}\n", begin) + 3], scope)
    default = scope["default_ssh_fingerprint"]
    assert isinstance(default, dict)
    return set(default)


def test_the_names_are_upstream_s(keys: dict[str, str]) -> None:
    assert set(keys) == _default_names()


def test_every_launch_has_its_own(keys: dict[str, str]) -> None:
    other = host_keys.generate()
    assert all(other[name] != value for name, value in keys.items())


@pytest.mark.parametrize("name", host_keys.NAMES)
def test_private_and_public_halves_belong_together(keys: dict[str, str], name: str) -> None:
    private = asyncssh.import_private_key(keys[name])
    public = asyncssh.import_public_key(keys[f"{name}__pub"])
    assert private.public_data == public.public_data


@pytest.mark.parametrize("name", host_keys.NAMES)
def test_openssh_reads_them(keys: dict[str, str], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch(mode=0o600)
    path.write_text(keys[name])
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True, timeout=30
    )
    assert shown.stdout.split()[:2] == keys[f"{name}__pub"].split()[:2]


def test_public_keys_of_a_configuration(keys: dict[str, str]) -> None:
    found = host_keys.public_keys(json.dumps(keys))
    assert found == host_keys.public_keys(keys)
    assert [line.split()[0] for line in found] == ["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"]
    assert not any("PRIVATE" in line for line in found)


def test_a_missing_public_half_is_derived(keys: dict[str, str]) -> None:
    private_only = {name: value for name, value in keys.items() if not name.endswith("__pub")}
    assert host_keys.public_keys(private_only) == host_keys.public_keys(keys)


@pytest.mark.parametrize(
    "nonsense", ["", "  ", "{", "[]", "7", '{"ssh_host_rsa_key": "not a key"}', '{"a": 1}', "[" * 100_000]
)
def test_nonsense_holds_no_keys(nonsense: str) -> None:
    assert host_keys.public_keys(nonsense) == ()


def test_a_key_of_a_kind_that_nobody_here_knows_is_left_out(keys: dict[str, str]) -> None:
    """What a Task or a vault holds, others have written."""

    def packed(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    public, private = packed(b"ssh-next-year", b"key"), packed(b"private")
    key = b"openssh-key-v1\0" + packed(b"none", b"none", b"") + b"\0\0\0\1" + packed(public, private)
    text = base64.encodebytes(key).decode()
    unknown = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}-----END OPENSSH PRIVATE KEY-----\n"
    found = host_keys.public_keys({**keys, "ssh_host_rsa_key": unknown, "ssh_host_rsa_key__pub": None})
    assert [line.split()[0] for line in found] == ["ecdsa-sha2-nistp256", "ssh-ed25519"]


def test_upstream_s_default_keys_are_known(keys: dict[str, str]) -> None:
    default = host_keys.default_public_keys()
    assert [line.split()[0] for line in default] == ["ecdsa-sha2-nistp256", "ssh-ed25519", "ssh-rsa"]
    assert not set(default) & set(host_keys.public_keys(keys))


def test_a_file_that_the_package_lacks() -> None:
    with pytest.raises(RemoteScriptMissing):
        remote_script.remote_source("no_such_file.py")
