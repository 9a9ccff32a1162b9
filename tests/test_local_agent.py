"""What becomes of an agent that ends by itself, and its log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jupyterlab_clearml_session.local import agent as agent_module
from jupyterlab_clearml_session.local.agent import Agent
from jupyterlab_clearml_session.local.sandbox import Sandbox

CREDENTIALS = dict.fromkeys(
    ("api_server", "web_server", "files_server", "access_key", "secret_key"), "http://127.0.0.1:1"
)


class FakeAgentSandbox(Sandbox):
    """A sandbox in which ``python -m clearml_agent`` is the given code."""

    def __init__(self, root: Path, code: str) -> None:
        super().__init__(root / "sandbox", CREDENTIALS, "test")
        self._package = root / "packages"
        module = self._package / "clearml_agent"
        module.mkdir(parents=True)
        (module / "__init__.py").touch()
        (module / "__main__.py").write_text(code)

    def environment(self, worker: str) -> dict[str, str]:
        return {**super().environment(worker), "PYTHONPATH": str(self._package)}


async def run_until(root: Path, code: str, last_state: str) -> tuple[Agent, list[tuple[str, int | None]]]:
    states: list[tuple[str, int | None]] = []
    reached = asyncio.Event()

    def on_state(worker: str, state: str, status: int | None) -> None:
        assert worker == "w"
        states.append((state, status))
        if state == last_state:
            reached.set()

    agent = Agent(FakeAgentSandbox(root, code), "w", "default", root / "agent.log", on_state)
    agent.start()
    await asyncio.wait_for(reached.wait(), 20)
    return agent, states


async def test_an_agent_that_keeps_failing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_RESTART_DELAY_S", 0.0)
    agent, states = await run_until(tmp_path, "raise SystemExit(3)", "gave_up")
    assert states == [("running", None), ("exited", 3)] * 3 + [("gave_up", None)]
    assert agent.pid is None
    await agent.stop()


async def test_log_without_the_empty_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_RESTARTS", 1)
    code = "print('before\\nNo tasks in queue x\\nNo tasks in Queues, sleeping\\nafter')"
    await run_until(tmp_path, code, "gave_up")
    assert (tmp_path / "agent.log").read_text() == "before\nafter\n"


async def test_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_RESTARTS", 1)
    monkeypatch.setattr(agent_module, "_LARGEST_LOG", 1000)
    await run_until(tmp_path, "for n in range(1000): print('line', n)", "gave_up")
    text = (tmp_path / "agent.log").read_text()
    assert text.endswith("line 999\n")
    assert len(text) < 1100


async def test_an_agent_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    agent, _ = await run_until(tmp_path, code, "running")
    pid = agent.pid
    assert pid is not None
    await agent.stop()
    await asyncio.wait_for(gone(agent), 10)


async def gone(agent: Agent) -> None:
    while agent.pid is not None:
        await asyncio.sleep(0.01)
