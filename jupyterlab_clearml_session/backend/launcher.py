"""Launching: the few calls around `draft.py`. At most four, besides uploads:

the queue's id, the project's id (both remembered), the Task, and its place in the queue. A launch that starts from
another Task reads that Task, and then needs no project unless one is named. Where a project does not exist yet,
making it is one more, once.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    ClearMLBadAnswer,
    ClearMLSessionError,
    InvalidInput,
    NotConfigured,
    UnknownQueue,
    UnknownSource,
)
from ..launch_spec import LaunchSpec
from ..models import Queue, Ref, Task
from . import git_files, host_keys, reading, uploads
from .draft import DEFAULT_PROJECT, SYSTEM_TAG, Materials, draft, source_id
from .launch import with_host_keys

if TYPE_CHECKING:
    from .client import ClearMLClient

Progress = Callable[[str, float], None]
"""Called on the event loop with what is being done and the fraction from 0 to 1."""

Created = Callable[[Task], None]
"""Called on the event loop when the Task is there, before its files are uploaded."""

_REMEMBER_QUEUES_S = 60.0
_LOCAL_DEADLINE = 60.0
"""Seconds for work on this machine: making keys, looking at files (a folder of the network may hang)."""
_BAD_REFERENCE = 16
_EXISTS = 801


class _UploadAbandoned(Exception):
    """Nobody waits for the upload any more."""


class Launcher:
    """Launches sessions on one server; remembers ids of queues (for a minute) and projects."""

    def __init__(self, client: ClearMLClient) -> None:
        self._client = client
        self._queues: Sequence[Queue] = ()
        self._queues_at = -float("inf")
        self._projects: dict[str, str] = {}
        self._discarding: set[asyncio.Future[None]] = set()

    def saw_queues(self, queues: Sequence[Queue]) -> None:
        """Remember a list of queues that was read anyway."""
        self._queues, self._queues_at = queues, time.monotonic()

    def saw_projects(self, projects: Iterable[Ref]) -> None:
        """Remember projects that were read anyway, as those of sessions."""
        self._projects.update((project.name, project.id) for project in projects if project.name)

    async def launch(
        self, spec: LaunchSpec, *, launched_by: str, created: Created | None, progress: Progress | None
    ) -> Task:
        """Create the Task, upload files to it, put it into its queue and return it; see `ClearMLClient.launch`."""
        if not self._client.is_configured():
            raise NotConfigured("ClearML is not configured on this machine.")
        connection = self._client.connection
        session = await connection.login()
        await self._run(uploads.check, spec.upload_files)
        # A wrong queue or Task is found before anything is made.
        keys, queue, source, files = await asyncio.gather(
            self._run(host_keys.generate),
            self._queue(spec.queue),
            self._source(spec),
            self._run(git_files.collect) if spec.git_credentials else _nothing(),
        )
        if source is not None and spec.store_workspace and not spec.continue_session:
            spec = spec.replace(continue_session=str(source["id"]))
        sends_keys = self._client.send_user_credentials
        materials = Materials(
            password=spec.password or secrets.token_hex(32),
            host_keys=keys,
            host_public_keys=host_keys.public_keys(keys),
            launched_by=launched_by,
            project=await self._project(spec, source),
            source=source,
            user_key=session.access_key or "" if sends_keys else "",
            user_secret=session.secret_key or "" if sends_keys else "",
            git_files=files,
        )
        task_id, body = await self._create(spec, materials)
        task = self._task(task_id, body, queue, _project_name(spec, source), session.user_id())
        try:
            if created is not None:
                created(replace(task, status="created"))
            if spec.upload_files:
                await self._upload(task_id, body, spec.upload_files, progress)
            await connection.call("tasks.enqueue", task=task_id, queue=queue.id)
        except BaseException:
            # Cancelled too: no half-made session may stay behind in the list.
            self._queues_at = -float("inf")
            discarding = asyncio.ensure_future(self._discard(task_id))
            self._discarding.add(discarding)
            discarding.add_done_callback(self._discarding.discard)
            await asyncio.shield(discarding)
            raise
        return task

    async def _create(self, spec: LaunchSpec, materials: Materials) -> tuple[str, dict[str, Any]]:
        body = draft(spec, materials)
        try:
            return await self._client.create(body), body
        except ClearMLBadAnswer as error:
            if (
                error.detail.get("subcode") != _BAD_REFERENCE
                or materials.project not in self._projects.values()
            ):
                raise
        # The project that we remembered has been deleted meanwhile.
        self._projects.clear()
        body = draft(spec, replace(materials, project=await self._project(spec, materials.source)))
        return await self._client.create(body), body

    # -- the queue -------------------------------------------------------------------------------------

    async def _queue(self, wanted: str) -> Queue:
        found = _find(self._queues, wanted) if wanted and self._fresh() else None
        if found is not None:
            return found
        queues = self._queues if self._fresh() and not wanted else await self._client.queues()
        if wanted:
            found = _find(queues, wanted)
            if found is None:
                raise UnknownQueue(f"There is no queue '{wanted}'.", field="queue")
            return found
        return self._choose(queues)

    def _choose(self, queues: Sequence[Queue]) -> Queue:
        """Choose as upstream offers: queues tagged interactive first, else those that the tags allow, by name."""
        include, exclude = set(self._client.queue_include_tags), set(self._client.queue_exclude_tags)
        tags = {queue.id: {*queue.tags, *queue.system_tags} for queue in queues}
        allowed = sorted(
            (queue for queue in queues if not tags[queue.id] & exclude), key=lambda queue: queue.name
        )
        if include:
            chosen = [queue for queue in allowed if tags[queue.id] & include]
        else:
            chosen = [queue for queue in allowed if SYSTEM_TAG in queue.system_tags] or allowed
        if not chosen:
            raise UnknownQueue(
                "There is no queue for sessions.",
                field="queue",
                hint="Create a queue in ClearML, or change queue_include_tags and queue_exclude_tags.",
            )
        return chosen[0]

    def _fresh(self) -> bool:
        return time.monotonic() - self._queues_at < _REMEMBER_QUEUES_S

    # -- what it starts from ---------------------------------------------------------------------------

    async def _source(self, spec: LaunchSpec) -> Mapping[str, Any] | None:
        task_id = source_id(spec)
        if task_id:
            return await self._named_source(spec, task_id)
        if spec.store_workspace:
            return await self._last_workspace()
        return None

    async def _named_source(self, spec: LaunchSpec, task_id: str) -> Mapping[str, Any]:
        data = await self._client.connection.call("tasks.get_all_ex", id=[task_id])
        entries = data.get("tasks") or []
        if not entries:
            raise UnknownSource(f"ClearML has no Task {task_id}.", field=_field_of(spec))
        source: Mapping[str, Any] = entries[0]
        if spec.continue_session == task_id and spec.store_workspace and not _artifacts(source):
            raise InvalidInput("That session stored no workspace.", field="continue_session")
        return source

    async def _last_workspace(self) -> Mapping[str, Any] | None:
        """Return the user's last ended session, if it stored a workspace: upstream continues that one."""
        data = await self._client.connection.call(
            "tasks.get_all_ex",
            status=["failed", "stopped", "completed"],
            system_tags=[SYSTEM_TAG],
            user=[await self._client.user_id()],
            order_by=["-last_update"],
            page=0,
            page_size=1,
        )
        entries = data.get("tasks") or []
        return entries[0] if entries and _artifacts(entries[0]) else None

    # -- the project -----------------------------------------------------------------------------------

    async def _project(self, spec: LaunchSpec, source: Mapping[str, Any] | None) -> str | None:
        if spec.project is None and source is not None:
            return None  # that of the source
        name = spec.project or DEFAULT_PROJECT
        if name not in self._projects:
            self._projects[name] = await self._find_project(name) or await self._create_project(name)
        return self._projects[name]

    async def _find_project(self, name: str) -> str | None:
        data = await self._client.connection.call(
            "projects.get_all", name=f"^{re.escape(name)}$", only_fields=["id", "name"], page=0, page_size=10
        )
        return next(
            (str(entry["id"]) for entry in data.get("projects") or [] if entry.get("name") == name), None
        )

    async def _create_project(self, name: str) -> str:
        try:
            data = await self._client.connection.call("projects.create", name=name, description="")
        except ClearMLBadAnswer as error:
            found = await self._find_project(name) if error.detail.get("subcode") == _EXISTS else None
            if found is None:
                raise
            return found  # another launch, or another program, was faster
        if not data.get("id"):
            raise ClearMLBadAnswer("The answer of the ClearML server holds no project.")
        return str(data["id"])

    # -- the rest --------------------------------------------------------------------------------------

    async def _upload(
        self, task_id: str, body: Mapping[str, Any], paths: Sequence[str], progress: Progress | None
    ) -> None:
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def tell(text: str, fraction: float) -> None:
            if abandoned.is_set():
                raise _UploadAbandoned
            if progress is not None:
                loop.call_soon_threadsafe(progress, text, fraction)

        connection = self._client.connection
        uploading = connection.run(
            lambda session: uploads.upload(
                session,
                [Path(path) for path in paths],
                folder=f"{body['name']}.{task_id}",
                progress=tell,
            ),
            deadline=self._client.upload_timeout,
        )
        try:
            artifact = await uploading
        finally:
            abandoned.set()  # cancelled or late: the thread stops at its next block
        await connection.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[artifact], force=True)

    async def _discard(self, task_id: str) -> None:
        try:
            await self._client.connection.call("tasks.delete", task=task_id, force=True)
        except ClearMLSessionError as error:
            self._client.logger.warning("clearml-session: cannot delete the unfinished session: %s", error)

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._client.run(function, *args, deadline=_LOCAL_DEADLINE)

    def _task(self, task_id: str, body: Mapping[str, Any], queue: Queue, project: str, user: str) -> Task:
        """Return the new Task without asking for it; the next poll brings the server's own view."""
        now = reading.now()
        task = reading.task(
            {
                **{key: value for key, value in body.items() if key != "configuration"},
                "id": task_id,
                "status": "queued",
                "status_changed": now,
                "created": now,
                "last_update": now,
                "user": {"id": user},
                "project": {"id": body.get("project"), "name": project},
                "execution": {"queue": {"id": queue.id, "name": queue.name}},
            }
        )
        return with_host_keys(task)


def _find(queues: Iterable[Queue], wanted: str) -> Queue | None:
    return next((queue for queue in queues if wanted in (queue.id, queue.name)), None)


def _project_name(spec: LaunchSpec, source: Mapping[str, Any] | None) -> str:
    if spec.project is None and source is not None:
        project = source.get("project")
        return str(project.get("name") or "") if isinstance(project, Mapping) else ""
    return spec.project or DEFAULT_PROJECT


def _artifacts(source: Mapping[str, Any]) -> list[Any]:
    return (source.get("execution") or {}).get("artifacts") or []


def _field_of(spec: LaunchSpec) -> str:
    return next(
        name for name in ("debugging_session", "base_task_id", "continue_session") if getattr(spec, name)
    )


async def _nothing() -> dict[str, str]:
    return {}
