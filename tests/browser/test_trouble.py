"""While something is wrong: events lost, a slow or restarted server, an expired login; two windows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Request, Route, WebSocketRoute, expect

from jupyterlab_clearml_session.errors import ClearMLUnreachable
from jupyterlab_clearml_session.models import Phase
from tests.browser.conftest import ROOT
from tests.browser.lab_page import LabPage, Stage
from tests.lab_fixture import LabServer

pytestmark = pytest.mark.browser

API = "**/clearml-session/api/**"
EVENTS = re.compile(r"/api/events/subscribe")
FILES = re.compile(r"/clearml-session/proxy/\w+/jupyter/api/contents(/[^?]*)?")
AGAIN_MS = 40_000


def test_the_event_socket_is_lost_and_comes_back(lab: LabPage, stage: Stage) -> None:
    sockets: list[WebSocketRoute] = []

    def pass_on(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    lab.page.route_web_socket(EVENTS, pass_on)
    session = stage.put(1, Phase.STARTING)
    lab.open()
    card = lab.card(session["id"])
    expect(card).to_have_attribute("data-phase", "starting")
    with lab.page.expect_event("websocket", lambda socket: bool(EVENTS.search(socket.url)), timeout=AGAIN_MS):
        sockets[-1].close()
    stage.lose(1, Phase.CONNECTING)  # what happened meanwhile
    stage.put(2, Phase.QUEUED)
    expect(card).to_have_attribute("data-phase", "connecting", timeout=AGAIN_MS)
    stage.put(1, Phase.READY)
    expect(card).to_have_attribute("data-phase", "ready", timeout=AGAIN_MS)


@pytest.fixture
def own_server(tmp_path: Path, lab_config: dict[str, object]) -> Iterator[LabServer]:
    """A server with the fake half that a test may restart."""
    extensions = {"jupyterlab_clearml_session": False, "tests.browser.fake": True}
    server = LabServer(
        tmp_path,
        environment={"PYTHONPATH": str(ROOT)},
        config={**lab_config, "ServerApp.jpserver_extensions": extensions},
    ).start()
    yield server
    server.stop()


def test_a_restarted_server_counts_anew(lab_context: BrowserContext, own_server: LabServer) -> None:
    stage = Stage(own_server)
    before = stage.put(1, Phase.READY, name="Before")
    stage.put(2, Phase.QUEUED, name="Gone meanwhile")
    lab = LabPage(lab_context.new_page(), own_server).open()
    expect(lab.panel.get_by_role("article")).to_have_count(2)
    own_server.stop()
    lab.refresh()
    alert = lab.panel.get_by_role("alert")
    expect(alert).to_contain_text("The Jupyter server cannot be reached")
    expect(lab.panel.get_by_role("article")).to_have_count(2)  # what was known last stays

    own_server.start()
    stage.put(1, Phase.RECONNECTING, name="Before")
    # By itself: nobody presses anything.
    expect(alert).to_have_count(0, timeout=AGAIN_MS)
    expect(lab.card(before["id"])).to_have_attribute("data-phase", "reconnecting")
    expect(lab.panel.get_by_role("article")).to_have_count(1)
    lab.page.close()


def test_an_expired_login_is_told_and_the_page_can_be_reloaded(lab: LabPage, stage: Stage) -> None:
    stage.put(1, Phase.READY)
    lab.open()
    expect(lab.panel.get_by_role("article")).to_have_count(1)
    lab.page.route(API, lambda route: route.fulfill(status=403, json={"message": "Forbidden"}))
    lab.refresh()
    alert = lab.panel.get_by_role("alert")
    expect(alert).to_contain_text("reload the page to log in again")
    with lab.page.expect_navigation():
        alert.get_by_role("button", name="Reload the Page").click()
    lab.page.unroute(API)


def test_a_dialog_is_there_before_the_answer_and_asks_again(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    path = f"GET sessions/{session['id']}/kernels"
    stage.delay(**{path: 1.0})
    stage.fail(**{path: ClearMLUnreachable("The connection is down")})
    tidy_lab.menu(tidy_lab.card(session["id"]), "Running Kernels…")
    expect(tidy_lab.dialog.get_by_role("status")).to_have_text("Asking the machine…")
    expect(tidy_lab.dialog.get_by_role("alert")).to_contain_text("The connection is down")
    stage.delay()
    stage.fail()
    tidy_lab.dialog.get_by_role("button", name="Try Again").click()
    expect(tidy_lab.dialog.locator("tr[data-kernel-id]")).to_contain_text("idle for 3 hours")


def test_two_windows_show_the_same(tidy_lab: LabPage, lab: LabPage, stage: Stage) -> None:
    lab.open()
    lab.panel.get_by_role("button", name="New Session").click()
    lab.dialog.get_by_label("Name", exact=True).fill("In both windows")
    lab.dialog.get_by_role("button", name="Launch").click()
    here, there = (page.panel.get_by_role("article", name="In both windows") for page in (lab, tidy_lab))
    expect(here).to_have_attribute("data-phase", "queued")
    expect(there).to_have_attribute("data-phase", "queued")
    tidy_lab.command(there, "shut-down").click()
    tidy_lab.dialog.get_by_role("button", name="Shut Down").click()
    expect(here).to_have_attribute("data-phase", "stopping")


def test_a_session_by_an_id_that_nobody_knows(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="Attach by Id…").click()
    typed = tidy_lab.dialog.get_by_role("textbox")
    expect(typed).to_be_focused()
    typed.fill("f" * 32)
    typed.press("Enter")
    expect(tidy_lab.dialog.get_by_role("alert")).to_contain_text("There is no session")
    expect(typed).to_have_value("f" * 32)


def test_an_upload_shows_how_far_it_is_and_is_ended_by_cancel(lab: LabPage, stage: Stage) -> None:
    stage.delay(**{"POST sessions": 5.0})
    lab.open()
    lab.panel.get_by_role("button", name="New Session").click()
    lab.dialog.locator("[data-group='workspace'] > summary").click()
    lab.dialog.get_by_label("Upload").fill("~/data")
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.dialog.get_by_text("Launching…")).to_be_visible()
    progress = {"step": 1, "steps": 5, "text": "Uploading files", "last_line": "", "fraction": 0.62}
    session = stage.put(1, Phase.CREATED, progress=progress)
    bar = lab.dialog.get_by_role("progressbar", name="Uploading files")
    expect(bar).to_have_attribute("aria-valuenow", "62")
    expect(lab.dialog.get_by_text("Uploading files: 62%")).to_be_visible()
    lab.dialog.get_by_role("button", name="Cancel").click()
    expect(lab.card(session["id"])).to_have_attribute("data-phase", "stopping")
    assert len(stage.calls("DELETE", f"sessions/{session['id']}")) == 1


def remote_file(route: Route) -> None:
    """Answer as a session whose only file is a note."""
    note: dict[str, object] = {
        "name": "note.txt",
        "path": "note.txt",
        "type": "file",
        "writable": True,
        "created": "2026-11-22T10:00:00Z",
        "last_modified": "2026-11-22T10:00:00Z",
        "mimetype": None,
        "content": None,
        "format": None,
    }
    path = (FILES.search(route.request.url) or [""])[1]
    if path and path.endswith("/checkpoints"):
        route.fulfill(json=[{"id": "checkpoint", "last_modified": note["last_modified"]}])
    elif path and path.endswith("/note.txt"):
        read = "content=0" not in route.request.url
        text = {"content": "kept over there", "format": "text", "mimetype": "text/plain"}
        route.fulfill(json=note | (text if read else {}))
    else:
        folder = {"name": "", "path": "", "type": "directory", "format": "json", "content": [note]}
        route.fulfill(json=note | folder)


def test_a_document_of_a_session_comes_back_with_it_and_goes_quietly_without(
    lab: LabPage, stage: Stage
) -> None:
    session = stage.put(1, Phase.READY)
    path = f"clearml-{session['id'][:8]}:note.txt"
    local = lab.server.folder / "notebooks" / path
    local.write_text("of this machine")
    lab.page.route(FILES, remote_file)

    def keeps(document: bool) -> Callable[[Request], bool]:
        """Tell the request that saves the workspace with the document, or without."""

        def matches(request: Request) -> bool:
            saves = "/lab/api/workspaces/" in request.url and request.method == "PUT"
            return saves and (f"editor:{path}" in (request.post_data or "")) is document

        return matches

    listed = lab.page.locator(".jp-ClearML-files .jp-DirListing-item", has_text="note.txt")
    tab = lab.page.locator("#jp-main-dock-panel").get_by_role("tab", name="note.txt")
    text = lab.page.locator(".jp-FileEditor .cm-content")
    splash = lab.page.locator("#jupyterlab-splash")
    lab.open()
    lab.command(lab.card(session["id"]), "open-files").click()
    with lab.page.expect_request_finished(keeps(True), timeout=AGAIN_MS):
        listed.dblclick()
        expect(text).to_have_text("kept over there")

    # -- JupyterLab starts without waiting for the session, and asks nobody else for its file
    stage.put(1, Phase.CONNECTING)
    lab.page.reload()
    expect(lab.card(session["id"])).to_have_attribute("data-phase", "connecting", timeout=AGAIN_MS)
    expect(splash).to_have_count(0, timeout=AGAIN_MS)
    expect(tab).to_have_count(1)
    expect(text).to_have_text("")
    expect(lab.dialog).to_have_count(0)
    stage.put(1, Phase.READY)
    expect(text).to_have_text("kept over there")

    # -- the same where it is ready from the first, but slow to answer
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    lab.page.route(FILES, hold)
    with lab.page.expect_request(FILES, timeout=AGAIN_MS):
        lab.page.reload()
    expect(splash).to_have_count(0, timeout=AGAIN_MS)
    expect(tab).to_have_count(1)
    lab.page.unroute(FILES, hold)
    for route in held:
        remote_file(route)
    expect(text).to_have_text("kept over there", timeout=AGAIN_MS)
    lab.page.locator("#jp-main-dock-panel").get_by_role("tab", name="(files)").click()
    expect(listed).to_be_visible()

    # -- the session is gone
    stage.remove(1)
    with lab.page.expect_request_finished(keeps(False), timeout=AGAIN_MS):
        lab.page.reload()
    expect(splash).to_have_count(0, timeout=AGAIN_MS)
    expect(tab).to_have_count(0)
    expect(lab.dialog).to_have_count(0)
    local.unlink()
    assert lab.complaints == []
