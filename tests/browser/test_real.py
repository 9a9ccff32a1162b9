"""The main job in a real browser, with every part real: no fake, no ClearML account, an empty HOME.

"Try it on this machine", New session, progress, ready, the remote JupyterLab through the proxy, a cell that prints
what only the remote has, a terminal, the files, Shut down; then the agent is free again and no process is left.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import FrameLocator, Page, expect

from tests.browser.lab_page import LabPage
from tests.lab_fixture import LabServer

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(900)]

LARGE_MB = int(os.environ.get("CLEARML_SESSION_LARGE_MB", "32"))
"""Size of the file that goes up and down; ``make test-large`` takes 1 GB."""

LARGE_MS = 60_000 + 1_000 * LARGE_MB
OUTPUT = 50_000_000
READY_MS = 120_000
LAB_MS = 60_000
CELL_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, lab_config: dict[str, object]) -> Iterator[LabServer]:
    """A server with an empty HOME and nothing configured, below a base URL as JupyterHub gives it."""
    server = LabServer(tmp_path_factory.mktemp("real"), base_url="/user/someone/", config=lab_config)
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()


def descendants(server: LabServer) -> list[psutil.Process]:
    assert server.process is not None
    found: list[psutil.Process] = psutil.Process(server.process.pid).children(recursive=True)
    return found


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def use_remote_lab(page: Page, server: LabServer, remote: FrameLocator, home: Path, here: Path) -> None:
    """Work in the remote JupyterLab as people do, with a notebook open: large outputs, saving, restart, files."""
    notebook = remote.locator(".jp-NotebookPanel:visible")
    dialog = remote.locator(".jp-Dialog")

    def run(code: str, shows: str) -> None:
        notebook.locator(".jp-Cell .cm-content").last.click()
        page.keyboard.insert_text(code)
        page.keyboard.press("Shift+Enter")
        expect(notebook.locator(".jp-OutputArea-output", has_text=shows)).to_be_visible(timeout=CELL_MS)

    # -- an output of 50 MB, and the notebook saved with it, under the name that JupyterLab asks for
    run(
        f"display({{'text/plain': 'a large one', 'application/x-large': 'x' * {OUTPUT}}}, raw=True)",
        shows="a large one",
    )
    page.keyboard.press("Control+s")
    dialog.locator("input[type=text]").fill("large.ipynb")
    dialog.locator(".jp-mod-accept").click()
    expect(remote.get_by_role("tab", name="large.ipynb")).to_be_visible(timeout=LAB_MS)
    expect(remote.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0, timeout=LAB_MS)
    (saved,) = home.rglob("large.ipynb")
    outputs = [output for cell in json.loads(saved.read_text())["cells"] for output in cell["outputs"]]
    assert [len(output["data"]["application/x-large"]) for output in outputs if "data" in output] == [OUTPUT]

    # -- another kernel behind the same notebook
    notebook.locator("[data-jp-item-name='restart'] button, [data-jp-item-name='restart']").first.click()
    dialog.locator(".jp-mod-accept").click()
    run("print('os' in dir(), 'after the restart')", shows="False after the restart")

    # -- a large file up and down again
    up, down = here / "up.bin", here / "down.bin"
    block = os.urandom(1 << 20)
    with up.open("wb") as file:
        for number in range(LARGE_MB):
            file.write(number.to_bytes(4, "big") + block[4:])
    with page.expect_file_chooser() as chooser:
        remote.locator("[data-jp-item-name='uploader'] button, [data-jp-item-name='uploader']").first.click()
    chooser.value.set_files(up)
    dialog.locator(".jp-mod-accept").click()  # JupyterLab asks before it uploads more than 15 MB
    server.until(
        lambda: [file.stat().st_size for file in home.rglob("up.bin")] == [LARGE_MB << 20], LARGE_MS / 1000
    )
    (arrived,) = home.rglob("up.bin")
    assert sha256(arrived) == sha256(up)
    remote.locator(".jp-DirListing-item", has_text="up.bin").click(button="right", timeout=LAB_MS)
    with page.expect_download(timeout=LARGE_MS) as download:
        remote.locator(".lm-Menu-item[data-command='filebrowser:download']").click()
    download.value.save_as(down)
    assert sha256(down) == sha256(up)

    # -- its own terminal
    remote.locator(
        "[data-jp-item-name='new-launcher'] button, [data-jp-item-name='new-launcher']"
    ).first.click()
    remote.locator(".jp-LauncherCard[data-category='Other']", has_text="Terminal").click(timeout=LAB_MS)
    remote.locator(".jp-Terminal:visible .xterm-screen").click(timeout=LAB_MS)
    page.keyboard.type("echo typed-in-its-own > own-terminal.txt\n")
    remote.locator(".jp-DirListing-item", has_text="own-terminal.txt").wait_for(timeout=LAB_MS)


def test_the_main_job(page: Page, server: LabServer, tmp_path: Path) -> None:
    lab = LabPage(page, server).open()
    lab.widen()

    lab.panel.get_by_role("button", name="Try It on This Machine").click()
    expect(lab.panel.get_by_text("No session runs at the moment.")).to_be_visible(timeout=LAB_MS)
    expect(lab.panel.locator(".jp-ClearML-where")).to_contain_text("this machine")

    # -- New session, with something typed, and its progress
    lab.panel.get_by_role("button", name="New Session").click()
    lab.dialog.get_by_label("Name", exact=True).fill("seen in a browser")
    lab.dialog.locator("[data-group='environment'] > summary").click()
    lab.dialog.get_by_label("VS Code", exact=True).uncheck()
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.dialog).to_be_hidden()
    card = lab.panel.locator("article", has_text="seen in a browser")
    expect(card).to_be_visible()
    expect(card.get_by_role("progressbar")).to_be_visible()
    expect(card).to_have_attribute("data-phase", "starting", timeout=READY_MS)
    expect(card).to_have_attribute("data-phase", "ready", timeout=READY_MS)
    session_id = card.get_attribute("data-session-id")
    assert session_id is not None

    # -- a notebook of this machine on a kernel of that one
    tile = page.locator(".jp-LauncherCard[data-category='Notebook']", has_text="seen in a browser")
    tile.click(timeout=LAB_MS)
    expect(page.locator("#jp-main-statusbar")).to_contain_text("seen in a browser | Idle", timeout=CELL_MS)
    page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
    page.keyboard.type("kept = 'kept over there'")
    page.keyboard.press("Shift+Enter")

    # -- a second notebook connected to that very kernel
    card.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name="Running Kernels…").click()
    expect(lab.dialog.locator("tr[data-kernel-id]")).to_contain_text("Untitled.ipynb")
    lab.dialog.get_by_role("button", name="Connect…").click()
    lab.dialog.get_by_role("combobox").select_option("A new notebook")
    lab.dialog.get_by_role("button", name="Connect", exact=True).click()
    second = page.locator(".jp-NotebookPanel:visible")
    expect(page.get_by_role("tab", name="Untitled1.ipynb")).to_be_visible(timeout=LAB_MS)
    expect(page.locator("#jp-main-statusbar")).to_contain_text("seen in a browser | Idle", timeout=CELL_MS)
    second.locator(".jp-Cell .cm-content").first.click()
    page.keyboard.type("kept")
    page.keyboard.press("Shift+Enter")
    expect(second.locator(".jp-OutputArea-output", has_text="kept over there")).to_be_visible(timeout=CELL_MS)

    # -- its JupyterLab, in a tab here, through the proxy
    lab.command(card, "open-jupyter").click()
    remote = lab.frame()
    remote.locator(".jp-LauncherCard[data-category='Notebook']").first.click(timeout=LAB_MS)
    expect(remote.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=CELL_MS)
    remote.locator(".jp-Notebook .jp-Cell .cm-content").first.click(timeout=LAB_MS)
    page.keyboard.type("import os; print('HOME is', os.environ['HOME'])")
    page.keyboard.press("Shift+Enter")
    output = remote.locator(".jp-OutputArea-output", has_text="HOME is").first
    expect(output).to_be_visible(timeout=CELL_MS)
    home = output.inner_text().removeprefix("HOME is").strip()
    assert Path(home).is_dir()
    assert Path(home) != server.home
    assert Path(home).is_relative_to(server.folder), "the sandbox is below the server's own folder"

    use_remote_lab(page, server, remote, Path(home), tmp_path)

    # -- a terminal over there: what is typed happens there
    lab.command(card, "open-terminal").click()
    expect(page.locator(".jp-Terminal:visible textarea")).to_be_focused(timeout=LAB_MS)
    page.keyboard.type("echo typed-over-there > from-terminal.txt\n")
    server.until(lambda: any(Path(home).rglob("from-terminal.txt")))

    # -- and its files
    lab.command(card, "open-files").click()
    file = page.locator(".jp-ClearML-files .jp-DirListing-item", has_text="from-terminal.txt")
    expect(file).to_be_visible(timeout=LAB_MS)

    # -- one of them in an editor, which the workspace notes
    text = page.locator(".jp-FileEditor .cm-content")
    opened = f"editor:clearml-{session_id[:8]}:"
    with page.expect_request_finished(
        lambda request: (
            "/lab/api/workspaces/" in request.url
            and request.method == "PUT"
            and opened in (request.post_data or "")
        ),
        timeout=LAB_MS,
    ):
        file.dblclick()
        expect(text).to_contain_text("typed-over-there", timeout=LAB_MS)

    # -- the log is there, and a reload of the page brings everything back
    page.reload()
    expect(lab.card(session_id)).to_have_attribute("data-phase", "ready", timeout=LAB_MS)
    card = lab.card(session_id)
    expect(page.locator(".jp-ClearML-page iframe")).to_have_count(1, timeout=LAB_MS)
    expect(text).to_contain_text("typed-over-there", timeout=LAB_MS)

    # -- Shut down from the panel: the agent is free again
    lab.command(card, "shut-down").click()
    lab.dialog.get_by_role("button", name="Shut Down").click()
    expect(card).to_be_hidden(timeout=LAB_MS)
    server.until(
        lambda: all(not worker["busy"] for worker in server.api("GET", "queues")["queues"][0]["workers"])
    )
    lab.panel.get_by_role("button", name="Ended").click()
    expect(lab.card(session_id)).to_have_attribute("data-phase", "ended")
    # JupyterLab itself says this of its notebooks whose kernel went with the session.
    assert set(lab.complaints) <= {"Kernel is dead"}


def test_no_process_is_left(server: LabServer, browser_name: str) -> None:
    children = descendants(server)
    assert children, "the embedded default runs beside the server"
    server.stop()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []
