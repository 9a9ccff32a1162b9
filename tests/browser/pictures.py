"""Takes the pictures of the user guide: ``python -m tests.browser.pictures FOLDER``.

With the fake server half, so that every phase can be shown; `remote-jupyterlab.png` with the real one. Those of the
dialogs are taken in both themes, to be looked at; the guide shows the light ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from jupyterlab_clearml_session.errors import HelperFailed
from jupyterlab_clearml_session.models import Phase
from tests.browser import stage as scenery
from tests.browser.conftest import ARGUMENTS, ROOT, SETTINGS, find_chromium
from tests.browser.lab_page import LabPage, Stage, kernel_like_ours
from tests.lab_fixture import LabServer

SIZE = (1180, 720)
NO_PYTHON = "The kernel helper cannot run on the remote machine: there is no Python 3.8 or newer"
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "cells": [
        {
            "cell_type": "markdown",
            "id": "a",
            "metadata": {},
            "source": "# Fine-tuning\nThis file is on the laptop.",
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": "import torch\n\ntorch.cuda.get_device_name()",
        },
    ],
}


def main(folder: Path) -> None:
    """Take all pictures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=60_000)  # a picture may wait: nothing is tested here
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(playwright), args=ARGUMENTS)
        with_the_fake(browser, Path(temporary, "fake"), folder)
        if "--fake" not in sys.argv:
            with_the_real_thing(browser, Path(temporary, "real"), folder)
        browser.close()


def with_the_fake(browser: Browser, temporary: Path, folder: Path) -> None:
    server = lab_server(
        temporary,
        environment={"PYTHONPATH": str(ROOT)},
        extensions={"jupyterlab_clearml_session": False, "tests.browser.fake": True},
    )
    (temporary / "notebooks").mkdir(parents=True)
    (temporary / "notebooks" / "vision").mkdir()
    (temporary / "notebooks" / "fine-tuning.ipynb").write_text(json.dumps(NOTEBOOK))
    kernel = kernel_like_ours(server, scenery.task_id(1))
    remote = {**NOTEBOOK, "metadata": {"kernelspec": {"name": kernel, "display_name": kernel}}}
    (temporary / "notebooks" / "remote.ipynb").write_text(json.dumps(remote))
    server.start()
    stage = Stage(server)
    for theme in ("Light", "Dark"):
        stage.reset()
        for number, phase in enumerate((Phase.READY, Phase.STARTING, Phase.QUEUED), 1):
            stage.put(number, phase)
        lab = new_page(browser, server).open(theme=f"JupyterLab {theme}")
        lab.widen()
        lab.open_document("fine-tuning.ipynb")
        expect(lab.page.locator("#jp-main-statusbar")).to_contain_text("| Idle")
        lab.page.screenshot(path=folder / f"panel-{theme.lower()}.png")
        card = lab.card(scenery.task_id(1))
        card.get_by_text("Details").click()
        expect(card.get_by_role("meter", name="GPU 0")).to_be_visible()
        card.screenshot(path=folder / f"details-{theme.lower()}.png")
        stage.put(1, Phase.READY, kernelspecs=[], kernels_error=HelperFailed(NO_PYTHON).to_json())
        expect(card.get_by_role("note")).to_be_visible()
        card.screenshot(path=folder / f"no-kernels-{theme.lower()}.png")
        lab.page.close()

        stage.reset()
        dialogs(new_page(browser, server), stage, f"JupyterLab {theme}", folder / theme.lower())

    stage.reset()
    lab = new_page(browser, server).open()
    lab.page.set_viewport_size({"width": SIZE[0], "height": 900})
    lab.panel.get_by_role("button", name="New Session").click()
    lab.dialog.get_by_label("Queue").select_option("a100")
    lab.dialog.get_by_label("Python packages").fill("torch==2.4\ntimm")
    lab.dialog.locator(".jp-ClearML-launchForm").evaluate("body => body.scrollTo(0, 0)")
    lab.dialog.locator(".jp-Dialog-content").screenshot(path=folder / "new-session.png")
    lab.page.close()

    stage.reset()
    for number, phase in enumerate((Phase.RECONNECTING, Phase.STARTING), 1):
        stage.put(number, phase)
    lab = new_page(browser, server).open()
    lab.widen()
    stage.put(2, Phase.FAILED)
    lab.panel.get_by_text("Last lines of the log", exact=True).click()
    lab.panel.screenshot(path=folder / "trouble.png")
    lab.page.close()

    stage.reset()
    stage.status("unconfigured")
    lab = new_page(browser, server).open()
    lab.page.set_viewport_size({"width": SIZE[0], "height": 560})
    lab.widen()
    lab.panel.screenshot(path=folder / "doors.png")
    server.stop()


def dialogs(lab: LabPage, stage: Stage, theme: str, folder: Path) -> None:
    """Take each dialog, and a notebook whose session reconnects."""
    folder.mkdir(exist_ok=True)
    lab.open(theme=theme)
    lab.page.set_viewport_size({"width": SIZE[0], "height": 900})
    content = lab.dialog.locator(".jp-Dialog-content")

    def take(name: str, body: str = "") -> None:
        if body:
            expect(content).to_contain_text(body)
        content.screenshot(path=folder / f"{name}.png")
        lab.page.keyboard.press("Escape")
        expect(lab.dialog).to_have_count(0)

    session = stage.put(1, Phase.READY)
    stage.put(2, Phase.ENDED, name="Baseline", spec={})
    stage.put(3, Phase.ENDED, name="With a workspace", spec={"store_workspace": "~/work"})
    card = lab.card(session["id"])
    lab.menu(card, "Open Port…")
    lab.dialog.get_by_role("radio", name="6006").check()
    take("open-port")
    lab.menu(card, "SSH Command…")
    take("ssh")
    lab.menu(card, "SSH Command…")
    lab.dialog.get_by_role("button", name="Show Password").click()
    lab.dialog.get_by_text("~/.ssh/config").click()
    take("ssh-all", scenery.PASSWORD)
    lab.menu(card, "Forwarded Ports…")
    lab.dialog.get_by_label("Port over there").fill("6006")
    lab.page.keyboard.press("Enter")
    expect(lab.dialog.locator("tr[data-local-port]")).to_have_count(2)
    lab.dialog.get_by_label("Port here").fill("70000")
    take("forwarded-ports", "tensorboard")
    lab.menu(card, "Running Kernels…")
    take("kernels", "python3")
    lab.page.get_by_role("button", name="More", exact=True).click()
    lab.page.get_by_role("menuitem", name="Debug a ClearML Task…").click()
    lab.dialog.get_by_role("radio").first.check()
    take("debug-task")
    lab.page.get_by_role("button", name="More", exact=True).click()
    lab.page.screenshot(path=folder / "panel-menu.png")
    lab.page.get_by_role("menuitem", name="Clean Up Ended ClearML Sessions…").click()
    take("clean-up", "1 of 2 chosen")

    stage.repositories(vision=scenery.repository())
    lab.go_to("vision")
    lab.panel.get_by_role("button", name="New Session").click()
    box = lab.dialog.get_by_role("region", name="Repository of the folder")
    expect(box).to_contain_text("3 changed files")
    lab.dialog.locator(".jp-ClearML-launchForm").evaluate("body => body.scrollTo(0, 0)")
    content.screenshot(path=folder / "repository-offered.png")
    box.get_by_role("checkbox").check()
    box.get_by_text("Show the changes").click()
    box.screenshot(path=folder / "repository.png")
    content.screenshot(path=folder / "repository-dialog.png")
    lab.dialog.get_by_role("button", name="Import from Command Line").click()
    expect(lab.dialog.get_by_text("Not understood")).to_be_visible()
    lab.dialog.locator(".jp-ClearML-launchForm").evaluate("body => body.scrollTo(0, 0)")
    take("imported")
    lab.go_to("/")

    stage.put(1, Phase.RECONNECTING)
    lab.open_document("remote.ipynb")
    toolbar = lab.page.locator(".jp-NotebookPanel-toolbar:visible")
    expect(toolbar.get_by_role("button", name="Reconnecting…")).to_be_visible()
    expect(lab.page.locator("#jp-main-statusbar")).to_contain_text("| Idle")
    lab.page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
    lab.page.screenshot(path=folder / "reconnecting.png")
    lab.page.set_viewport_size({"width": 760, "height": SIZE[1]})
    lab.page.screenshot(path=folder / "reconnecting-narrow.png")
    lab.page.close()


def with_the_real_thing(browser: Browser, temporary: Path, folder: Path) -> None:
    server = lab_server(temporary).start()
    lab = new_page(browser, server).open()
    lab.widen()
    lab.panel.get_by_role("button", name="Try It on This Machine").click()
    lab.panel.get_by_role("button", name="New Session").click(timeout=60_000)
    lab.dialog.get_by_role("button", name="Launch").click()
    card = lab.panel.get_by_role("article")
    expect(card).to_have_attribute("data-phase", "ready", timeout=120_000)
    lab.command(card, "open-jupyter").click()
    remote = lab.frame()
    remote.locator(".jp-LauncherCard[data-category='Notebook']").first.click(timeout=60_000)
    expect(remote.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=60_000)
    lab.page.evaluate("document.querySelectorAll('.Toastify').forEach(toast => toast.remove())")
    lab.page.screenshot(path=folder / "remote-jupyterlab.png")
    server.stop()


def lab_server(
    temporary: Path, environment: dict[str, str] | None = None, extensions: dict[str, bool] | None = None
) -> LabServer:
    settings = temporary / "app-settings"
    settings.mkdir(parents=True)
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    config: dict[str, object] = {"LabApp.app_settings_dir": settings, "LabApp.expose_app_in_browser": True}
    if extensions:
        config["ServerApp.jpserver_extensions"] = extensions
    return LabServer(temporary, environment=environment, config=config)


def new_page(browser: Browser, server: LabServer) -> LabPage:
    width, height = SIZE
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    return LabPage(page, server)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
