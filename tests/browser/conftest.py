"""A Chromium for the browser tests, and a JupyterLab with the fake server half.

Chromium is looked for in ``CLEARML_SESSION_CHROMIUM``, on PATH, and among Playwright's own downloads. Where
there is none, these tests are left out with a word on how to get one; with
``CLEARML_SESSION_REQUIRE_BROWSER=1`` (as in CI) that is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Playwright as AsyncPlaywright
from playwright.sync_api import Browser, BrowserContext, Page, Playwright

from tests.browser.lab_page import LabPage, Stage
from tests.lab_fixture import LabServer

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
HOW_TO = (
    "no Chromium found; get one with 'apt-get install chromium' or 'playwright install chromium', "
    "or name yours in CLEARML_SESSION_CHROMIUM"
)
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": False,
    },
}


def find_chromium(playwright: Playwright | AsyncPlaywright) -> str | None:
    """Return the path of a Chromium, if there is one."""
    named = os.environ.get("CLEARML_SESSION_CHROMIUM")
    if named:
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    downloaded = Path(playwright.chromium.executable_path)
    return str(downloaded) if downloaded.exists() else None


@pytest.fixture(autouse=True)
def jp_asyncio_loop() -> None:
    """Take the place of pytest-jupyter's: these tests run on Playwright's event loop."""


@pytest.fixture(autouse=True)
def jp_server_cleanup() -> None:
    """Take the place of pytest-jupyter's, which needs that loop."""


@pytest.fixture(scope="session")
def browser_type_launch_args(playwright: Playwright) -> dict[str, Any]:
    chromium = find_chromium(playwright)
    if chromium is None:
        if os.environ.get("CLEARML_SESSION_REQUIRE_BROWSER"):
            pytest.fail(HOW_TO)
        pytest.skip(HOW_TO)
    return {"executable_path": chromium, "args": ARGUMENTS}


@pytest.fixture(scope="session")
def browser_context_args() -> dict[str, Any]:
    return {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "reduced_motion": "reduce"}


@pytest.fixture(scope="session")
def lab_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Traits for a JupyterLab without pop-ups of its own."""
    folder = tmp_path_factory.mktemp("lab-app-settings")
    (folder / "overrides.json").write_text(json.dumps(SETTINGS))
    return {"LabApp.app_settings_dir": folder}


@pytest.fixture(scope="session")
def fake_server(
    tmp_path_factory: pytest.TempPathFactory, lab_config: dict[str, object]
) -> Iterator[LabServer]:
    """JupyterLab with the real front end and the fake server half."""
    extensions = {"jupyterlab_clearml_session": False, "tests.browser.fake": True}
    server = LabServer(
        tmp_path_factory.mktemp("fake"),
        environment={"PYTHONPATH": str(ROOT)},
        config={
            **lab_config,
            "ServerApp.jpserver_extensions": extensions,
            "LabApp.expose_app_in_browser": True,  # for `LabPage.tidy`
        },
    ).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lab_context(browser: Browser, browser_context_args: dict[str, Any]) -> Iterator[BrowserContext]:
    """One browser profile for all pages of the fake: JupyterLab's scripts are fetched and compiled once."""
    context = browser.new_context(**browser_context_args)
    yield context
    context.close()


@pytest.fixture
def stage(fake_server: LabServer) -> Stage:
    """The fake's stage, empty."""
    stage = Stage(fake_server)
    stage.reset()
    return stage


@pytest.fixture
def lab(
    lab_context: BrowserContext, fake_server: LabServer, stage: Stage, request: pytest.FixtureRequest
) -> Iterator[LabPage]:
    """A page of its own that is not open yet: set the stage first, then `lab.open()`."""
    page = lab_context.new_page()
    yield LabPage(page, fake_server)
    keep_picture(page, request)
    page.close()


@pytest.fixture(scope="session")
def common_lab(lab_context: BrowserContext, fake_server: LabServer) -> LabPage:
    """A page that stays open from test to test; ask for `tidy_lab`."""
    return LabPage(lab_context.new_page(), fake_server).open()


@pytest.fixture
def tidy_lab(common_lab: LabPage, stage: Stage, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    """The page that stays open, with the panel in sight and nothing else: a second where `lab` takes four."""
    common_lab.tidy()
    yield common_lab
    keep_picture(common_lab.page, request)


def keep_picture(page: Page, request: pytest.FixtureRequest) -> None:
    """Keep a picture of a failed test's page where `pytest --output` says."""
    report = getattr(request.node, "rep_call", None)
    if report is not None and report.failed:
        name = re.sub(r"\W+", "-", request.node.name)
        page.screenshot(path=Path(request.config.getoption("--output"), f"{name}.png"))
