"""A local git repository as something to clone elsewhere: its address, a commit that others have, and a diff.

The diff goes from that commit to the working tree, so that local commits and new files arrive too. Ignored files
are not looked at; files that look like they hold a secret, and large ones, are left out and named. Nothing in the
repository is changed: the index is a copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from ..errors import GitFailed, InvalidInput, NotARepository
from ..launch_fields import MAX_DIFF
from ..launch_spec import CloneRepo

MAX_FILE = 1024 * 1024
MAX_FILES = 2000
_LONGEST_REASON = 300

_SECRET_NAMES = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.jks", "*.keystore"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".htpasswd"),
    *(".git-credentials", "credentials", "credentials.*", "secrets", "secrets.*", "*.secret", "clearml.conf"),
    *("kubeconfig", "service-account*.json", "*.tfstate"),
)
_SECRET_EXAMPLES = (".env.example", ".env.sample", ".env.template")
_SECRET_TEXT = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rb"|\bAKIA[0-9A-Z]{16}\b"
    rb"|\b(ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{40,}"
    rb"|\bglpat-[A-Za-z0-9_-]{20}|\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{32,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    rb"|\bAIza[0-9A-Za-z_-]{35}\b"
)
# Read-only, quiet, and without running anything that the repository's own configuration names.
_GIT = (
    *(
        "git",
        "--no-pager",
        "--literal-pathspecs",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
    ),
    *("-c", "core.quotePath=false", "-c", "color.ui=false"),
)
_DIFF = (
    "--no-color",  # a user's color.diff is stronger than our color.ui
    "--no-ext-diff",
    "--no-textconv",
    "--ignore-submodules",
    "--no-renames",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


@dataclass(frozen=True)
class RepoSnapshot:
    """What would be sent. ``files`` are in the diff; ``left_out`` are not, each with why."""

    name: str
    url: str
    branch: str
    commit: str
    diff: str
    files: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    local_commits: int = 0

    def clone_repo(self) -> CloneRepo:
        """Return it as the launch option."""
        return CloneRepo(url=self.url, branch=self.branch, commit=self.commit, diff=self.diff)

    def to_json(self) -> dict[str, Any]:
        """Return what a person should see before it is sent, and ``clone_repo`` to send it with."""
        return {
            "name": self.name,
            "files": list(self.files),
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
            "local_commits": self.local_commits,
            "clone_repo": self.clone_repo().to_json(),
        }


def collect_repo(folder: Path, *, allow_local: bool = False, timeout: float = 20.0) -> RepoSnapshot:
    """Look at the git repository that ``folder`` lies in. Blocks; call it in a thread.

    Parameters
    ----------
    allow_local:
        Take the repository's own path as its address where it has no other: only for agents on this machine.
    timeout:
        Seconds for all of it.

    Raises
    ------
    InvalidInput
        For the field ``folder``: not in a repository (`NotARepository`), nothing committed, or no address that
        others could clone.
    GitFailed
    """
    try:
        return _collect(_Git(folder, time.monotonic() + timeout), allow_local=allow_local)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise GitFailed(f"git failed on this repository: {said[:_LONGEST_REASON]}") from None
    except OSError as error:
        raise GitFailed(f"This repository cannot be read: {error.strerror}: {error.filename}") from None


def _collect(git: _Git, *, allow_local: bool) -> RepoSnapshot:
    found = git.tried("rev-parse", "--show-toplevel")
    if not found:
        raise NotARepository("This folder is not in a git repository.", field="folder")
    root = Path(found)
    git.folder = root
    head = git.tried("rev-parse", "--verify", "HEAD")
    if not head:
        raise InvalidInput("Nothing has been committed in this repository yet.", field="folder")
    branch = git.tried("symbolic-ref", "--short", "HEAD")
    remote, url = _remote(git, branch)
    if not url:
        if not allow_local:
            raise InvalidInput(
                "This repository has no remote, so no other machine can clone it.",
                field="folder",
                hint="Push it somewhere first.",
            )
        return _snapshot(git, root, _Base(f"file://{root}", branch, head, 0))
    commit, ahead = _pushed(git, remote, head)
    if not commit:
        raise InvalidInput(
            "No commit of this repository is known to be at its remote.",
            field="folder",
            hint="Push it first.",
        )
    known = branch and git.tried("rev-parse", "--verify", "--quiet", f"refs/remotes/{remote}/{branch}")
    return _snapshot(git, root, _Base(url, branch if known else "", commit, ahead))


def without_credentials(url: str) -> str:
    """Return the address without user and password; an ssh user stays, it is no secret."""
    if "://" not in url:
        return url  # scp-like: user@host:path
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username if parts.scheme == "ssh" else None
    return urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host))


class _Base(NamedTuple):
    """What the changes are relative to, and how many local commits lie above it."""

    url: str
    branch: str
    commit: str
    ahead: int


class _Git:
    """git commands in a folder, all before one moment in time."""

    def __init__(self, folder: Path, until: float) -> None:
        self.folder = folder
        self.until = until
        self.index: Path | None = None

    def tried(self, *arguments: str) -> str:
        """Return the stripped output; empty where the command fails."""
        try:
            return self.run(*arguments).decode("utf-8", "replace").strip()
        except subprocess.CalledProcessError:
            return ""

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C",
        }
        if self.index is not None:
            environment["GIT_INDEX_FILE"] = str(self.index)
        left = self.until - time.monotonic()
        if left <= 0:
            raise GitFailed("git took too long on this repository.")
        try:
            done = subprocess.run(
                [*_GIT, *arguments],
                cwd=self.folder,
                env=environment,
                input=stdin,
                capture_output=True,
                check=True,
                timeout=left,
            )
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise InvalidInput("There is no such folder.", field="folder") from None
            raise GitFailed("git is not installed on this machine.") from None
        except NotADirectoryError:
            raise InvalidInput("This is not a folder.", field="folder") from None
        except subprocess.TimeoutExpired:
            raise GitFailed("git took too long on this repository.") from None
        return done.stdout


def _remote(git: _Git, branch: str) -> tuple[str, str]:
    """Return name and address of the remote: the branch's own, else origin, else the first."""
    remotes = git.tried("remote").splitlines()
    own = git.tried("config", f"branch.{branch}.remote") if branch else ""
    name = next((name for name in (own, "origin", *remotes) if name in remotes), "")
    url = git.tried("remote", "get-url", name) if name else ""
    if url and "://" not in url and not re.match(r"[\w.-]+@[\w.-]+:", url):
        url = f"file://{(git.folder / url).resolve()}"  # another folder of this machine
    return name, without_credentials(url)


def _pushed(git: _Git, remote: str, head: str) -> tuple[str, int]:
    """Return the newest commit below HEAD that the remote has, and how many local ones lie above it."""
    local = git.tried("rev-list", "--boundary", head, "--not", f"--remotes={remote}").splitlines()
    if not local:
        known = git.tried("for-each-ref", "--count=1", f"refs/remotes/{remote}")
        return (head, 0) if known else ("", 0)
    boundary = [line[1:] for line in local if line.startswith("-")]
    return (boundary[0], len(local) - len(boundary)) if boundary else ("", 0)


def _snapshot(git: _Git, root: Path, base: _Base) -> RepoSnapshot:
    with tempfile.TemporaryDirectory(prefix="clearml-session-") as scratch:
        # In a worktree the index is not where one would look for it.
        index = root / os.fsdecode(git.run("rev-parse", "--git-path", "index").strip())
        git.index = Path(scratch) / "index"
        # With its age: by that git knows which files may have changed since without a sign of it.
        shutil.copy2(index, git.index)
        changed = _names(git.run("diff", "--name-only", "-z", *_DIFF, base.commit))
        new = _names(git.run("ls-files", "--others", "--exclude-standard", "-z"))
        left_out = {path: reason for path in [*changed, *new] if (reason := _reason_to_leave_out(root, path))}
        files = sorted(path for path in {*changed, *new} if path not in left_out)
        if len(files) > MAX_FILES:
            raise InvalidInput(
                f"{len(files)} files have changed, at most {MAX_FILES} can be sent.", field="folder"
            )
        added = [path for path in new if path in files]
        if added:
            # Known by name only, so that the diff shows them as new files; no content is stored.
            stdin = b"\0".join(os.fsencode(path) for path in added)
            git.run("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=stdin)
        diff = _diff(git, base.commit, files)
    if _SECRET_TEXT.search(diff):
        raise InvalidInput("The changes look like they hold a secret.", field="folder")
    try:
        text = diff.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput("A file has changed that is not UTF-8 text.", field="folder") from None
    if len(diff) > MAX_DIFF:
        raise InvalidInput(
            f"The changes are too large: {len(diff):,} bytes, at most {MAX_DIFF:,}.",
            field="folder",
            hint="Commit and push them.",
        )
    return RepoSnapshot(
        name=root.name,
        url=base.url,
        branch=base.branch,
        commit=base.commit,
        diff=text,
        files=tuple(files),
        left_out=tuple(sorted(left_out.items())),
        local_commits=base.ahead,
    )


def _diff(git: _Git, commit: str, files: Sequence[str]) -> bytes:
    return git.run("diff", "--binary", *_DIFF, commit, "--", *files) if files else b""


def _reason_to_leave_out(root: Path, path: str) -> str:
    """Return why a changed file is not sent; empty where it is."""
    file = root / path
    if path.endswith("/"):
        return "is a repository of its own"
    if file.is_symlink():
        return (
            ""
            if (file.parent / file.readlink()).resolve().is_relative_to(root)
            else "points out of the repository"
        )
    if not file.is_file():
        return ""  # deleted
    if _is_secret_name(file.name.lower()):
        return "may hold secrets (its name)"
    if file.stat().st_size > MAX_FILE:
        return f"is larger than {MAX_FILE:,} bytes"
    content = file.read_bytes()
    if _SECRET_TEXT.search(content):
        return "may hold secrets (its content)"
    return "" if b"\0" in content or _is_utf8(content) else "is not UTF-8 text"


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_secret_name(name: str) -> bool:
    if name in _SECRET_EXAMPLES or name.endswith(".pub"):
        return False
    return any(fnmatch(name, pattern) for pattern in _SECRET_NAMES)


def _names(output: bytes) -> list[str]:
    names: Iterable[bytes] = filter(None, output.split(b"\0"))
    return [os.fsdecode(name) for name in names]
