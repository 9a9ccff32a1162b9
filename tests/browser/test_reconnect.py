"""A notebook of this machine on a remote kernel while the link breaks, in a real browser, with every part real.

The session runs behind a relay that stands for its gateway: closing it is the train in the tunnel. Cells with
progress bars run on meanwhile, a cell is queued, and then everything is there: complete, in order, once.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import keep_picture
from tests.browser.lab_page import LabPage, screenshot
from tests.lab_fixture import LabServer, clearml_environment
from tests.local_fixture import ClearMLUnderTest, LoopThread
from tests.sshd_fixture import Relay

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(180)]

LAB_MS = 60_000
LINK_MS = 30_000

# It goes on until the test says so, so that the outage lies within it however slow the machine is.
COUNTING = """\
import pathlib, time
import ipywidgets
from tqdm.notebook import tqdm

folder = pathlib.Path({folder!r})
label = ipywidgets.Label()
display(label)
count = 0
with tqdm(desc="steps") as bar:
    while not (folder / "stop").exists():
        print("line", count)
        count += 1
        label.value = f"{{count}} seen"
        bar.update()
        (folder / "count").write_text(str(count))
        time.sleep(0.01)
print("finished after", count)"""
QUEUED = 'print("then", count)'


class Gateway:
    """A relay before the session's SSH server, on a thread of its own."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ssh_port = probe.getsockname()[1]
        self._loop = LoopThread()
        self._relay = Relay(self.ssh_port)
        self.open()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._relay.port}"

    def open(self) -> None:
        """Let connections through (again)."""
        self._loop.run(self._relay.open())

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""

        async def close() -> None:
            self._relay.close()

        self._loop.run(close())

    def close(self) -> None:
        self._loop.run(self._relay.__aexit__())
        self._loop.close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def server(
    tmp_path_factory: pytest.TempPathFactory, local_mode: ClearMLUnderTest, lab_config: dict[str, object]
) -> Iterator[LabServer]:
    server = LabServer(
        tmp_path_factory.mktemp("reconnect"),
        environment=clearml_environment(local_mode.credentials),
        config={**lab_config, "LabApp.expose_app_in_browser": True},
    ).start()
    yield server
    server.stop()


class Sessions:
    """Launches a session behind the gateway; the page is loaded while it starts."""

    def __init__(self, server: LabServer, gateway: Gateway) -> None:
        self._server = server
        self._spec = {
            "name": "behind a relay",
            "vscode_server": False,
            "remote_ssh_port": str(gateway.ssh_port),
            "remote_gateway": gateway.address,
        }
        self.id = self._launch()

    def ready(self) -> dict[str, Any]:
        """Return the session, ready and with its kernels."""
        found: dict[str, Any] = self._server.until(self._look, 120.0)
        return found

    def shut_down(self) -> None:
        self._server.api("DELETE", f"sessions/{self.id}")

    def _launch(self) -> str:
        return str(self._server.api("POST", "sessions", self._spec)["id"])

    def _look(self) -> dict[str, Any] | None:
        session: dict[str, Any] = self._server.api("GET", f"sessions/{self.id}")
        if session.get("error", {}).get("code") == "jupyter_port_clash":
            # Another test's session started at the same moment: upstream's Jupyters may take the same port then.
            self.shut_down()
            self._server.until(lambda: self._server.api("GET", f"sessions/{self.id}")["phase"] == "ended")
            self.id = self._launch()
            return None
        assert session["phase"] not in ("failed", "ended"), session
        return session if session["phase"] == "ready" and session["kernelspecs"] else None


@pytest.fixture
def sessions(server: LabServer, gateway: Gateway) -> Iterator[Sessions]:
    sessions = Sessions(server, gateway)
    yield sessions
    sessions.shut_down()


@pytest.fixture
def lab(context: BrowserContext, server: LabServer, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    page = context.new_page()
    yield LabPage(page, server)
    keep_picture(page, request)


def write_notebook(server: LabServer, kernel: str, *cells: str) -> str:
    """Write a notebook for a kernel below the server's root; returns its path there."""
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for number, source in enumerate(cells)
        ],
    }
    (server.folder / "notebooks" / "long.ipynb").write_text(json.dumps(notebook))
    return "long.ipynb"


def test_nothing_is_lost_and_the_notebook_says_what_is_going_on(
    lab: LabPage,
    sessions: Sessions,
    server: LabServer,
    gateway: Gateway,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    page = lab.open().page
    session = sessions.ready()
    assert session["endpoints"]["ssh"]["port"] != gateway.ssh_port, "the way leads through the relay"

    path = write_notebook(server, session["kernelspecs"][0], COUNTING.format(folder=str(tmp_path)), QUEUED)
    lab.open_document(path)
    status_bar = page.locator("#jp-main-statusbar")
    expect(status_bar).to_contain_text("behind a relay | Idle", timeout=LAB_MS)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    link = page.locator(".jp-NotebookPanel-toolbar").get_by_role("button", name="Reconnecting…")
    expect(link).to_have_count(0)

    # -- counting, with two widgets; then the link is cut
    cells.first.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    expect(cells.first.locator(".jp-OutputArea")).to_contain_text("line 20\n", timeout=LAB_MS)
    gateway.cut()
    expect(link).to_be_visible(timeout=LINK_MS)
    expect(lab.card(session["id"])).to_have_attribute("data-phase", "reconnecting")
    # Alive for JupyterLab too, which calls a kernel idle or busy here as its widgets' messages come.
    expect(status_bar).to_contain_text(re.compile(r"\| (Idle|Busy)"))
    expect(cells.first.locator(".jp-InputPrompt")).to_have_text("[*]:")

    # -- meanwhile the kernel goes on and ends, and a cell is queued
    page.keyboard.press("Shift+Enter")
    counted = tmp_path / "count"
    seen = server.until(lambda: int(counted.read_text() or 0))
    server.until(lambda: int(counted.read_text() or 0) > seen + 100)
    (tmp_path / "stop").touch()
    screenshot(page, request, "reconnecting")
    expect(cells.first.locator(".jp-OutputArea")).not_to_contain_text("finished")

    # -- the link comes back: all of it is there, in order, once
    gateway.open()
    expect(link).to_have_count(0, timeout=LINK_MS)
    expect(cells.nth(1).locator(".jp-OutputArea")).to_contain_text("then", timeout=LINK_MS)
    count = int(counted.read_text())
    expect(cells.nth(1).locator(".jp-OutputArea")).to_have_text(f"then {count}")
    printed = cells.first.locator(".jp-OutputArea pre").first.inner_text().split("\n")
    assert [line for line in printed if line] == [
        *(f"line {number}" for number in range(count)),
        f"finished after {count}",
    ]
    expect(cells.first.locator(".widget-label", has_text="seen")).to_have_text(f"{count} seen")
    expect(cells.first.locator(".jp-OutputArea")).to_contain_text(re.compile(rf"steps:\s+{count}/\?"))
    expect(cells.first.locator(".jp-InputPrompt")).to_have_text("[1]:")
    expect(cells.nth(1).locator(".jp-InputPrompt")).to_have_text("[2]:")
    expect(status_bar).to_contain_text(re.compile(r"\| Idle"))
    assert lab.complaints == []
