"""Artifacts of a session, made as the SDK's upload_artifact does: files for it, and snapshots of its workspace.

``session-files``: one file goes as it is, a folder as a zip of what is in it, several paths as one zip; the remote
script unpacks them into ``~/session-files``. ``workspace``: the snapshot that the remote script restores into a
session that continues this one. Everything here blocks and runs in a thread.
"""

from __future__ import annotations

import hashlib
import mimetypes
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit
from zipfile import ZIP_DEFLATED, ZipFile

from ..errors import ClearMLUnreachable, InvalidInput, UploadFailed

if TYPE_CHECKING:
    from .sdk import BoundedSession

NAME = "session-files"
WORKSPACE = "workspace"
Tell = Callable[[str, float], None]

_MAX_PREVIEW = 65536
_TIMEOUT = (5.0, 60.0)


def check(paths: Sequence[str]) -> None:
    """Raise InvalidInput for the field ``upload_files`` where a path is not there or two have the same name."""
    names: set[str] = set()
    for text in paths:
        try:
            path = Path(text).expanduser().resolve()
            usable = path.is_file() or path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, nobody's home
            raise InvalidInput(f"'{text}' cannot be read: {error}.", field="upload_files") from None
        if not usable:
            raise InvalidInput(f"There is no file or folder '{text}'.", field="upload_files")
        if path.name in names:
            raise InvalidInput(f"Two things to upload have the name '{path.name}'.", field="upload_files")
        names.add(path.name)


def upload(session: BoundedSession, paths: Sequence[Path], *, folder: str, progress: Tell) -> dict[str, Any]:
    """Upload and return the artifact as tasks.add_or_update_artifacts takes it.

    ``folder`` names the session on the server. ``progress`` hears what is done and the fraction from 0 to 1, in
    this thread. Raises InvalidInput, ClearMLUnreachable and UploadFailed.
    """
    paths = [path.expanduser() for path in paths]
    with tempfile.TemporaryDirectory(prefix="clearml-session-") as scratch:
        try:
            source, preview, name = _pack(paths, Path(scratch), progress)
            packed = source.parent == Path(scratch)
            artifact = _described(
                NAME, "archive" if packed and name.endswith(".zip") else "custom", source, preview
            )
        except (OSError, ValueError) as error:  # not to be read; a name that is not Unicode
            raise InvalidInput(f"The files cannot be read: {error}.", field="upload_files") from None
        return _stored(session, artifact, source, folder=folder, progress=progress)


def upload_workspace(session: BoundedSession, archive: Path, *, preview: str, folder: str) -> dict[str, Any]:
    """Upload a ``.tar.gz`` of a session's workspace and return the artifact.

    Its mode is "input", as the remote script leaves it: it is not deleted with the Task that continues from it.
    Raises ClearMLUnreachable and UploadFailed.
    """
    artifact = {**_described(WORKSPACE, "custom", archive, preview), "mode": "input"}
    return _stored(session, artifact, archive, folder=folder, progress=lambda text, fraction: None)


def _described(key: str, kind: str, source: Path, preview: str) -> dict[str, Any]:
    return {
        "key": key,
        "type": kind,
        "content_size": source.stat().st_size,
        "hash": _digest(source),
        "timestamp": int(time.time()),
        "type_data": {
            "preview": preview[:_MAX_PREVIEW],
            "content_type": mimetypes.guess_type(source.name)[0] or "",
        },
        "mode": "output",
    }


def _stored(
    session: BoundedSession, artifact: dict[str, Any], source: Path, *, folder: str, progress: Tell
) -> dict[str, Any]:
    files_server = session.files_server()
    destination = session.default_output_uri() or files_server
    uri = f"{destination}/{quote(folder)}/artifacts/{artifact['key']}/{quote(source.name)}"
    progress("Uploading files", 0.0)
    headers = session.add_auth_headers({}) if _origin(uri) == _origin(files_server) else {}
    _send(session, source, uri, artifact["content_size"], progress, headers=headers)
    progress("Uploading files", 1.0)
    return {**artifact, "uri": uri}


def _pack(paths: Sequence[Path], scratch: Path, progress: Tell) -> tuple[Path, str, str]:
    """Return the file to send, what it holds as text, and its name on the server."""
    if len(paths) == 1 and paths[0].is_file():
        path = paths[0]
        return path, f"{path.name} - {path.stat().st_size:,} B\n", path.name
    single = len(paths) == 1
    name = f"{paths[0].resolve().name or NAME}.zip" if single else f"{NAME}.zip"
    target = scratch / name
    preview = ["Archive content:"]
    files = sorted(_files(paths, single=single))
    # Times before 1980, as reproducible builds have them, become 1980.
    with ZipFile(target, "w", compression=ZIP_DEFLATED, strict_timestamps=False) as archive:
        for number, (inside, path) in enumerate(files):
            progress("Packing files", number / len(files))
            preview.append(f"{inside} - {path.stat().st_size:,} B")
            archive.write(path, arcname=inside)
    return target, "\n".join([*preview, ""]), name


def _files(paths: Sequence[Path], *, single: bool) -> Iterator[tuple[str, Path]]:
    for path in paths:
        if path.is_file():
            yield path.name, path
            continue
        root = path if single else path.resolve().parent
        for file in path.resolve().rglob("*") if not single else path.rglob("*"):
            if file.is_file():
                yield file.relative_to(root).as_posix(), file


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _origin(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.scheme, parts.netloc


def _send(
    session: BoundedSession, source: Path, uri: str, size: int, progress: Tell, *, headers: Mapping[str, str]
) -> None:
    if urlsplit(uri).scheme in ("http", "https"):
        _post(session, source, uri, size, progress, headers=headers)
        return
    # S3, Google, Azure or a shared folder: the SDK knows them, and the user's credentials for them.
    from clearml import StorageManager

    try:
        StorageManager.upload_file(str(source), uri)
    except Exception as error:  # noqa: BLE001 - the SDK's drivers raise whatever their libraries do
        raise UploadFailed(f"The files could not be stored ({type(error).__name__}).") from None


def _post(
    session: BoundedSession, source: Path, uri: str, size: int, progress: Tell, *, headers: Mapping[str, str]
) -> None:
    """Send one file as the multipart form that ClearML's file server takes, in constant memory."""
    import requests  # not at server start

    parts = urlsplit(uri)
    with source.open("rb") as stream:
        body = _Form(
            stream,
            size,
            parts.path.lstrip("/"),
            lambda done: progress("Uploading files", done / max(1, size)),
        )
        try:
            answer = requests.post(
                f"{parts.scheme}://{parts.netloc}",
                data=body,
                headers={**headers, "Content-Type": body.content_type},
                timeout=_TIMEOUT,
                verify=session.verify,
            )
        except requests.exceptions.RequestException:
            raise ClearMLUnreachable(
                "ClearML's file server cannot be reached, or broke off the upload."
            ) from None
    if answer.status_code != 200:
        raise UploadFailed(f"ClearML's file server answered HTTP {answer.status_code}.")


class _Form:
    """A multipart form with one file, read piece by piece; `requests` asks for its length and reads it."""

    def __init__(self, stream: BinaryIO, size: int, path: str, tell: Callable[[int], None]) -> None:
        boundary = secrets.token_hex(16)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        name = path.replace('"', "%22")
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._stream = stream
        self._size = size
        self._tell = tell
        self._done = 0

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        # A file that grows meanwhile is sent as long as was said.
        while block := self._stream.read(min(1 << 18, self._size - self._done)):
            yield block
            self._done += len(block)
            self._tell(self._done)
        yield self._tail
