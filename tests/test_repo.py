"""A local repository as something to clone elsewhere: real git, real clones."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.repo import RepoSnapshot, collect_repo, without_credentials
from jupyterlab_clearml_session.errors import GitFailed, InvalidInput
from jupyterlab_clearml_session.launch_spec import LaunchSpec

PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nabc\n"


def _git(folder: Path, *arguments: str) -> str:
    command = [
        "git",
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@y",
        "-c",
        "init.defaultBranch=main",
        *arguments,
    ]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=30, env=environment
    )
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A clone with one pushed commit."""
    upstream, clone = tmp_path / "upstream.git", tmp_path / "clone"
    upstream.mkdir()
    _git(upstream, "init", "-q", "--bare")
    _git(tmp_path, "clone", "-q", str(upstream), str(clone))
    (clone / ".gitignore").write_text("ignored.txt\n")
    (clone / "a.txt").write_text("one\n")
    (clone / "sub").mkdir()
    (clone / "sub" / "b.txt").write_text("b\n")
    _git(clone, "add", ".")
    _git(clone, "commit", "-qm", "first")
    _git(clone, "push", "-q", "origin", "HEAD:main")
    _git(clone, "fetch", "-q")
    return clone


def _replica(snapshot: RepoSnapshot, place: Path) -> Path:
    """Clone and patch as clearml-agent does."""
    _git(place.parent, "clone", "-q", snapshot.url.removeprefix("file://"), str(place))
    _git(place, "checkout", "-q", snapshot.commit)
    for path in re.findall(r"^--- a/(.*)", snapshot.diff, re.MULTILINE):
        (place / path).touch()
    if snapshot.diff:
        command = ["git", "apply", "--unidiff-zero"]
        subprocess.run(command, input=snapshot.diff.encode(), cwd=place, check=True, timeout=30)
    return place


def test_a_clean_repository(repo: Path) -> None:
    snapshot = collect_repo(repo / "sub")
    assert snapshot.url == f"file://{repo.parent / 'upstream.git'}"
    assert snapshot.branch == "main"
    assert snapshot.commit == _git(repo, "rev-parse", "HEAD")
    assert (snapshot.diff, snapshot.files, snapshot.left_out, snapshot.local_commits) == ("", (), (), 0)
    assert snapshot.name == "clone"


def test_everything_changed_arrives(repo: Path, tmp_path: Path) -> None:
    (repo / "a.txt").write_text("two\n")
    _git(repo, "commit", "-qam", "not pushed")
    (repo / "a.txt").write_text("three\n")
    (repo / "sub" / "b.txt").unlink()
    (repo / "new ä.txt").write_text("new\r\n")
    (repo / "staged.txt").write_text("staged")
    _git(repo, "add", "staged.txt")
    (repo / "data.bin").write_bytes(bytes(range(256)))
    (repo / "ignored.txt").write_text("ignored")
    status = _git(repo, "status", "--porcelain")

    snapshot = collect_repo(repo)
    assert snapshot.local_commits == 1
    assert snapshot.files == ("a.txt", "data.bin", "new ä.txt", "staged.txt", "sub/b.txt")
    assert _git(repo, "status", "--porcelain") == status  # nothing is changed here

    replica = _replica(snapshot, tmp_path / "replica")
    for name in ("a.txt", "new ä.txt", "staged.txt", "data.bin"):
        assert (replica / name).read_bytes() == (repo / name).read_bytes(), name
    assert not (replica / "sub" / "b.txt").exists()
    assert not (replica / "ignored.txt").exists()
    assert (
        LaunchSpec.from_json({"clone_repo": snapshot.to_json()["clone_repo"]}).clone_repo
        == snapshot.clone_repo()
    )


def test_a_user_s_colours_are_not_sent(repo: Path) -> None:
    _git(repo, "config", "color.diff", "always")
    (repo / "a.txt").write_text("two\n")
    snapshot = collect_repo(repo)
    assert snapshot.files == ("a.txt",)
    assert "\n+two\n" in snapshot.diff


def test_a_change_in_the_second_of_the_commit_is_seen(repo: Path) -> None:
    """The file has the size and the time that the index notes: only by the index's own age git looks into it."""
    _git(repo, "config", "core.trustctime", "false")
    file, then = repo / "quick.py", (10**9, 10**9)
    file.write_text("print(1)\n")
    os.utime(file, then)
    _git(repo, "add", ".")
    _git(repo, "commit", "-qm", "quick")
    _git(repo, "push", "-q", "origin", "HEAD:main")
    _git(repo, "fetch", "-q")
    file.write_text("print(2)\n")
    os.utime(file, then)
    os.utime(repo / ".git" / "index", then)
    assert "+print(2)" in collect_repo(repo).diff


def test_likely_secrets_and_large_files_are_left_out(repo: Path) -> None:
    for name in (".env", "server.pem", "id_ed25519", "credentials.json", "sub/.npmrc"):
        (repo / name).write_text("value")
    (repo / "notes.txt").write_text(f"see\n{PRIVATE_KEY}")
    (repo / "a.txt").write_text("token = 'ghp_" + "a" * 36 + "'\n")
    (repo / "big.bin").write_bytes(bytes(1024 * 1024 + 1))
    (repo / "latin.txt").write_bytes("ä".encode("latin-1"))
    (repo / "outside").symlink_to("/etc/hostname")
    for name in (".env.example", "id_ed25519.pub", "keyboard.txt"):
        (repo / name).write_text("fine")
    snapshot = collect_repo(repo)
    assert snapshot.files == (".env.example", "id_ed25519.pub", "keyboard.txt")
    assert {path for path, _ in snapshot.left_out} == {
        *(".env", "server.pem", "id_ed25519", "credentials.json", "sub/.npmrc"),
        *("notes.txt", "a.txt", "big.bin", "latin.txt", "outside"),
    }
    assert all(reason for _, reason in snapshot.left_out)
    assert "ghp_" not in snapshot.diff
    shown = snapshot.to_json()
    assert {"path": ".env", "reason": "may hold secrets (its name)"} in shown["left_out"]


def test_a_secret_that_is_being_removed_is_not_sent_either(repo: Path) -> None:
    (repo / "a.txt").write_text(PRIVATE_KEY)
    _git(repo, "commit", "-qam", "oops")
    _git(repo, "push", "-q", "origin", "HEAD:main")
    _git(repo, "fetch", "-q")
    (repo / "a.txt").write_text("clean\n")
    with pytest.raises(InvalidInput) as caught:
        collect_repo(repo)
    assert "PRIVATE" not in str(caught.value.to_json())


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:secret@host/repo.git", "https://host/repo.git"),
        ("https://token@host:8443/repo.git", "https://host:8443/repo.git"),
        ("ssh://git@host:2222/repo.git", "ssh://git@host:2222/repo.git"),
        ("ssh://git:secret@host/repo.git", "ssh://git@host/repo.git"),
        ("git@host:team/repo.git", "git@host:team/repo.git"),
        ("https://host/repo.git", "https://host/repo.git"),
    ],
)
def test_credentials_are_taken_out_of_addresses(repo: Path, given: str, shown: str) -> None:
    _git(repo, "remote", "set-url", "origin", given)
    assert without_credentials(given) == shown
    snapshot = collect_repo(repo)
    assert snapshot.url == shown
    assert LaunchSpec.from_json({"clone_repo": snapshot.to_json()["clone_repo"]}).clone_repo is not None


def test_a_branch_that_only_we_have(repo: Path) -> None:
    _git(repo, "checkout", "-qb", "local-only")
    snapshot = collect_repo(repo)
    assert snapshot.branch == ""
    assert snapshot.commit == _git(repo, "rev-parse", "origin/main")


def test_a_worktree_and_a_detached_head(repo: Path, tmp_path: Path) -> None:
    _git(repo, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    (tmp_path / "tree" / "a.txt").write_text("changed in the tree\n")
    snapshot = collect_repo(tmp_path / "tree")
    assert snapshot.files == ("a.txt",)
    assert snapshot.branch == ""


def test_a_repository_without_a_remote(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    with pytest.raises(InvalidInput):
        collect_repo(tmp_path)  # nothing committed
    (tmp_path / "a").write_text("a")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "x")
    with pytest.raises(InvalidInput) as caught:
        collect_repo(tmp_path)
    assert caught.value.detail["field"] == "folder"
    assert collect_repo(tmp_path, allow_local=True).url == f"file://{tmp_path}"


def test_a_remote_that_was_never_pushed_to(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "x")
    _git(tmp_path, "remote", "add", "origin", "https://host/repo.git")
    with pytest.raises(InvalidInput):
        collect_repo(tmp_path)


def test_folders_that_are_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(InvalidInput) as caught:
            collect_repo(folder)
        assert caught.value.detail["field"] == "folder"


def test_a_repository_that_is_broken(repo: Path) -> None:
    (repo / "new.txt").write_text("new\n")
    (repo / ".git" / "index").write_bytes(b"nonsense")
    with pytest.raises(GitFailed, match="git failed on this repository"):
        collect_repo(repo)
    (repo / ".git" / "index").unlink()  # as `git clone --no-checkout` leaves it
    with pytest.raises(GitFailed, match="No such file"):
        collect_repo(repo)


def test_git_that_takes_too_long(repo: Path) -> None:
    with pytest.raises(GitFailed):
        collect_repo(repo, timeout=-60)


def test_git_that_is_not_there(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repo))
    with pytest.raises(GitFailed):
        collect_repo(repo)


def test_nothing_that_the_repository_names_is_run(repo: Path) -> None:
    for key in ("core.fsmonitor", "diff.external", "core.pager", "core.editor"):
        _git(repo, "config", key, f"touch {repo}/ran-{key}; true")
    (repo / ".gitattributes").write_text("*.txt diff=evil\n")
    _git(repo, "config", "diff.evil.textconv", f"touch {repo}/ran-textconv; cat")
    (repo / "a.txt").write_text("changed\n")
    collect_repo(repo)
    assert list(repo.glob("ran-*")) == []


async def test_from_the_client(repo: Path) -> None:
    assert (await ClearMLClient().collect_repo(repo)).branch == "main"
