"""How a person finds their way in JupyterLab, and how a test sets the fake's stage."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Locator, Page

from jupyterlab_clearml_session.errors import ClearMLSessionError
from jupyterlab_clearml_session.models import Phase
from tests.browser import stage as scenery
from tests.lab_fixture import LabServer

PANEL = "jp-clearml-session-panel"
LAB_DEADLINE_MS = 60_000


class Stage:
    """The fake's stage, over its own calls."""

    def __init__(self, server: LabServer) -> None:
        self._server = server

    def reset(self) -> None:
        self._direct("reset")

    def put(self, number: int, phase: Phase, **changes: Any) -> dict[str, Any]:
        """Show a session; returns its JSON."""
        session = scenery.session(number, phase, **changes)
        self.show(session)
        return session

    def show(self, session: dict[str, Any]) -> None:
        self._direct("put", session)

    def lose(self, number: int, phase: Phase, **changes: Any) -> None:
        """Change a session, but lose the event."""
        self._direct("lose", scenery.session(number, phase, **changes))

    def remove(self, number: int) -> None:
        self._direct("remove", {"id": scenery.task_id(number)})

    def status(self, mode: str = "server", error: ClearMLSessionError | None = None) -> None:
        self._direct("status", scenery.status(mode, error))

    def fail(self, **calls: ClearMLSessionError) -> None:
        """Let calls fail: ``fail(**{"POST sessions": InvalidInput(...)})``. Without any: none fails any more."""
        failures = {call: {"error": error.to_json(), "status": error.status} for call, error in calls.items()}
        self._direct("fail", failures)

    def delay(self, **calls: float) -> None:
        """Let calls take so many seconds."""
        self._direct("delay", calls)

    def presets(self, presets: dict[str, Any], last: dict[str, Any] | None = None) -> None:
        self._direct("presets", {"presets": presets, "last": last or {}})

    def repositories(self, **found: dict[str, Any]) -> None:
        """Let folders lie in repositories: ``repositories(vision=scenery.repository())``; all others in none."""
        self._direct("repositories", found)

    def calls(self, method: str, path: str) -> list[dict[str, Any]]:
        """Return the bodies of the calls that were made so."""
        found = self._server.call("GET", "clearml-session/fake/calls").body
        return [call["body"] for call in found if (call["method"], call["path"]) == (method, path)]

    def _direct(self, act: str, body: Any = None) -> None:
        answer = self._server.call("POST", f"clearml-session/fake/{act}", body or {})
        assert answer.status == 200, answer.body


class LabPage:
    """A browser page with JupyterLab."""

    def __init__(self, page: Page, server: LabServer) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, *, theme: str = "JupyterLab Light", panel: bool = True) -> LabPage:
        """Open JupyterLab in a workspace of its own, and the panel."""
        settings = {"raw": f'{{"theme": "{theme}"}}'}
        answer = self.server.call("PUT", "lab/api/settings/@jupyterlab/apputils-extension:themes", settings)
        assert answer.status == 204, answer.body
        workspace = uuid.uuid4().hex[:8]
        self.page.goto(f"{self.server.url}lab/workspaces/{workspace}?token={self.server.token}")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=LAB_DEADLINE_MS)
        self.page.locator(".jp-Launcher").first.wait_for(timeout=LAB_DEADLINE_MS)
        if panel:
            self.page.locator(f"li.lm-TabBar-tab[data-id='{PANEL}']").click()
            self.panel.wait_for()
        return self

    def tidy(self) -> None:
        """Close what earlier tests left open, without loading JupyterLab again."""
        self.page.bring_to_front()
        if self.dialog.count():
            self.dialog.locator("button").last.press("Escape")
        self.dialog.wait_for(state="detached")
        self.page.evaluate("window.jupyterapp.commands.execute('application:close-all')")
        self.page.mouse.move(0, 0)
        self.page.evaluate("window.jupyterapp.commands.execute('clearml-session:open-panel')")
        self.page.evaluate("window.jupyterapp.commands.execute('clearml-session:refresh')")
        self.panel.get_by_role("searchbox").fill("")
        self.panel.get_by_label("Everybody").uncheck()
        ended = self.panel.get_by_role("button", name="Ended")
        if ended.get_attribute("aria-expanded") == "true":
            ended.click()
        self.complaints.clear()

    def refresh(self) -> None:
        """Let the panel ask again, as for what no event tells."""
        self.panel.get_by_role("button", name="Refresh").click()

    @property
    def panel(self) -> Locator:
        return self.page.locator(f"#{PANEL}")

    def card(self, session_id: str) -> Locator:
        return self.panel.locator(f"article[data-session-id='{session_id}']")

    def command(self, card: Locator, command: str) -> Locator:
        """The button of a command on a card."""
        return card.locator(f"button[data-command='clearml-session:{command}']")

    def menu(self, card: Locator, item: str) -> None:
        """Choose from the menu behind the three dots of a card."""
        card.get_by_role("button", name="More").click()
        self.page.get_by_role("menuitem", name=item).click()

    def go_to(self, folder: str) -> None:
        """Go to a folder in the file browser, which stays out of sight."""
        self.page.evaluate(
            "path => window.jupyterapp.commands.execute('filebrowser:go-to-path', {path, dontShowBrowser: true})",
            folder,
        )

    def open_document(self, path: str) -> None:
        """Open a document of the server."""
        # What the command returns is a widget, which cannot be told: nothing is.
        self.page.evaluate(
            "path => window.jupyterapp.commands.execute('docmanager:open', {path}).then(() => null)", path
        )

    @property
    def dialog(self) -> Locator:
        return self.page.locator(".jp-Dialog")

    def frame(self) -> FrameLocator:
        """The page of a session that is open in the main area."""
        return self.page.frame_locator(".jp-ClearML-page iframe")

    def widen(self, width: int = 340) -> None:
        """Drag the border of the left side, so that the panel is as wide as people have it."""
        box = self.panel.bounding_box()
        assert box is not None
        right = box["x"] + box["width"] + 2
        self.page.mouse.move(right, 400)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + width, 400, steps=4)
        self.page.mouse.up()


def screenshot(page: Page, request: pytest.FixtureRequest, name: str) -> None:
    """Keep a picture where `pytest --output` says, to be looked at."""
    folder = Path(request.config.getoption("--output"), "looks")
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def kernel_like_ours(server: LabServer, session_id: str) -> str:
    """Install a local kernel under the name that a session's kernel has; returns the name."""
    name = f"clearml-{session_id[:8]}-python3"
    folder = server.folder / "data" / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 · Night training",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    return name
