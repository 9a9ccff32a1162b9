"""A notebook with remote cells in a real browser: tables, a button of the lab, and widgets of the remote kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integration.test_magic_run import PRELUDE
from tests.lab_fixture import LabServer

pytestmark = [pytest.mark.browser, pytest.mark.integration]

INTERACT = """%%clearml_session run
from ipywidgets import interact
@interact(x=(0, 10))
def square(x=3):
    print("square", x * x)
"""
CELLS = [PRELUDE, "%clearml_session list", "%clearml_session open", INTERACT, "%%clearml_session run\n1/0"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, lab_config: dict[str, object]) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("magic-page"), config=lab_config)
    (server.folder / "notebooks").mkdir()
    empty: dict[str, object] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**empty, "id": f"c{number}", "source": code} for number, code in enumerate(CELLS)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}
    (server.folder / "notebooks" / "n.ipynb").write_text(json.dumps(document))
    yield server.start()
    server.stop()


@pytest.fixture
def page(browser: Browser, lab: LabServer) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(f"{lab.url}lab/tree/n.ipynb?token={lab.token}")
    page.wait_for_selector('#jp-main-statusbar:has-text("| Idle")', timeout=60_000)
    page.locator('[data-jp-item-name="restart-and-run"]').click()
    page.click(".jp-Dialog .jp-mod-accept")
    page.get_by_text("division by zero").first.wait_for(timeout=60_000)
    yield page
    page.close()


def test_remote_cells_in_jupyterlab(page: Page) -> None:
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    expect(cells.nth(1).get_by_role("link", name="far away")).to_be_visible()
    expect(cells.nth(1).get_by_role("columnheader", name="phase")).to_be_visible()
    button = cells.nth(2).get_by_role("button", name="Open jupyter of far away")
    expect(button).to_have_attribute("data-commandlinker-command", "clearml-session:open-jupyter")
    expect(cells.nth(4).get_by_text("RemoteCellError: ZeroDivisionError: division by zero")).to_be_visible()

    widget = cells.nth(3)
    captured = widget.locator(".widget-output")
    expect(captured).to_have_text("square 9")
    widget.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    expect(captured).to_have_text("square 16")
