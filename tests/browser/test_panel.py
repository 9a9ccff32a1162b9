"""The panel in a real browser, with the fake server half: every phase, doors, failures, keyboard, both themes."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, expect

from jupyterlab_clearml_session.errors import BadCredentials, ClearMLUnreachable, InvalidInput, WrongPhase
from jupyterlab_clearml_session.models import Phase
from tests.browser import stage as scenery
from tests.browser.lab_page import LabPage, Stage, screenshot

pytestmark = pytest.mark.browser

TILE = ".jp-LauncherCard[title='Start a session on a remote ClearML machine']"
WORDS = {
    Phase.CREATED: "Created",
    Phase.QUEUED: "Queued",
    Phase.STARTING: "Starting",
    Phase.SERVICES_UP: "Running",
    Phase.CONNECTING: "Connecting",
    Phase.READY: "Ready",
    Phase.RECONNECTING: "Reconnecting",
    Phase.STOPPING: "Stopping",
}
BUTTONS = {
    Phase.CREATED: {"shut-down"},
    Phase.QUEUED: {"shut-down"},
    Phase.STARTING: {"show-log", "shut-down"},
    Phase.SERVICES_UP: {"open-jupyter", "attach", "open-vscode", "shut-down"},
    Phase.CONNECTING: {"show-log", "shut-down"},
    Phase.READY: {"open-jupyter", "open-vscode", "open-terminal", "open-files", "shut-down"},
    Phase.RECONNECTING: {
        "open-jupyter",
        "open-vscode",
        "open-terminal",
        "open-files",
        "reconnect",
        "shut-down",
    },
    Phase.STOPPING: {"show-log"},
}


def buttons(card: Locator) -> set[str]:
    """The commands that a card offers."""
    return {
        (button.get_attribute("data-command") or "").removeprefix("clearml-session:")
        for button in card.locator("button[data-command]").all()
    }


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_phase_in_both_themes(
    lab: LabPage, stage: Stage, theme: str, request: pytest.FixtureRequest
) -> None:
    cards = {phase: stage.put(number, phase) for number, phase in enumerate(WORDS, 1)}
    lab.open(theme=theme).widen()
    for phase, session in cards.items():
        card = lab.card(session["id"])
        expect(card).to_have_attribute("data-phase", phase.value)
        expect(card.locator(".jp-ClearML-chip").first).to_have_text(WORDS[phase])
        assert buttons(card) == BUTTONS[phase], phase
    name = theme.split()[-1].lower()
    screenshot(lab.page, request, f"phases-{name}")
    lab.panel.locator(".jp-ClearML-list").evaluate("list => list.scrollTo(0, list.scrollHeight)")
    screenshot(lab.page, request, f"phases-{name}-more")
    assert lab.complaints == []


def test_a_session_comes_up_before_the_eyes(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.QUEUED)
    card = tidy_lab.card(session["id"])
    expect(card).to_contain_text("place 2, 2 agents")
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "25")
    stage.put(1, Phase.STARTING)
    expect(card).to_contain_text("Successfully installed jupyterlab")
    stage.put(1, Phase.READY)
    expect(card.get_by_role("button", name="Open JupyterLab")).to_be_visible()
    said = tidy_lab.page.locator(".jp-ClearML-hidden[aria-live]")
    expect(said).to_have_text("Interactive Session: Ready")
    expect(tidy_lab.page.locator(".jp-ClearML-status")).to_have_text("ClearML: 1 ready")


def test_a_lost_event_is_noticed_with_the_next_one(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.STARTING)
    expect(tidy_lab.card(session["id"])).to_have_attribute("data-phase", "starting")
    stage.lose(1, Phase.READY)
    stage.put(2, Phase.QUEUED)
    expect(tidy_lab.card(session["id"])).to_have_attribute("data-phase", "ready")


def test_a_failure_stays_in_sight_until_it_is_dismissed(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.STARTING)
    card = tidy_lab.card(session["id"])
    expect(card).to_be_visible()
    stage.put(1, Phase.FAILED)
    expect(card.get_by_role("alert")).to_contain_text("could not install its packages")
    card.get_by_text("Last lines of the log", exact=True).click()
    expect(card.locator("pre")).to_contain_text("No matching distribution found for torhc")
    tidy_lab.command(card, "dismiss").click()
    expect(card).to_be_hidden()
    tidy_lab.panel.get_by_role("button", name="Ended").click()
    expect(card).to_be_visible()


def test_details_name_the_machine_and_how_far_it_is_trusted(tidy_lab: LabPage, stage: Stage) -> None:
    ready = stage.put(1, Phase.READY)
    old = stage.put(2, Phase.SERVICES_UP)
    for session, trust, text in ((ready, "pinned", "verified"), (old, "unverified", "not verified")):
        card = tidy_lab.card(session["id"])
        card.get_by_text("Details").click()
        badge = card.locator("[data-host-key]")
        expect(badge).to_have_attribute("data-host-key", trust)
        expect(badge).to_have_text(text)
    expect(tidy_lab.card(ready["id"])).to_contain_text("up, round trip 12.4 ms")
    expect(tidy_lab.card(ready["id"]).get_by_role("link", name="Open the Task")).to_have_attribute(
        "href", ready["web_url"]
    )


def test_somebody_in_the_middle_is_told_and_offers_no_page(tidy_lab: LabPage, stage: Stage) -> None:
    session = scenery.host_key_mismatch(1)
    stage.show(session)
    card = tidy_lab.card(session["id"])
    expect(card.locator(".jp-ClearML-error")).to_contain_text("Do not connect")
    assert buttons(card) == {"reconnect", "show-log", "shut-down"}


def test_other_peoples_sessions_open_after_a_warning_only(tidy_lab: LabPage, stage: Stage) -> None:
    others = stage.put(1, Phase.READY, mine=False, user=scenery.SOMEBODY.to_json(), attached=False)
    card = tidy_lab.card(others["id"])
    expect(card).to_be_hidden()
    tidy_lab.panel.get_by_label("Everybody").check()
    expect(card).to_contain_text("grace")
    tidy_lab.command(card, "open-jupyter").click()
    expect(tidy_lab.dialog).to_contain_text("act in your name")
    tidy_lab.dialog.get_by_role("button", name="Cancel").click()
    expect(tidy_lab.page.locator(".jp-ClearML-page")).to_have_count(0)
    tidy_lab.command(card, "open-jupyter").click()
    tidy_lab.dialog.get_by_role("button", name="Open Anyway").click()
    expect(tidy_lab.frame().locator("h1")).to_have_text("Fake page")


def test_filter(tidy_lab: LabPage, stage: Stage) -> None:
    one, other = stage.put(1, Phase.READY), stage.put(2, Phase.QUEUED)
    tidy_lab.panel.get_by_role("searchbox").fill("a100")
    expect(tidy_lab.card(one["id"])).to_be_hidden()
    expect(tidy_lab.card(other["id"])).to_be_visible()


def test_pages_open_once_and_in_a_browser_tab(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    card = tidy_lab.card(session["id"])
    tidy_lab.command(card, "open-jupyter").click()
    expect(tidy_lab.frame().locator("#path")).to_have_text(f"{session['id']}/jupyter/lab")
    tidy_lab.command(card, "open-jupyter").click()
    expect(tidy_lab.page.locator(".jp-ClearML-page")).to_have_count(1)
    with tidy_lab.page.context.expect_page() as opened:
        tidy_lab.page.get_by_role("button", name="Open in a new browser tab").click()
    assert opened.value.url.endswith(f"clearml-session/proxy/{session['id']}/jupyter/lab")
    opened.value.close()


def test_files_fill_their_tab(tidy_lab: LabPage, stage: Stage) -> None:
    model = {
        "name": "",
        "path": "",
        "type": "directory",
        "format": "json",
        "mimetype": None,
        "writable": True,
    }
    dates = {"created": "2026-11-22T10:00:00Z", "last_modified": "2026-11-22T10:00:00Z"}
    file = {**model, **dates, "name": "over-there.txt", "path": "over-there.txt", "type": "file", "size": 3}
    tidy_lab.page.route(
        re.compile(r"/jupyter/api/contents"),
        lambda route: route.fulfill(json={**model, **dates, "content": [{**file, "content": None}]}),
    )
    session = stage.put(1, Phase.READY)
    tidy_lab.command(tidy_lab.card(session["id"]), "open-files").click()
    files = tidy_lab.page.locator(".jp-ClearML-files")
    expect(files.locator(".jp-DirListing-item", has_text="over-there.txt")).to_be_visible()
    tab, area = files.bounding_box(), files.locator("xpath=..").bounding_box()
    assert tab is not None
    assert area is not None
    assert (tab["width"], tab["height"]) == pytest.approx((area["width"], area["height"]), abs=4)
    tidy_lab.page.unroute_all()


def test_log(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.STARTING)
    tidy_lab.command(tidy_lab.card(session["id"]), "show-log").click()
    log = tidy_lab.page.get_by_role("log")
    expect(log).to_contain_text("No matching distribution found")
    expect(tidy_lab.page.get_by_role("checkbox", name="Follow")).to_be_checked()


def test_running_kernels(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    tidy_lab.card(session["id"]).get_by_role("button", name="More").click()
    tidy_lab.page.get_by_role("menuitem", name="Running Kernels…").click()
    expect(tidy_lab.dialog.locator("tr[data-kernel-id]")).to_contain_text("not connected")
    expect(tidy_lab.dialog.get_by_role("button", name="Connect…")).to_be_visible()


def test_shut_down_asks_and_closes_what_was_open(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    card = tidy_lab.card(session["id"])
    tidy_lab.command(card, "open-jupyter").click()
    expect(tidy_lab.page.locator(".jp-ClearML-page")).to_have_count(1)
    tidy_lab.command(card, "shut-down").click()
    expect(tidy_lab.dialog).to_contain_text("files that are not stored elsewhere are lost")
    tidy_lab.dialog.get_by_role("button", name="Cancel").click()
    assert stage.calls("DELETE", f"sessions/{session['id']}") == []
    tidy_lab.command(card, "shut-down").click()
    tidy_lab.dialog.get_by_role("button", name="Shut Down").click()
    expect(card).to_have_attribute("data-phase", "stopping")
    expect(tidy_lab.page.locator(".jp-ClearML-page")).to_have_count(0)


def test_a_refused_command_is_told(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.SERVICES_UP)
    stage.fail(**{f"POST sessions/{session['id']}/attach": WrongPhase("An ended session cannot be attached")})
    tidy_lab.command(tidy_lab.card(session["id"]), "attach").click()
    expect(tidy_lab.page.get_by_role("alert").filter(has_text="An ended session")).to_be_visible()


def test_clean_up_lists_what_it_would_delete(tidy_lab: LabPage, stage: Stage) -> None:
    kept, gone = stage.put(1, Phase.ENDED, name="Keep me"), stage.put(2, Phase.ENDED, name="Old one")
    tidy_lab.panel.get_by_role("button", name="More", exact=True).click()
    tidy_lab.page.get_by_role("menuitem", name="Clean Up Ended ClearML Sessions…").click()
    expect(tidy_lab.dialog.get_by_role("listitem")).to_have_count(2)
    expect(tidy_lab.dialog.get_by_label("All")).to_be_checked()
    tidy_lab.dialog.get_by_label("Keep me").uncheck()
    tidy_lab.dialog.get_by_role("button", name="Delete Chosen").click()
    expect(tidy_lab.page.get_by_text("1 session deleted")).to_be_visible()
    assert len(stage.calls("DELETE", f"sessions/{gone['id']}")) == 1
    assert stage.calls("DELETE", f"sessions/{kept['id']}") == []


def test_the_doors(tidy_lab: LabPage, stage: Stage, request: pytest.FixtureRequest) -> None:
    stage.status("unconfigured")
    tidy_lab.refresh()
    screenshot(tidy_lab.page, request, "doors")
    expect(tidy_lab.panel.get_by_role("button", name="New Session")).to_be_disabled()
    tidy_lab.panel.get_by_label("Paste what ClearML shows").fill(
        "api {\n  api_server: https://api.clearml.example.org\n  credentials {\n"
        '    "access_key" = "KEY"\n    "secret_key" = "SECRET"\n  }\n}'
    )
    expect(tidy_lab.panel.get_by_text("3 values found")).to_be_visible()
    expect(tidy_lab.panel.get_by_label("Access key")).to_have_value("KEY")
    tidy_lab.panel.get_by_role("button", name="Connect", exact=True).click()
    expect(tidy_lab.panel.get_by_text("No session runs at the moment.")).to_be_visible()
    assert stage.calls("POST", "configure")[0]["secret_key"] == "SECRET"


def test_bad_credentials_keep_what_was_typed(tidy_lab: LabPage, stage: Stage) -> None:
    stage.status("unconfigured")
    stage.fail(**{"POST configure": BadCredentials("The server does not know this access key")})
    tidy_lab.refresh()
    # Where a value is missing, the fields come into sight.
    tidy_lab.panel.get_by_role("button", name="Connect", exact=True).click()
    expect(tidy_lab.panel.get_by_label("API server")).to_be_focused()
    for label, value in (("API server", "https://a.example"), ("Access key", "K"), ("Secret key", "S")):
        tidy_lab.panel.get_by_label(label).fill(value)
    tidy_lab.panel.get_by_label("Secret key").press("Enter")
    expect(tidy_lab.panel.get_by_role("alert")).to_contain_text("does not know this access key")
    expect(tidy_lab.panel.get_by_role("alert")).to_contain_text("Create new credentials")
    expect(tidy_lab.panel.get_by_label("Secret key")).to_have_value("S")


def test_from_this_machine_to_a_server(tidy_lab: LabPage, stage: Stage) -> None:
    stage.status("local")
    stage.fail(**{"POST configure": BadCredentials("The server does not know this access key")})
    tidy_lab.refresh()
    more = tidy_lab.panel.get_by_role("button", name="More", exact=True)
    item = tidy_lab.page.get_by_role("menuitem", name="Connect to a ClearML Server…")
    where = tidy_lab.panel.locator(".jp-ClearML-where")
    expect(where).to_contain_text("this machine")
    more.click()
    item.click()
    dialog = tidy_lab.dialog
    expect(dialog.get_by_label("Paste what ClearML shows")).to_be_focused()
    dialog.get_by_text("Or type the values").click()
    for label, value in (("API server", "https://a.example"), ("Access key", "K"), ("Secret key", "S")):
        dialog.get_by_label(label).fill(value)
    dialog.get_by_label("Secret key").press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("does not know this access key")
    expect(where).to_contain_text("this machine")
    stage.fail()
    dialog.get_by_label("Secret key").press("Enter")
    expect(dialog).to_have_count(0)
    expect(where).to_contain_text("api.clearml.example.org")
    more.click()
    expect(tidy_lab.page.get_by_role("menuitem", name="Clean Up")).to_be_visible()
    expect(item).to_have_count(0)
    tidy_lab.page.keyboard.press("Escape")


def test_try_it_on_this_machine(tidy_lab: LabPage, stage: Stage) -> None:
    stage.status("unconfigured")
    stage.delay(**{"POST configure": 1.0})
    tidy_lab.refresh()
    tidy_lab.panel.get_by_role("button", name="Try It on This Machine").click()
    expect(tidy_lab.panel.get_by_role("button", name="Starting…")).to_be_disabled()
    expect(tidy_lab.panel.get_by_role("button", name="Cancel")).to_be_visible()
    expect(tidy_lab.panel.locator(".jp-ClearML-where")).to_contain_text("this machine")
    assert stage.calls("POST", "configure") == [{"mode": "local"}]


def test_an_unreachable_server_is_told_and_tried_again(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    stage.status("server", ClearMLUnreachable("The ClearML server does not answer"))
    tidy_lab.refresh()
    alert = tidy_lab.panel.get_by_role("alert")
    expect(alert).to_contain_text("The ClearML server does not answer")
    expect(alert).to_contain_text("Check the network")
    expect(tidy_lab.card(session["id"])).to_be_visible()
    stage.status()
    alert.get_by_role("button", name="Try Again").click()
    expect(alert).to_be_hidden()


def test_a_jupyter_server_without_our_half_is_told(lab: LabPage, stage: Stage) -> None:
    lab.page.route("**/clearml-session/api/**", lambda route: route.fulfill(status=404, body="no"))
    lab.open()
    expect(lab.panel.get_by_role("alert")).to_contain_text("jupyter server extension list")


def test_nothing_waits_for_a_frozen_server_half(lab: LabPage, stage: Stage) -> None:
    stage.delay(**{"GET status": 20.0})
    lab.open()
    expect(lab.panel.get_by_text("Asking ClearML for your sessions…")).to_be_visible()
    expect(
        lab.page.locator(".jp-LauncherCard[title='Start a session on a remote ClearML machine']")
    ).to_be_visible()


# -- the launch dialog -------------------------------------------------------------------------------------


def test_a_launch_from_the_launcher_tile(lab: LabPage, stage: Stage, request: pytest.FixtureRequest) -> None:
    lab.open()
    lab.page.locator(TILE).click()
    queue = lab.dialog.get_by_label("Queue")
    expect(queue).to_be_focused()
    assert queue.locator("option").all_inner_texts() == [
        "Choose for me",
        "default — 1 agent idle",
        "a100 — 2 agents, busy, 2 waiting",
        "services — no agent",
    ]
    screenshot(lab.page, request, "dialog")
    queue.select_option("a100")
    lab.dialog.get_by_label("Name", exact=True).fill("Tuning")
    lab.dialog.get_by_label("Python packages").fill("torch\ntimm")
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.dialog).to_be_hidden()
    expect(lab.panel.get_by_role("article", name=re.compile("Tuning"))).to_be_visible()
    assert stage.calls("POST", "sessions") == [
        {"queue": "a100", "name": "Tuning", "packages": ["torch", "timm"]}
    ]


def test_every_option_has_a_labelled_control(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="New Session").click()
    for group in ("environment", "workspace", "network", "advanced"):
        summary = tidy_lab.dialog.locator(f"[data-group='{group}'] > summary")
        expect(tidy_lab.dialog.locator(f"[data-group='{group}'] .jp-ClearML-field").first).to_be_hidden()
        summary.click()
    unlabelled = tidy_lab.dialog.evaluate(
        """dialog => [...dialog.querySelectorAll('[data-field] :is(input, textarea, select)')]
            .filter(control => control.labels.length === 0 && !control.closest('fieldset'))
            .map(control => control.id)"""
    )
    assert unlabelled == []
    assert tidy_lab.dialog.locator("[data-field]").count() >= 30


def test_a_complaint_stands_at_its_field_and_nothing_typed_is_lost(lab: LabPage, stage: Stage) -> None:
    stage.fail(**{"POST sessions": InvalidInput("'10 GB' is not a port", field="remote_ssh_port")})
    lab.open()
    lab.panel.get_by_role("button", name="New Session").click()
    lab.dialog.get_by_label("Name", exact=True).fill("Precious")
    lab.dialog.get_by_role("button", name="Launch").click()
    field = lab.dialog.locator("[data-field='remote_ssh_port']")
    expect(field.get_by_role("alert")).to_have_text("'10 GB' is not a port")
    expect(field.get_by_role("textbox")).to_be_focused()
    lab.page.keyboard.press("Escape")
    expect(lab.dialog).to_be_hidden()
    lab.panel.get_by_role("button", name="New Session").click()
    expect(lab.dialog.get_by_label("Name", exact=True)).to_have_value("Precious")
    stage.fail()
    lab.dialog.get_by_role("button", name="Launch").click()
    expect(lab.panel.get_by_role("article", name=re.compile("Precious"))).to_be_visible()


def test_presets_are_chosen_saved_and_deleted(lab: LabPage, stage: Stage) -> None:
    stage.presets({"big": {"queue": "a100", "packages": ["torch"]}}, last={"queue": "default"})
    lab.open()
    lab.panel.get_by_role("button", name="New Session").click()
    begin = lab.dialog.get_by_label("Begin with")
    expect(begin.locator("option:checked")).to_have_text("Last launch")
    expect(lab.dialog.get_by_label("Queue")).to_have_value("default")
    begin.select_option("big")
    expect(lab.dialog.get_by_label("Python packages")).to_have_value("torch")
    lab.dialog.get_by_label("Python packages").fill("torch\njax")
    lab.dialog.get_by_role("button", name="Save as Preset…").click()
    name = lab.dialog.get_by_label("Name of the preset")
    name.fill("bigger")
    name.press("Enter")
    expect(begin.locator("option:checked")).to_have_text("bigger")
    assert stage.calls("PUT", "presets/bigger") == [{"queue": "a100", "packages": ["torch", "jax"]}]
    lab.dialog.get_by_role("button", name="Delete Preset").click()
    expect(begin.locator("option", has_text="bigger")).to_have_count(0)
    expect(lab.dialog.get_by_label("Queue")).to_have_value("a100")


def test_a_task_is_found_and_debugged(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="Debug a Task…").click()
    expect(tidy_lab.dialog.get_by_role("radio")).to_have_count(3)
    tidy_lab.dialog.get_by_role("searchbox").fill("train")
    expect(tidy_lab.dialog.get_by_role("radio")).to_have_count(2)
    tidy_lab.dialog.get_by_label("train vit").check()
    tidy_lab.dialog.get_by_role("button", name="Continue").click()
    expect(tidy_lab.dialog.get_by_label("Debug a Task")).to_have_value(scenery.task_id(201))
    tidy_lab.dialog.get_by_role("button", name="Launch").click()
    expect(tidy_lab.dialog).to_be_hidden()
    assert stage.calls("POST", "sessions") == [{"debugging_session": scenery.task_id(201)}]


# -- the palette -------------------------------------------------------------------------------------------


def test_the_palette_has_the_commands(tidy_lab: LabPage, stage: Stage) -> None:
    stage.put(1, Phase.READY)
    tidy_lab.page.keyboard.press("Control+Shift+C")
    tidy_lab.page.keyboard.type("clearml")
    palette = tidy_lab.page.locator(".lm-CommandPalette")
    for label in (
        "New ClearML Session…",
        "Attach to a ClearML Session by Id…",
        "Debug a ClearML Task…",
        "Clean Up Ended ClearML Sessions…",
        "ClearML Session: Open JupyterLab",
        "ClearML Session: Terminal",
        "ClearML Session: Detach",
    ):
        whole = re.compile(f"^{re.escape(label)}$")
        expect(palette.locator(".lm-CommandPalette-itemLabel").filter(has_text=whole)).to_be_visible()
    tidy_lab.page.keyboard.press("Escape")
