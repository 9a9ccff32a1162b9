"""Who can use the panel: with a screen reader (axe-core), by keyboard alone, in a narrow place, right to left."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from jupyterlab_clearml_session.models import Phase
from tests.browser.conftest import ROOT
from tests.browser.lab_page import LabPage, Stage

pytestmark = pytest.mark.browser

AXE = ROOT / "labextension" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LONG = "a-session-whose-name-has-no-space-at-all-and-that-nobody-would-call-short-2026"


def complaints(place: Locator) -> list[Any]:
    """What axe-core says against a place: the rule and where, contrast (level AA) included."""
    if not place.page.evaluate("'axe' in window"):
        place.page.add_script_tag(path=AXE)
    found: list[Any] = place.evaluate(
        """async (place, values) => {
            const {violations} = await axe.run(place, {runOnly: {type: 'tag', values}});
            return violations.map(({id, nodes}) => [id, ...nodes.map(node => node.html.slice(0, 160))]);
        }""",
        RULES,
    )
    return found


def sticking_out(panel: Locator) -> list[str]:
    """What can be seen of the panel, but lies outside of it to the left or right."""
    found: list[str] = panel.evaluate(
        """panel => {
            const {left, right} = panel.getBoundingClientRect();
            return [...panel.querySelectorAll('*')].filter(node => {
                const box = node.getBoundingClientRect();
                const hidden = !node.checkVisibility() || node.closest('pre, .jp-ClearML-hidden');
                return !hidden && box.width > 0 && (box.left < left - 1 || box.right > right + 1);
            }).map(node => node.outerHTML.slice(0, 120));
        }"""
    )
    return found


# -- screen readers, contrast ------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_nothing_stands_against_the_panel_and_its_dialogs(lab: LabPage, stage: Stage, theme: str) -> None:
    for number, phase in enumerate(Phase, 1):
        stage.put(number, phase)
    ready = stage.put(20, Phase.READY)
    lab.open(theme=theme)
    lab.panel.get_by_role("button", name="Ended").click()
    expect(lab.panel.get_by_role("article")).to_have_count(len(Phase) + 1)
    card = lab.card(ready["id"])
    card.get_by_text("Details").click()
    expect(card.get_by_role("meter", name="GPU 0")).to_be_visible()
    assert complaints(lab.panel) == []

    dialogs = {
        "Open Port…": "tensorboard",
        "SSH Command…": "ssh -p",
        "Forwarded Ports…": "SSH",
        "Running Kernels…": "python3",
    }
    for item, shows in dialogs.items():
        lab.menu(card, item)
        expect(lab.dialog).to_contain_text(shows)
        assert complaints(lab.dialog) == [], item
        lab.page.keyboard.press("Escape")
        expect(lab.dialog).to_have_count(0)
    for item, shows in {"Attach to": "32 characters", "Debug": "train vit", "Clean Up": "chosen"}.items():
        lab.panel.get_by_role("button", name="More", exact=True).click()
        lab.page.get_by_role("menuitem", name=item).click()
        expect(lab.dialog).to_contain_text(shows)
        assert complaints(lab.dialog) == [], item
        lab.page.keyboard.press("Escape")
        expect(lab.dialog).to_have_count(0)
    stage.status("local")
    lab.refresh()
    expect(lab.panel.locator(".jp-ClearML-where")).to_contain_text("this machine")
    lab.panel.get_by_role("button", name="More", exact=True).click()
    lab.page.get_by_role("menuitem", name="Connect to a ClearML Server").click()
    lab.dialog.get_by_text("Or type the values").click()
    expect(lab.dialog.get_by_label("Secret key")).to_be_visible()
    assert complaints(lab.dialog) == []
    lab.page.keyboard.press("Escape")
    expect(lab.dialog).to_have_count(0)

    lab.panel.get_by_role("button", name="New Session").click()
    for group in ("environment", "workspace", "network", "advanced"):
        lab.dialog.locator(f"[data-group='{group}'] > summary").click()
    expect(lab.dialog.get_by_label("Idle timeout")).to_be_visible()
    assert complaints(lab.dialog) == []


def test_nothing_stands_against_the_doors(tidy_lab: LabPage, stage: Stage) -> None:
    stage.status("unconfigured")
    tidy_lab.refresh()
    tidy_lab.panel.get_by_text("Or type the values").click()
    expect(tidy_lab.panel.get_by_label("Secret key")).to_be_visible()
    assert complaints(tidy_lab.panel) == []


def test_progress_is_seen_where_the_system_s_few_colours_replace_all_others(
    tidy_lab: LabPage, stage: Stage
) -> None:
    session = stage.put(1, Phase.STARTING)
    bar = tidy_lab.card(session["id"]).get_by_role("progressbar")
    tidy_lab.page.emulate_media(forced_colors="active")
    try:
        expect(bar).to_be_visible()
        done, all_of_it = bar.evaluate(
            "bar => [bar.firstElementChild, bar].map(node => getComputedStyle(node).backgroundColor)"
        )
        assert done != all_of_it
    finally:
        tidy_lab.page.emulate_media(forced_colors="none")


# -- narrow places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_all_of_it_is_seen_in_a_narrow_panel(tidy_lab: LabPage, stage: Stage, direction: str) -> None:
    for number, phase in enumerate((Phase.READY, Phase.RECONNECTING, Phase.STARTING), 1):
        stage.put(number, phase, name=LONG, queue={"id": "q", "name": LONG}, tags=[LONG])
    cards = tidy_lab.panel.get_by_role("article")
    expect(cards).to_have_count(3)
    cards.last.get_by_text("Details").click()
    tidy_lab.page.evaluate("direction => { document.documentElement.dir = direction; }", direction)
    try:
        tidy_lab.panel.evaluate("panel => { panel.style.maxWidth = '240px'; }")
        assert sticking_out(tidy_lab.panel) == []
    finally:
        tidy_lab.panel.evaluate("panel => { panel.style.maxWidth = ''; }")
        tidy_lab.page.evaluate("() => { document.documentElement.dir = ''; }")


def test_a_long_name_makes_no_dialog_wider_than_its_contents(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY, name=LONG.replace("-", "_"))
    card = tidy_lab.card(session["id"])
    content = tidy_lab.dialog.locator(".jp-Dialog-content")
    for item in ("Running Kernels…", "SSH Command…"):
        tidy_lab.menu(card, item)
        body = content.locator(".jp-ClearML-dialog")
        expect(body).to_be_visible()
        around, inside = content.bounding_box(), body.bounding_box()
        assert around is not None
        assert inside is not None
        assert around["width"] - inside["width"] < 60  # the padding
        assert sticking_out(content) == []
        tidy_lab.page.keyboard.press("Escape")
        expect(tidy_lab.dialog).to_have_count(0)
    tidy_lab.command(card, "shut-down").click()
    header = content.locator(".jp-Dialog-header")
    assert header.evaluate("header => header.scrollWidth <= header.clientWidth")
    tidy_lab.page.keyboard.press("Escape")


def test_a_page_in_a_narrow_tab_says_where_its_session_stands(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY, name=LONG)
    tidy_lab.command(tidy_lab.card(session["id"]), "open-jupyter").click()
    page = tidy_lab.page
    toolbar = page.locator(".jp-MainAreaWidget:has(.jp-ClearML-page) > .jp-Toolbar")
    expect(toolbar.get_by_text("Ready")).to_be_visible()
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": 760, "height": size["height"]})
    try:
        stage.put(1, Phase.RECONNECTING, name=LONG)
        expect(toolbar.get_by_text("Reconnecting", exact=True)).to_be_visible()
        expect(toolbar.get_by_role("button", name="Open in a new browser tab")).to_be_visible()
        # Where they had no room, JupyterLab would move them behind a button of three dots: a moment later.
        assert toolbar.evaluate(
            """bar => {
                const items = [...bar.children].filter(item => !item.classList.contains('jp-Toolbar-spacer'));
                return items.reduce((sum, item) => sum + item.clientWidth, 0) < bar.clientWidth;
            }"""
        )
    finally:
        page.set_viewport_size(size)


def test_of_many_sessions_the_list_is_scrolled_and_the_rest_stays_in_sight(
    tidy_lab: LabPage, stage: Stage
) -> None:
    for number in range(1, 31):
        stage.put(number, Phase.READY, name=f"number {number}")
    cards = tidy_lab.panel.get_by_role("article")
    expect(cards).to_have_count(30)
    cards.last.scroll_into_view_if_needed()
    expect(cards.last).to_be_in_viewport()
    expect(tidy_lab.panel.get_by_role("button", name="New Session")).to_be_in_viewport()
    expect(tidy_lab.panel.get_by_role("searchbox")).to_be_in_viewport()


# -- keyboard ----------------------------------------------------------------------------------------------


def test_the_focus_comes_back_after_a_dialog_and_stays_near_what_is_gone(
    tidy_lab: LabPage, stage: Stage
) -> None:
    lab, keyboard = tidy_lab, tidy_lab.page.keyboard
    failed = stage.put(1, Phase.STARTING)
    ready = stage.put(2, Phase.READY)
    more = lab.card(ready["id"]).get_by_role("button", name="More")
    for item in ("Running Kernels…", "Open Port…"):
        lab.menu(lab.card(ready["id"]), item)
        expect(lab.dialog.locator(":focus")).to_have_count(1)
        keyboard.press("Escape")
        expect(more).to_be_focused()

    # The card of the failed session is gone with the button that was pressed.
    expect(lab.card(failed["id"])).to_be_visible()
    stage.put(1, Phase.FAILED)
    lab.command(lab.card(failed["id"]), "dismiss").press("Enter")
    expect(lab.card(failed["id"])).to_have_count(0)
    expect(lab.panel.locator(".jp-ClearML-list")).to_be_focused()

    # Only the button is gone here: the card is still there.
    lab.command(lab.card(ready["id"]), "shut-down").press("Enter")
    lab.dialog.get_by_role("button", name="Shut Down").press("Enter")
    expect(lab.card(ready["id"])).to_have_attribute("data-phase", "stopping")
    expect(lab.card(ready["id"])).to_be_focused()


def test_enter_in_a_text_of_several_lines_is_a_new_line(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="New Session").click()
    packages = tidy_lab.dialog.get_by_label("Python packages")
    packages.focus()
    tidy_lab.page.keyboard.type("torch\ntimm")
    expect(packages).to_have_value("torch\ntimm")
    assert stage.calls("POST", "sessions") == []
    packages.fill("")


def test_with_the_keyboard_alone(tidy_lab: LabPage, stage: Stage) -> None:
    session = stage.put(1, Phase.READY)
    keyboard = tidy_lab.page.keyboard
    tidy_lab.panel.get_by_role("button", name="New Session").focus()
    keyboard.press("Enter")
    expect(tidy_lab.dialog.get_by_role("button", name="Launch")).to_be_enabled()
    expect(tidy_lab.dialog.get_by_label("Queue")).to_be_focused()
    keyboard.press("Tab")
    expect(tidy_lab.dialog.get_by_label("Name")).to_be_focused()
    keyboard.type("Typed")
    expect(tidy_lab.dialog.get_by_label("Name")).to_have_value("Typed")
    keyboard.press("Enter")
    expect(tidy_lab.panel.get_by_role("article", name=re.compile("Typed"))).to_be_visible()

    card = tidy_lab.card(session["id"])
    more = card.get_by_role("button", name="More")
    more.focus()
    keyboard.press("Enter")
    expect(tidy_lab.page.get_by_role("menuitem", name="Log")).to_be_visible()
    keyboard.press("Escape")
    expect(more).to_be_focused()
    keyboard.press("Tab")
    expect(tidy_lab.command(card, "open-jupyter")).to_be_focused()
    keyboard.press("Enter")
    expect(tidy_lab.frame().locator("h1")).to_be_visible()


def test_what_has_the_focus_in_the_launch_dialog_is_seen(tidy_lab: LabPage, stage: Stage) -> None:
    tidy_lab.panel.get_by_role("button", name="New Session").click()
    groups = tidy_lab.dialog.locator("details[data-group]")
    expect(groups).not_to_have_count(0)
    groups.evaluate_all("groups => groups.forEach(group => { group.open = true; })")
    form = tidy_lab.dialog.locator(".jp-ClearML-launchForm")
    controls = form.locator(":is(select, input, textarea, summary, button):visible").count()
    form.locator("select").first.focus()
    covered = []
    for _ in range(controls):
        tidy_lab.page.keyboard.press("Tab")
        covered += tidy_lab.page.evaluate(
            """() => {
                const focused = document.activeElement;
                const {left, top, bottom} = focused.getBoundingClientRect();
                const seen = [top + 3, (top + bottom) / 2, bottom - 3].some(
                    y => focused.contains(document.elementFromPoint(left + 4, y)));
                return seen ? [] : [focused.id || focused.textContent];
            }"""
        )
    assert covered == []
