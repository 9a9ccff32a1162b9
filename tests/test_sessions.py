"""The session manager against the embedded ClearML server: what others do to sessions, and half-broken servers.

No agent and no Jupyter server; what the remote script would tell ClearML, the tests tell it themselves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from jupyterlab_clearml_session.attachment import Attachment
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.backend.connection import Connection
from jupyterlab_clearml_session.backend.draft import RECORD
from jupyterlab_clearml_session.errors import (
    ClearMLBadAnswer,
    HelperFailed,
    TunnelDown,
    UnknownSession,
    WrongPhase,
)
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.models import (
    HostKeyTrust,
    Phase,
    Ref,
    Session,
    SessionEvent,
    Task,
    TunnelState,
)
from jupyterlab_clearml_session.record import Record
from jupyterlab_clearml_session.sessions import ClearMLSessionManager, StopLocal
from jupyterlab_clearml_session.ssh.tunnel import Tunnel
from tests.local_fixture import ClearMLUnderTest
from tests.sshd_fixture import USERNAME, SshServer, ssh_server

LOG = logging.getLogger("test")
SPEC = LaunchSpec(name="a session")
DEADLINE = 30.0


@asynccontextmanager
async def manager_of(
    server: ClearMLUnderTest, folder: Path, *, stop_local: StopLocal | None = None, **traits: float
) -> AsyncIterator[ClearMLSessionManager]:
    """A manager that looks often."""
    client = ClearMLClient()
    client.use_local(server.credentials)

    async def no_local() -> Any:
        raise AssertionError("nobody asked for it")

    often = {"fast_interval": 0.05, "slow_interval": 0.05, "log_interval": 0.0}
    manager = ClearMLSessionManager(
        client,
        folder / "attached.json",
        start_local=no_local,
        stop_local=stop_local or no_local,
        log=LOG,
        **{**often, **traits},
    )
    manager.start()
    try:
        yield manager
    finally:
        await manager.close()
        await client.close()


async def attached(manager: ClearMLSessionManager, ssh: SshServer) -> tuple[Record, Attachment]:
    """Launch a session, and attach it to an SSH server although nothing has been published."""
    session_id = (await manager.launch(LaunchSpec(jupyter_lab=False))).id
    record = manager._roster.records[session_id]
    attachment = record.attachment = Attachment(
        lambda: asyncio.sleep(0, ssh.target()), lambda: record.services, lambda: None, LOG
    )
    attachment.start()
    return record, attachment


async def until(look: Callable[[], Awaitable[Session]], phase: Phase) -> Session:
    """Return the session once it is in ``phase``; each look makes the manager look."""

    async def wait() -> Session:
        while (session := await look()).phase is not phase:
            await asyncio.sleep(0.02)
        return session

    return await asyncio.wait_for(wait(), DEADLINE)


async def test_a_session_deleted_elsewhere_is_gone_whether_it_ran_or_not(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        removed: list[str] = []
        manager.subscribe(
            lambda event: (
                removed.append(event.session.id) if event.kind == "removed" and event.session else None
            )
        )
        waiting, listed, opened, purged = [(await manager.launch(SPEC)).id for _ in range(4)]
        for over in (listed, opened, purged):
            await manager.shutdown(over)
            await until(lambda over=over: manager.get(over), Phase.ENDED)  # type: ignore[misc]
        for session_id in (waiting, listed):
            clearml_server.call("tasks.delete", task=session_id, force=True)
        assert {session.id for session in (await manager.list("ended"))[0]} == {opened, purged}
        for session_id in (opened, purged):
            clearml_server.call("tasks.delete", task=session_id, force=True)
        for call in (manager.get(opened), manager.shutdown(purged, purge=True), manager.spec(listed)):
            with pytest.raises(UnknownSession):
                await call
        while waiting not in removed:
            await manager.list()
        assert (await manager.list("all"))[0] == []
        assert sorted(removed) == sorted([waiting, listed, opened, purged]), "each is told once"


async def test_sessions_are_another_users_once_the_configuration_is(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        await manager.detach(session_id)  # what is wanted here is shown, whoever's it is
        assert [session.mine for session in (await manager.list())[0]] == [True]

        async def somebody_else(self: ClearMLClient, *, fresh: bool = False) -> Ref:
            return Ref("another", "Another")

        # In place of a configuration that is changed meanwhile: the embedded server has one user only.
        monkeypatch.setattr(ClearMLClient, "user", somebody_else)

        async def not_mine() -> None:
            while (await manager.get(session_id)).mine:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(not_mine(), DEADLINE)
        assert [session.id for session in (await manager.list())[0]] == []
        assert [session.id for session in (await manager.list(all_users=True))[0]] == [session_id]


async def test_a_session_that_runs_again_is_not_stopping_for_ever(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        await manager.shutdown(session_id)
        await until(lambda: manager.get(session_id), Phase.ENDED)
        clearml_server.call("tasks.reset", task=session_id)
        clearml_server.call("tasks.enqueue", task=session_id)
        again = await until(lambda: manager.get(session_id), Phase.QUEUED)
        assert again.error is None
        await manager.attach(session_id)


async def test_who_shuts_a_session_down_is_not_told_that_somebody_else_has(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        stop = ClearMLClient.stop

        async def stop_and_poll(self: ClearMLClient, task_id: str, *, force: bool = False) -> None:
            await stop(self, task_id, force=force)
            await manager._poller.poll()  # before the answer is here

        monkeypatch.setattr(ClearMLClient, "stop", stop_and_poll)
        told: list[Session] = []
        manager.subscribe(lambda event: told.append(event.session) if event.session else None)
        await manager.shutdown(session_id)
        assert told[-1].phase is Phase.ENDED
        assert [session.error for session in told if session.error is not None] == []

        async def refused(self: ClearMLClient, task_id: str, *, force: bool = False) -> None:
            raise ClearMLBadAnswer("no")

        monkeypatch.setattr(ClearMLClient, "stop", refused)
        another = (await manager.launch(SPEC)).id
        with pytest.raises(ClearMLBadAnswer):
            await manager.shutdown(another)
        assert (await manager.get(another)).phase is Phase.QUEUED


async def test_a_session_that_is_shut_down_as_its_launch_ends_is_stopped(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        launched: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        record = manager._roster.records[session_id]
        launched.set_result(record.task)
        record.launching = launched  # and `launch` has not been told yet
        await manager.shutdown(session_id)
        assert clearml_server.task(session_id)["status"] == "stopped"


async def test_a_session_that_never_was_in_a_queue_can_be_shut_down_and_deleted(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        left = {"name": "left", "type": "application", "system_tags": ["interactive"]}
        created = str(clearml_server.call("tasks.create", **left)["id"])
        assert (await manager.get(created)).phase is Phase.CREATED
        with pytest.raises(WrongPhase):
            await manager.shutdown(created, purge=True)
        await manager.shutdown(created)
        await until(lambda: manager.get(created), Phase.ENDED)
        await manager.shutdown(created, purge=True)
        assert (await manager.list("all"))[0] == []


async def test_a_clone_that_the_command_line_made_is_reached_with_the_keys_of_its_configuration(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        original = await manager.launch(LaunchSpec(username=USERNAME, jupyter_lab=False))
        # `Task.clone` takes the configuration over, but nothing of the runtime: our note of the keys is not there.
        clone = str(clearml_server.call("tasks.clone", task=original.id)["id"])
        clearml_server.call("tasks.enqueue", task=clone, queue_name="default")
        task = clearml_server.task(clone)
        key = json.loads(task["configuration"]["SSH"]["value"])["ssh_host_ed25519_key"]
        ssh = SshServer(asyncssh.import_private_key(key))
        await ssh.start()
        spec = json.dumps({"spec": {"username": USERNAME}})
        runtime = {"_ssh_password": ssh.password, RECORD: spec}
        clearml_server.call("tasks.edit_runtime", task=clone, add_or_update=runtime)
        clearml_server.set_properties(clone, external_address="127.0.0.1", internal_ssh_port=str(ssh.port))
        clearml_server.call("tasks.started", task=clone, force=True)
        try:

            async def listed() -> Session:
                while True:  # the manager may have read the list just before
                    for session in (await manager.list())[0]:
                        if session.id == clone:
                            return session
                    await asyncio.sleep(0.02)

            services_up = await until(listed, Phase.SERVICES_UP)
            assert services_up.tunnel.host_key is HostKeyTrust.UNVERIFIED  # as far as a list of Tasks tells
            await manager.attach(clone)
            await manager.tunnel(clone, DEADLINE)
            looked = asyncio.Event()
            manager.subscribe(lambda event: looked.set())
            told: list[str] = []
            manager.add_hook(on_reconnect=told.append)
            await manager.reconnect(clone)
            assert told == [clone]
            await asyncio.wait_for(looked.wait(), DEADLINE)
            assert (await manager.get(clone)).tunnel.host_key is HostKeyTrust.PINNED
        finally:
            await ssh.stop()


async def test_what_fails_when_a_session_is_ready_is_tried_again_and_harms_nobody_else(
    clearml_server: ClearMLUnderTest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager, ssh_server() as ssh:
        tried: list[str] = []
        done = asyncio.Event()

        async def on_ready(session: Session, tunnel: Tunnel) -> None:
            tried.append(session.id)
            if len(tried) == 1:
                raise TunnelDown("The link is down again")
            if len(tried) == 2:
                raise OSError("The disk is full")
            done.set()

        async def on_gone(session_id: str) -> None:
            raise OSError("The disk is full")

        def listener(event: SessionEvent) -> None:
            raise ValueError("cannot listen")

        manager.add_hook(on_ready, on_gone)
        manager.subscribe(listener)
        manager._roster.hook_wait = 0.01
        record, attachment = await attached(manager, ssh)
        tunnel = attachment.tunnel
        await tunnel.wait_up(DEADLINE)
        await manager._roster._announce(record, attachment)
        assert tried == [record.task.id] * 3
        assert done.is_set()
        await manager.detach(record.task.id)
        assert tunnel.status.state is TunnelState.DOWN
        assert "cannot listen" in caplog.text
        assert "The disk is full" in caplog.text


async def test_what_has_failed_when_a_session_was_ready_is_tried_again_at_a_reconnect(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager, ssh_server() as ssh:
        failed, done = asyncio.Event(), asyncio.Event()

        async def on_ready(session: Session, tunnel: Tunnel) -> None:
            if failed.is_set():
                done.set()
                return
            failed.set()
            raise TunnelDown("No helper runs over there")

        manager.add_hook(on_ready)
        manager._roster.hook_wait = 3600.0
        record, attachment = await attached(manager, ssh)
        announcing = asyncio.create_task(manager._roster._announce(record, attachment))
        await failed.wait()
        await manager.reconnect(record.task.id)
        await asyncio.wait_for(done.wait(), DEADLINE)
        await announcing


async def test_kernels_that_come_after_a_detach_are_not_shown(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    """Their specs are written in a thread, and the session may be detached before that is told here."""
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        await manager.detach(session_id)
        manager.set_kernelspecs(session_id, ["clearml-python3"])
        assert (await manager.get(session_id)).kernelspecs == ()


async def test_a_session_that_fails_while_it_is_waited_for_is_not_polled_for_ever(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path, look_window=0.0) as manager:
        session_id = (await manager.launch(SPEC)).id
        over: asyncio.Queue[Phase] = asyncio.Queue()
        manager.subscribe(lambda event: over.put_nowait(event.session.phase) if event.session else None)
        clearml_server.call("tasks.started", task=session_id, force=True)
        clearml_server.call("tasks.failed", task=session_id, force=True)

        async def failed() -> None:
            while await over.get() is not Phase.FAILED:
                pass

        await asyncio.wait_for(failed(), DEADLINE)
        assert not manager._roster.any_wanted

        noted = tmp_path / "attached.json"

        async def forgotten() -> None:
            while not noted.exists() or session_id in noted.read_text():
                await asyncio.sleep(0.02)  # it is written in a thread

        await asyncio.wait_for(forgotten(), DEADLINE)


async def test_the_embedded_default_ends_also_where_nobody_waits_for_the_new_server(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closes the page that has asked for it: the credentials are stored by then, and are used."""
    monkeypatch.setenv("CLEARML_CONFIG_FILE", str(tmp_path / "clearml.conf"))
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stop_local() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    async with manager_of(clearml_server, tmp_path, stop_local=stop_local) as manager:
        configuring = asyncio.create_task(manager.configure(clearml_server.credentials))
        await asyncio.wait_for(begun.wait(), DEADLINE)
        configuring.cancel()
        await asyncio.wait({configuring})
        may_end.set()
    assert ended.is_set()


async def test_a_session_whose_agent_is_gone_is_asked_to_stop_again(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    """ClearML waits for the agent of a running session; that it is gone, it finds only when asked once more."""
    async with manager_of(clearml_server, tmp_path, stop_patience=0.0) as manager:
        session_id = (await manager.launch(SPEC)).id
        clearml_server.call("workers.register", worker="machine:gpu0", queues=[])
        clearml_server.call("tasks.started", task=session_id, force=True)
        report = {"worker": "machine:gpu0", "task": session_id, "timestamp": int(time.time() * 1000)}
        clearml_server.call("workers.status_report", **report)
        await until(lambda: manager.get(session_id), Phase.STARTING)
        await manager.shutdown(session_id)

        async def asked_again() -> None:
            while clearml_server.calls().count("tasks.stop") < 3:
                assert (await manager.get(session_id)).phase is Phase.STOPPING
                await asyncio.sleep(0.02)

        await asyncio.wait_for(asked_again(), DEADLINE)
        clearml_server.call("tasks.stopped", task=session_id, force=True)
        ended = await until(lambda: manager.get(session_id), Phase.ENDED)
        assert ended.error is None


def test_a_session_that_does_not_come_on_is_looked_at_less_and_less_often(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    record = Record(Task(id="a" * 32, name="a session", status="queued"))
    record.describe(None, None, 1800.0)
    manager = ClearMLSessionManager(
        ClearMLClient(),
        tmp_path / "attached.json",
        start_local=dict,  # type: ignore[arg-type]
        stop_local=dict,  # type: ignore[arg-type]
        log=LOG,
    )
    began = record.phase_began
    waits = [manager._interval_of(record, began + after) for after in (0, 30, 300, 3600)]
    assert waits == [1.0, 1.0, 5.0, 10.0]
    record.see(replace(record.task, status="in_progress"))
    record.describe(None, None, 1800.0)
    assert manager._interval_of(record, record.phase_began) == 1.0


def test_only_a_session_that_debugs_a_task_names_it_as_its_parent() -> None:
    def parent(entry_point: str, **parameters: str) -> str | None:
        script = {"entry_point": entry_point, "repository": "https://host/repo.git"}
        task = Task("a" * 32, "x", "queued", parent="b" * 32, script=script, parameters=parameters)
        return Record(task).describe(None, None, 1800.0).parent

    assert parent("__interactive_session__.py") == "b" * 32
    assert parent(".interactive_session.py") is None
    assert parent(".interactive_session.py", **{"interactive_session/store_workspace": "~/ws"}) is None


def test_why_there_are_no_kernels_is_told_in_short_and_without_secrets() -> None:
    """The helper's last words are those of the remote machine: a traceback, or anything."""
    record = Record(Task("a" * 32, "a session", "in_progress", runtime={"_ssh_password": "correct horse"}))
    words = "It did not start:\n" + "  File ...\n" * 200 + "OSError: correct horse and token=abcdef"
    record.note_kernels(HelperFailed(words, stderr="more"))
    told = record.describe(None, None, 1800.0).to_json()["kernels_error"]
    assert told.keys() == {"code", "message", "hint"}
    assert told["message"].startswith("It did not start:")
    assert told["message"].endswith("OSError: *** and token=***")
    assert len(told["message"]) < 600


async def test_one_session_is_read_again_where_nobody_has_looked_for_long(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(
        clearml_server, tmp_path, look_window=0.0, fast_interval=0.01, slow_interval=0.01
    ) as manager:
        session_id = (await manager.launch(SPEC)).id
        await manager.detach(session_id)  # nobody looks, and nothing is attached: no more polling
        await manager.list()
        clearml_server.call("tasks.started", task=session_id, force=True)
        await asyncio.sleep(0.02)  # longer than an interval
        assert (await manager.get(session_id)).phase is Phase.STARTING


@pytest.mark.parametrize("broken", ["events.get_task_log", "queues.get_all_ex"])
async def test_logs_or_queues_that_cannot_be_read_hide_nothing_else(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """As where the server has lost its Elasticsearch, or the user may not see all queues."""
    async with manager_of(clearml_server, tmp_path) as manager:
        running, waiting = [(await manager.launch(SPEC)).id for _ in range(2)]
        call = Connection.call

        async def partly(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
            if endpoint == broken:
                raise ClearMLBadAnswer("es_connection_error")
            return await call(self, endpoint, **body)

        monkeypatch.setattr(Connection, "call", partly)
        clearml_server.call("tasks.started", task=running, force=True)
        assert (await until(lambda: manager.get(running), Phase.STARTING)).queue is not None
        clearml_server.call("tasks.stop", task=waiting)
        ended = await until(lambda: manager.get(waiting), Phase.ENDED)
        assert (ended.error or {}).get("code") == "session_aborted"


async def test_a_new_line_of_a_starting_session_is_told_as_log(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
        clearml_server.call("tasks.started", task=session_id, force=True)
        await until(lambda: manager.get(session_id), Phase.STARTING)
        told: asyncio.Queue[SessionEvent] = asyncio.Queue()
        manager.subscribe(told.put_nowait)
        for number, line in enumerate(("Collecting numpy", "Installing numpy")):
            clearml_server.call("events.add", type="log", task=session_id, timestamp=number + 1, msg=line)
            event = await asyncio.wait_for(told.get(), DEADLINE)
            assert event.session is not None
            assert event.session.progress is not None
            assert (event.kind, event.session.progress.last_line) == ("log", line)
        clearml_server.call("tasks.stop", task=session_id)
        assert (await asyncio.wait_for(told.get(), DEADLINE)).kind == "changed"


async def test_agents_are_told_of_only_while_a_session_waits(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id

        async def place() -> Session:
            session = await manager.get(session_id)
            assert session.queue is not None
            return session

        while (session := await place()).queue.position is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.02)
        assert (session.queue.position, session.queue.workers) == (1, 0)  # type: ignore[union-attr]
        clearml_server.call("tasks.started", task=session_id, force=True)
        started = await until(place, Phase.STARTING)
        assert started.queue is not None
        assert (started.queue.position, started.queue.workers) == (None, None)


async def test_a_session_whose_queue_was_deleted_can_be_shut_down(
    clearml_server: ClearMLUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = clearml_server.call("queues.create", name="for now")["id"]
    clearml_server.call("workers.register", worker="w1", queues=[queue])
    async with manager_of(clearml_server, tmp_path) as manager:
        texts: asyncio.Queue[str] = asyncio.Queue()
        manager.subscribe(lambda event: texts.put_nowait(event.session.phase_text) if event.session else None)

        async def told(text: str) -> None:
            while await asyncio.wait_for(texts.get(), DEADLINE) != text:
                pass

        session_id = (await manager.launch(LaunchSpec(name="a session", queue="for now"))).id
        await told("Waiting in the queue, place 1, 1 agent")
        call = Connection.call

        async def without_queues(self: Connection, endpoint: str, **body: Any) -> dict[str, Any]:
            """As a server that leaves the sessions of a deleted queue waiting."""
            return {"queues": []} if endpoint == "queues.get_all_ex" else await call(self, endpoint, **body)

        monkeypatch.setattr(Connection, "call", without_queues)
        await told("Waiting: no agent serves this queue")
        monkeypatch.undo()
        clearml_server.call("queues.delete", queue=queue, force=True)
        await told("Created, not yet in a queue")
        await manager.shutdown(session_id)
        await until(lambda: manager.get(session_id), Phase.ENDED)


async def test_what_was_attached_is_looked_for_until_clearml_is_back(
    clearml_server: ClearMLUnderTest, tmp_path: Path
) -> None:
    async with manager_of(clearml_server, tmp_path) as manager:
        session_id = (await manager.launch(SPEC)).id
    clearml_server.front.set("refuse")
    async with manager_of(clearml_server, tmp_path, look_window=0.0) as manager:  # nobody looks
        told: asyncio.Queue[Any] = asyncio.Queue()
        manager.subscribe(
            lambda event: told.put_nowait(event.data["error"]) if event.kind == "backend" else None
        )
        assert (await asyncio.wait_for(told.get(), DEADLINE))["code"] == "clearml_unreachable"
        clearml_server.front.set("none")
        assert await asyncio.wait_for(told.get(), DEADLINE) is None
        await manager.detach(session_id)  # raises where it was not attached again
