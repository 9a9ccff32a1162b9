"""The dialogs of the panel, and a console, in a real browser, with the fake server half."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from jupyterlab_clearml_session.errors import Conflict, InvalidInput
from jupyterlab_clearml_session.models import Phase
from tests.browser import stage as scenery
from tests.browser.lab_page import LabPage, Stage, kernel_like_ours
from tests.lab_fixture import LabServer

pytestmark = pytest.mark.browser

FILE_BROWSER = "li.lm-TabBar-tab[data-id='filebrowser']"


@pytest.fixture
def folders(fake_server: LabServer, tidy_lab: LabPage) -> Iterator[LabPage]:
    """The page, with the folders ``vision`` and ``notes`` in its file browser."""
    for name in ("vision", "notes"):
        (fake_server.folder / "notebooks" / name).mkdir(exist_ok=True)
    yield tidy_lab
    tidy_lab.tidy()
    tidy_lab.go_to("/")


# -- ports and SSH -----------------------------------------------------------------------------------------


def test_a_port_is_chosen_from_what_listens_or_typed(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    card = tidy_lab.card(session["id"])
    tidy_lab.menu(card, "Open Port…")
    port = tidy_lab.dialog.get_by_label("Port", exact=True)
    expect(port).to_be_focused()
    tidy_lab.dialog.get_by_role("radio", name="6006 tensorboard.main").check()
    expect(port).to_have_value("6006")
    port.fill("70000")
    expect(tidy_lab.dialog.get_by_role("alert")).to_have_text("A port is a whole number from 1 to 65535.")
    expect(tidy_lab.dialog.get_by_role("button", name="Open")).to_be_disabled()
    port.fill("8501")
    port.press("Enter")
    expect(tidy_lab.frame().locator("#path")).to_have_text(f"{session['id']}/port/8501/")


def test_the_ssh_command_and_its_password(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    tidy_lab.menu(tidy_lab.card(session["id"]), "SSH Command…")
    expect(tidy_lab.dialog.get_by_label("the command", exact=True)).to_contain_text("ssh -p 40022 -o HostKey")
    expect(tidy_lab.dialog).not_to_contain_text(scenery.PASSWORD)
    expect(tidy_lab.dialog.get_by_role("button", name="Done")).to_be_focused()
    tidy_lab.dialog.get_by_role("button", name="Show Password").press("Enter")
    expect(tidy_lab.dialog).to_contain_text(scenery.PASSWORD)
    tidy_lab.dialog.get_by_role("button", name="Done").click()
    expect(tidy_lab.page.get_by_text(scenery.PASSWORD)).to_have_count(0)
    tidy_lab.menu(tidy_lab.card(session["id"]), "SSH Command…")
    expect(tidy_lab.dialog.get_by_role("button", name="Show Password")).to_be_visible()
    asked = stage.calls("POST", f"sessions/{session['id']}/forwards")
    assert [call.get("show_password", False) for call in asked] == [False, True, False]


def test_forwarded_ports_are_listed_opened_and_closed(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    path = f"sessions/{session['id']}/forwards"
    tidy_lab.menu(tidy_lab.card(session["id"]), "Forwarded Ports…")
    dialog = tidy_lab.dialog
    expect(dialog).to_contain_text("None is open now.")
    dialog.get_by_label("Port over there").fill("6006")
    dialog.get_by_label("Port here").fill("16006")
    tidy_lab.page.keyboard.press("Enter")
    row = dialog.locator("[data-local-port='16006']")
    expect(row).to_contain_text("6006 · tensorboard.main")
    stage.fail(**{f"POST {path}": Conflict("The local port 16006 is in use.")})
    dialog.get_by_label("Port over there").fill("8000")
    dialog.get_by_role("button", name="Open").click()
    expect(dialog.get_by_text("The local port 16006 is in use.")).to_be_visible()
    stage.fail()
    row.get_by_role("button", name="Close").click()
    expect(row).to_have_count(0)
    tidy_lab.page.keyboard.press("Escape")  # reaches the dialog, although the button with the focus is gone
    expect(dialog).to_have_count(0)
    assert stage.calls("POST", path)[0] == {"remote_port": 6006, "local_port": 16006}


# -- launching ---------------------------------------------------------------------------------------------


def test_the_repository_of_the_folder_is_offered_and_shown_before_it_is_sent(
    folders: LabPage, stage: Stage
) -> None:
    lab, found = folders, scenery.repository()
    stage.repositories(vision=found)
    lab.go_to("vision")
    lab.panel.get_by_role("button", name="New Session").click()
    box = lab.dialog.get_by_role("region", name="Repository of the folder")
    expect(box).to_contain_text("vision · main · 3 changed files")
    box.get_by_role("checkbox").check()
    for text in (found["clone_repo"]["url"], "3f9c2a7be0", "1 commit that is not pushed"):
        expect(box).to_contain_text(text)
    expect(box.get_by_role("note")).to_contain_text(".env: may hold secrets (its name)")
    box.get_by_text("Show the changes").click()
    expect(box.get_by_label("Changes")).to_contain_text("AdamW")
    found["clone_repo"]["diff"] = "diff of a moment later"
    stage.repositories(vision=found)
    box.get_by_role("button", name="Look Again").click()
    expect(box.get_by_label("Changes")).to_have_text("diff of a moment later")
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.dialog).to_be_hidden()
    assert stage.calls("POST", "sessions") == [{"clone_repo": found["clone_repo"]}]


def test_a_folder_without_a_repository_says_so_only_when_asked(folders: LabPage, stage: Stage) -> None:
    lab = folders
    lab.go_to("notes")
    lab.panel.get_by_role("button", name="New Session").click()
    expect(lab.dialog.get_by_label("Queue")).to_be_visible()
    box = lab.dialog.get_by_role("region", name="Repository of the folder")
    expect(box).to_have_count(0)
    lab.page.keyboard.press("Escape")
    lab.page.locator(FILE_BROWSER).click()
    lab.page.locator(".jp-DirListing-content").first.click(button="right", position={"x": 20, "y": 200})
    lab.page.get_by_role("menuitem", name="New ClearML Session with This Repository…").click()
    expect(box.get_by_role("alert")).to_have_text("This folder is not in a git repository.")
    expect(box.get_by_role("checkbox")).to_be_disabled()


def test_a_repository_that_nobody_else_can_clone_is_told(folders: LabPage, stage: Stage) -> None:
    lab = folders
    stage.fail(
        **{"GET repo": InvalidInput("This repository has no remote.", field="folder", hint="Push it first.")}
    )
    lab.go_to("vision")
    lab.panel.get_by_role("button", name="New Session").click()
    box = lab.dialog.get_by_role("region", name="Repository of the folder")
    expect(box.get_by_role("alert")).to_have_text("This repository has no remote. Push it first.")


def test_a_session_with_the_repository_of_a_folder_in_the_file_browser(
    folders: LabPage, stage: Stage
) -> None:
    lab = folders
    stage.repositories(vision=scenery.repository())
    lab.page.locator(FILE_BROWSER).click()
    lab.page.locator(".jp-DirListing-item", has_text="vision").click(button="right")
    lab.page.get_by_role("menuitem", name="New ClearML Session with This Repository…").click()
    box = lab.dialog.get_by_role("region", name="Repository of the folder")
    expect(box.get_by_role("checkbox")).to_be_checked()
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.dialog).to_be_hidden()
    assert stage.calls("POST", "sessions") == [{"clone_repo": scenery.repository()["clone_repo"]}]


def test_an_ended_session_is_launched_again(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.ENDED)
    tidy_lab.panel.get_by_role("button", name="Ended").click()
    tidy_lab.command(tidy_lab.card(session["id"]), "launch-again").click()
    begin = tidy_lab.dialog.get_by_label("Begin with")
    expect(begin.locator("option:checked")).to_have_text("The session “Yesterday's notebook”")
    expect(tidy_lab.dialog.get_by_label("Python packages")).to_have_value("torch\ntimm")
    expect(tidy_lab.dialog.get_by_label("Init script")).to_have_value("apt-get install htop")
    tidy_lab.dialog.get_by_role("button", name="Launch").click()
    expect(
        tidy_lab.panel.get_by_role("article", name=re.compile("Yesterday's notebook: Queued"))
    ).to_be_visible()
    assert stage.calls("POST", "sessions") == [
        {
            "queue": "a100",
            "name": "Yesterday's notebook",
            "packages": ["torch", "timm"],
            "init_script": "apt-get install htop",
        }
    ]


def test_presets_are_imported_from_the_command_line(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="New Session").click()
    tidy_lab.dialog.get_by_role("button", name="Import from Command Line").click()
    expect(tidy_lab.dialog.get_by_label("Begin with").locator("option:checked")).to_have_text(
        "clearml-session"
    )
    expect(tidy_lab.dialog.get_by_text("Not understood: jupyter_port.")).to_be_visible()
    tidy_lab.dialog.get_by_role("button", name="Launch").click()
    assert stage.calls("POST", "sessions")[0]["keepalive"] is True
    tidy_lab.panel.get_by_role("button", name="More", exact=True).click()
    tidy_lab.page.get_by_role("menuitem", name="Import Presets").click()
    expect(tidy_lab.page.get_by_text("Imported as preset “clearml-session”")).to_be_visible()


# -- consoles ----------------------------------------------------------------------------------------------


def test_a_console_says_that_the_way_to_its_kernel_is_broken(
    fake_server: LabServer, tidy_lab: LabPage, stage: Stage
) -> None:
    """With a local kernel that bears the name of a session's; notebooks are tried for real in `test_reconnect`."""
    session = stage.put(1, Phase.READY)
    name = kernel_like_ours(fake_server, session["id"])
    tidy_lab.page.evaluate(
        """async name => {
            const app = window.jupyterapp;
            await app.serviceManager.kernelspecs.refreshSpecs();
            await app.commands.execute('console:create', {kernelPreference: {name}, activate: true});
        }""",
        name,
    )
    toolbar = tidy_lab.page.locator(".jp-ConsolePanel .jp-Toolbar")
    expect(toolbar).to_contain_text("Night training")
    link = toolbar.get_by_role("button", name="Reconnecting…")
    expect(link).to_have_count(0)
    stage.put(1, Phase.RECONNECTING)
    expect(link).to_be_visible()
    stage.put(1, Phase.READY)
    expect(link).to_have_count(0)
