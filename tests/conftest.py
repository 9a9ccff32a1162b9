"""Fixtures shared by all tests, and the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler.loadfile import LoadFileScheduling
    from xdist.workermanage import WorkerController

pytest_plugins = ["pytest_jupyter.jupyter_server", "tests.local_fixture"]

_BROWSER = "tests/browser"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the browser's tests last: Playwright's event loop stays in the thread, and no other fits beside it.

    Where several processes share the work, one of them does nothing else (below): then they come first, and the
    other slow tests after them, so that the short ones fill the end.
    """
    if not hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.nodeid.startswith(_BROWSER))
        return
    items.sort(key=lambda item: (not item.nodeid.startswith(_BROWSER), "integration" not in item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Keep the tests of a file together, and the browser's all in one process of their own."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _BROWSER if nodeid.startswith(_BROWSER) else str(super()._split_scope(nodeid))

        def _assign_work_unit(self, node: WorkerController) -> None:
            super()._assign_work_unit(node)
            if _BROWSER in self.assigned_work[node]:
                node.shutdown()  # after these tests

    config.option.loadscopereorder = False
    return Scheduling(config, log)
