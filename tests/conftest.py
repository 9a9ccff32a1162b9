"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytest_jupyter.jupyter_server", "tests.local_fixture"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the browser's tests last: Playwright's event loop stays in the thread, and no other fits beside it."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
