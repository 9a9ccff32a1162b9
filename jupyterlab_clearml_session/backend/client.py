"""ClearMLClient: everything that the rest of the package asks of ClearML, as coroutines.

Each call runs in a thread with a deadline and fails with a class of `errors.py`. `clearml` is imported when the
first call needs it, in a thread; making a client costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger, getLogger
from pathlib import Path
from typing import Any, TypeVar

from traitlets import Bool, Float, List, Unicode
from traitlets.config import Configurable

from ..errors import (
    ClearMLBadAnswer,
    ClearMLSessionError,
    Forbidden,
    InvalidInput,
    NotConfigured,
    UnknownEndpoint,
    UnknownTask,
    WrongPhase,
)
from ..launch_spec import LaunchSpec
from ..models import BackendStatus, LogLine, Queue, Ref, Task
from . import configuration, host_keys, reading, uploads
from .connection import Connection, configured_host
from .launch import SYSTEM_TAG, full_spec, with_host_keys
from .launcher import Created, Launcher, Progress
from .repo import RepoSnapshot, collect_repo
from .threads import DeadlineThreads

S = TypeVar("S")
T = TypeVar("T")

ACTIVE = ("created", "queued", "in_progress")
ENDED = ("stopped", "closed", "failed", "completed", "published", "publishing")

_PAGE = 500
_LONGEST_LOG = 10_000
_GIT_TIMEOUT = 20.0
_NOT_ITS_PROTOCOL = "The ClearML server answered with something that is not its protocol."


@dataclass
class _Learned:
    """What the server in use has told and will not tell otherwise; a late answer of the one before is not in it."""

    user: Ref | None = None
    vault_keys: tuple[str, ...] | None = None


class ClearMLClient(Configurable):
    """The ClearML server of this user: the one of the ordinary configuration, or the embedded default.

    Every coroutine may raise NotConfigured, ClearMLUnreachable, ClearMLDeadline, ClearMLBadAnswer, BadCredentials
    and Forbidden; what else each one raises stands with it.
    """

    request_timeout = Float(10.0, help="Seconds that one request to the ClearML API may take.").tag(
        config=True
    )
    login_timeout = Float(30.0, help="Seconds that the login at the ClearML server may take.").tag(
        config=True
    )
    upload_timeout = Float(3600.0, help="Seconds that the upload of one session's files may take.").tag(
        config=True
    )
    send_user_credentials = Bool(
        False,
        help="Put the user's ClearML credentials into a session's Task, as clearml-session does. Only servers with "
        "vaults need it; whoever can read the Task can read them until the session has started.",
    ).tag(config=True)
    queue_include_tags = List(
        Unicode(), help="Only queues with one of these tags are chosen where none is named."
    ).tag(config=True)
    queue_exclude_tags = List(
        Unicode(), ["internal"], help="Queues with one of these tags are not chosen where none is named."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.logger: Logger = getattr(self.parent, "log", None) or getLogger(__name__)
        self._threads = DeadlineThreads()
        self._local: Mapping[str, str] | None = None
        self._connection = self._connect(None)
        self._fingerprint: tuple[str, ...] = configuration.fingerprint()
        self._learned = _Learned()
        self._launcher = Launcher(self)

    # -- which server ----------------------------------------------------------------------------------

    def is_configured(self) -> bool:
        """Say whether there is a server to talk to. Reads a small file at most; never imports `clearml`."""
        return self._local is not None or configuration.is_configured()

    @property
    def mode(self) -> str:
        """Return "local", "server" or "unconfigured"."""
        if self._local is not None:
            return "local"
        return "server" if configuration.is_configured() else "unconfigured"

    @property
    def web_server(self) -> str | None:
        """Return the address of ClearML's web page, once logged in; None where there is none."""
        session = self._connection.session
        if session is None:
            return (self._connection.credentials or {}).get("web_server")
        return session.web_server() or None

    async def status(self) -> BackendStatus:
        """Return where we stand. A server that is away or refuses us is part of the answer; nothing is raised."""
        mode = self.mode
        if mode == "unconfigured":
            return BackendStatus(mode=mode)
        if mode == "server" and self._fingerprint != configuration.fingerprint():
            self._use(self._connect(None))  # the user has changed the configuration
        try:
            user = await self.user(fresh=True)
        except NotConfigured as error:
            return BackendStatus(mode="unconfigured", error=error.to_json())
        except ClearMLSessionError as error:
            return BackendStatus(
                mode=mode,
                api_server=await self._configured_host(),
                web_server=self.web_server,
                error=error.to_json(),
            )
        session = self._connection.session
        return BackendStatus(
            mode=mode,
            api_server=session.host if session else None,
            web_server=self.web_server,
            user=user,
            reachable=True,
            version=session.server_version if session else None,
        )

    async def configure(self, credentials: Mapping[str, Any]) -> BackendStatus:
        """Check credentials at their server, then write them as the user's ordinary configuration file.

        Raises InvalidInput naming the field, and Conflict where there is a configuration already: it is never
        overwritten.
        """
        checked = configuration.checked(credentials)
        if configuration.is_configured():
            raise configuration.conflict()
        trial = self._connect(checked)
        await trial.call("users.get_current_user")
        await self._threads.run(configuration.write, checked, deadline=self.request_timeout)
        self._local = None
        self._use(self._connect(None))
        return await self.status()

    def use_local(self, credentials: Mapping[str, str]) -> None:
        """Talk to the embedded default from now on; its credentials are kept in memory only."""
        self._local = configuration.checked(credentials)
        self._use(self._connect(self._local))

    async def close(self) -> None:
        """Forget the connection. Calls still under way end by their own deadlines, in daemon threads."""
        self._use(self._connect(self._local))

    # -- reading ---------------------------------------------------------------------------------------

    async def user(self, *, fresh: bool = False) -> Ref:
        """Return the user whose credentials we have; ``fresh`` asks the server again."""
        learned = self._learned
        if learned.user is not None and not fresh:
            return learned.user
        data = await self._call("users.get_current_user")
        (learned.user,) = _read(
            lambda entry: Ref(str(entry["id"]), str(entry.get("name") or "")), [_expect(data, "user")]
        )
        return learned.user

    async def queues(self) -> list[Queue]:
        """Return all queues with their entries and workers, by name (one call)."""
        data = await self._call("queues.get_all_ex")
        queues = sorted(_read(reading.queue, _expect_list(data, "queues")), key=lambda queue: queue.name)
        self._launcher.saw_queues(queues)
        return queues

    async def sessions(
        self, *, all_users: bool = False, states: str = "active", extra_ids: Iterable[str] = ()
    ) -> list[Task]:
        """Return interactive Tasks, most recently changed first, at most 500 (one call).

        ``states`` is "active", "ended" or "all". ``extra_ids`` are returned whatever their state and user is; one
        more call is made where the first did not bring them all. Raises UnknownTask for an extra id that is none.
        """
        wanted = {reading.checked_id(task_id) for task_id in extra_ids}
        user = None if all_users else [await self.user_id()]
        data = await self._call(
            "tasks.get_all_ex",
            system_tags=[SYSTEM_TAG],
            status={"active": list(ACTIVE), "ended": list(ENDED)}.get(states),
            user=user,
            only_fields=list(reading.TASK_FIELDS),
            order_by=["-last_update"],
            page=0,
            page_size=_PAGE,
        )
        entries = _by_id(data)
        missing = sorted(wanted - entries.keys())
        if missing:
            data = await self._call("tasks.get_all_ex", id=missing, only_fields=list(reading.TASK_FIELDS))
            entries.update(_by_id(data))
        vault = await self._vault()
        tasks = [with_host_keys(task, vault) for task in self._readable(entries.values())]
        self._launcher.saw_projects(task.project for task in tasks if task.project)
        return tasks

    async def task(self, task_id: str) -> Task:
        """Return one Task, also one that is no session. Raises UnknownTask."""
        entry = await self._entry(task_id, [*reading.TASK_FIELDS, "configuration"])
        (task,) = _read(reading.task, [entry])
        configured = host_keys.public_keys(_configured(entry, "SSH"))
        return with_host_keys(task, await self._vault(), configured)

    async def spec(self, task_id: str) -> LaunchSpec:
        """Return what a session was launched with, the long texts included, as far as its Task tells.

        Raises UnknownTask. The password is never in it.
        """
        entry = await self._entry(task_id, [*reading.TASK_FIELDS, "configuration", "script.diff"])
        (task,) = _read(reading.task, [entry])
        return full_spec(
            task,
            init_script_text=_configured(entry, "interactive_init_script"),
            diff=str((entry.get("script") or {}).get("diff") or ""),
        )

    async def find_tasks(self, text: str, *, limit: int = 20) -> list[Task]:
        """Return Tasks with a repository whose name or id holds ``text``, newest first: what can be debugged."""
        pattern = (
            {"_any_": {"pattern": _literal(text.strip()), "fields": ["name", "id"]}} if text.strip() else {}
        )
        data = await self._call(
            "tasks.get_all_ex",
            **pattern,
            system_tags=[f"-{SYSTEM_TAG}", "-archived"],
            only_fields=list(reading.TASK_FIELDS),
            order_by=["-last_update"],
            page=0,
            page_size=limit,
        )
        found = self._readable(_expect_list(data, "tasks"))
        return [task for task in found if task.script.get("repository")]

    async def log(self, task_id: str, *, limit: int = 200, before: str | None = None) -> list[LogLine]:
        """Return up to ``limit`` console lines, oldest first: the newest ones, or those before an ISO 8601 time.

        Nothing is masked here (see `redact.py`). Raises UnknownTask, and InvalidInput for ``before`` or ``limit``.
        """
        reading.checked_id(task_id)
        if not 1 <= limit <= _LONGEST_LOG:
            raise InvalidInput(f"'limit' must lie between 1 and {_LONGEST_LOG}.", field="limit")
        try:
            until = reading.microseconds(before) if before else None
        except (ValueError, OverflowError):
            raise InvalidInput("'before' must be an ISO 8601 time.", field="before") from None
        batch = min(limit + 1, _LONGEST_LOG)
        data = await self._call(
            "events.get_task_log",
            task=task_id,
            batch_size=batch,
            navigate_earlier=True,
            # ClearML answers what is before this millisecond.
            from_timestamp=None if until is None else -(-until // 1000),
        )
        events = _expect_list(data, "events")
        (lines,) = _read(
            lambda some: reading.log_lines(some, limit, before=until, partial=len(some) >= batch), [events]
        )
        return lines

    async def collect_repo(self, folder: Path) -> RepoSnapshot:
        """Look at the git repository around ``folder``: what ``clone_repo`` would send; nothing is sent yet.

        Raises InvalidInput for the field ``folder``, and GitFailed.
        """
        allow_local = self.mode == "local"
        return await self._threads.run(
            lambda: collect_repo(folder, allow_local=allow_local, timeout=_GIT_TIMEOUT),
            deadline=_GIT_TIMEOUT + 5.0,
        )

    # -- acting ----------------------------------------------------------------------------------------

    async def launch(
        self,
        spec: LaunchSpec,
        *,
        launched_by: str = "panel",
        created: Created | None = None,
        progress: Progress | None = None,
    ) -> Task:
        """Create a session's Task and put it into its queue: at most 4 calls, besides uploads.

        ``created`` hears of the Task before its files are uploaded, ``progress`` of the uploads: what is done, and
        the fraction from 0 to 1. Raises UnknownQueue, UnknownTask, NotDebuggable, and InvalidInput for a local file
        that cannot be read.
        """
        return await self._launcher.launch(spec, launched_by=launched_by, created=created, progress=progress)

    async def create(self, draft: Mapping[str, Any]) -> str:
        """Create a Task from the body of tasks.create and return its id."""
        return str(_expect(await self._call("tasks.create", **draft), "id"))

    async def stop(self, task_id: str, *, force: bool = False) -> None:
        """Ask the session's agent to end it; a queued one is taken out of its queue at once.

        ``force`` stops one that was never put into a queue. Raises UnknownTask, and WrongPhase where it is over.
        """
        await self._call(
            "tasks.stop", task=reading.checked_id(task_id), status_reason="abort request", force=force or None
        )

    async def delete(self, task_id: str) -> None:
        """Delete the Task of an ended session. Raises UnknownTask, and WrongPhase where it is not over."""
        entry = await self._entry(task_id, ["id", "status"])
        if entry.get("status") in ("queued", "in_progress"):
            raise WrongPhase("A session must have ended before it can be deleted.")
        # Without force, ClearML deletes only Tasks that were never started.
        await self._call("tasks.delete", task=task_id, force=True)

    async def store_workspace(self, task: Task, archive: Path, preview: str) -> None:
        """Upload a ``.tar.gz`` as the workspace snapshot of a session, as the remote script does when it ends.

        Raises UploadFailed, ClearMLUnreachable.
        """
        artifact = await self._connection.run(
            lambda session: uploads.upload_workspace(
                session, archive, preview=preview, folder=f"{task.name}.{task.id}"
            ),
            deadline=self.upload_timeout,
        )
        await self._call("tasks.add_or_update_artifacts", task=task.id, artifacts=[artifact], force=True)

    # -- for launcher.py -------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The line to the server in use; for the other modules of this folder."""
        return self._connection

    async def run(self, function: Callable[..., Any], *args: Any, deadline: float) -> Any:
        """Run blocking work of this folder in a thread, with a deadline in seconds."""
        return await self._threads.run(function, *args, deadline=deadline)

    async def user_id(self) -> str:
        """Return the id of the user whose credentials we have; the token tells it, without a call."""
        session = await self._connection.login() if self.is_configured() else None
        return (session.user_id() if session else "") or (await self.user()).id

    # -- helpers ---------------------------------------------------------------------------------------

    def _connect(self, credentials: Mapping[str, str] | None) -> Connection:
        return Connection(
            self._threads, credentials, timeout=self.request_timeout, login_timeout=self.login_timeout
        )

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._fingerprint = configuration.fingerprint()
        self._learned = _Learned()
        self._launcher = Launcher(self)

    async def _call(self, endpoint: str, **body: Any) -> dict[str, Any]:
        if not self.is_configured():
            raise NotConfigured("ClearML is not configured on this machine.")
        return await self._connection.call(endpoint, **body)

    async def _entry(self, task_id: str, fields: Sequence[str]) -> Mapping[str, Any]:
        data = await self._call(
            "tasks.get_all_ex", id=[reading.checked_id(task_id)], only_fields=list(fields)
        )
        entries = _expect_list(data, "tasks")
        if not entries:
            raise UnknownTask("ClearML has no such Task.")
        return dict(entries[0])

    def _readable(self, entries: Collection[Mapping[str, Any]]) -> list[Task]:
        """Read a list of Tasks; one that is broken does not hide the others, a list of nothing else is an error."""
        tasks: list[Task] = []
        for entry in entries:
            try:
                tasks += _read(reading.task, [entry])
            except ClearMLBadAnswer:
                self.logger.warning("clearml-session: a Task cannot be read: %.80r", entry.get("id"))
        if entries and not tasks:
            raise ClearMLBadAnswer(_NOT_ITS_PROTOCOL)
        return tasks

    async def _vault(self) -> tuple[str, ...]:
        """Return the public host keys of the server's vault, empty where it has none (open-source servers)."""
        learned = self._learned
        if learned.vault_keys is not None:
            return learned.vault_keys
        keys: tuple[str, ...] = ()
        try:
            data = await self._call("users.get_vaults", enabled=True, types=["remote_session_ssh_server"])
            vaults = _expect_list(data, "vaults")
            keys = host_keys.public_keys(str(vaults[-1].get("data") or "")) if vaults else ()
        except (UnknownEndpoint, Forbidden):
            pass  # it has none, or none for us
        except ClearMLBadAnswer:
            return ()  # for now: the next answer may be better, and the keys of a vault are the only right ones
        learned.vault_keys = keys
        return keys

    async def _configured_host(self) -> str | None:
        if self._connection.credentials:
            return self._connection.credentials["api_server"]
        try:
            return await self._threads.run(configured_host, deadline=self.login_timeout)
        except ClearMLSessionError:
            return None


def _configured(entry: Mapping[str, Any], name: str) -> str:
    item = (entry.get("configuration") or {}).get(name) or {}
    return str(item.get("value") or "")


def _by_id(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(entry.get("id") or ""): entry for entry in _expect_list(data, "tasks")}


def _read(function: Callable[[S], T], entries: Iterable[S]) -> list[T]:
    """Apply one of `reading`'s functions; an entry that is not as it should be is the server's fault."""
    try:
        return [function(entry) for entry in entries]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise ClearMLBadAnswer(_NOT_ITS_PROTOCOL) from None


def _expect(data: Mapping[str, Any], key: str) -> Any:
    if not data.get(key):
        raise ClearMLBadAnswer(f"The answer of the ClearML server holds no '{key}'.")
    return data[key]


def _expect_list(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise ClearMLBadAnswer(f"The answer of the ClearML server holds no list '{key}'.")
    return found


def _literal(text: str) -> str:
    """Return a regular expression (as MongoDB takes it) that finds ``text`` itself."""
    return "".join(char if char.isalnum() or char in " _-" else f"\\{char}" for char in text)
