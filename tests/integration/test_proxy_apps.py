"""Real applications behind the proxy, in a real browser: `make test-notebook` and `make test-vscode` install them.

Too slow for every run: there a small service of the suite stands in for VS Code, and pages of the same shape for
Notebook and nbclassic (test_proxy_headers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from ..proxy_parts import REMOTE_TOKEN
from .test_proxy_jupyter import chromium_page, proxied, proxied_lab

pytestmark = pytest.mark.integration

CODE_SERVER = os.environ.get("CLEARML_SESSION_CODE_SERVER", "")
NOTEBOOK = os.environ.get("CLEARML_SESSION_NOTEBOOK", "")
"""The Python that has them."""

BOOK = {
    "cells": [
        {
            "cell_type": "code",
            "id": "a",
            "source": "import os; print(os.environ['WHERE'], 6 * 7)",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


async def until(page: Any, condition: str) -> None:
    await page.wait_for_function(condition, timeout=60_000)


@pytest.mark.skipif(not NOTEBOOK, reason="make test-notebook")
async def test_notebook_and_nbclassic(jp_serverapp: Any, jp_fetch: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with proxied_lab(jp_serverapp, home, NOTEBOOK) as path, chromium_page() as page:
        (home / "root" / "book.ipynb").write_text(json.dumps(BOOK))
        base = f"http://127.0.0.1:{jp_serverapp.port}{path}"
        strays: list[str] = []
        page.on(
            "request", lambda request: None if request.url.startswith(base) else strays.append(request.url)
        )

        await page.goto(f"{base}tree?token={jp_serverapp.identity_provider.token}")
        await page.wait_for_selector(".jp-DirListing-item:has-text('book.ipynb')", timeout=60_000)
        assert REMOTE_TOKEN not in await page.content()

        await page.goto(f"{base}notebooks/book.ipynb")
        await page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
        await page.locator(".jp-Notebook .cm-content").first.click()
        await page.keyboard.press("Shift+Enter")
        await page.wait_for_selector(".jp-OutputArea-output:has-text('over there 42')", timeout=60_000)
        assert REMOTE_TOKEN not in await page.content()

        await page.goto(f"{base}nbclassic/tree")
        link = page.locator("#notebook_list a.item_link", has_text="book.ipynb")
        await link.wait_for(timeout=60_000)
        assert REMOTE_TOKEN not in await page.content()
        await page.goto(await link.evaluate("link => link.href"))
        await until(page, "window.Jupyter?.notebook?.kernel?.is_connected() === true")
        await page.evaluate("Jupyter.notebook.clear_all_output(); Jupyter.notebook.select(0)")
        await page.keyboard.press("Shift+Enter")
        await page.wait_for_selector(".output_text:has-text('over there 42')", timeout=60_000)
        await page.evaluate("Jupyter.notebook.save_checkpoint()")
        await until(page, "!Jupyter.notebook.dirty")
        assert REMOTE_TOKEN not in await page.content()
        assert "over there 42" in (home / "root" / "book.ipynb").read_text()

        await page.goto(f"{base}nbclassic/edit/book.ipynb")
        await page.wait_for_selector(".CodeMirror-line:has-text('WHERE')", timeout=60_000)
        assert [url for url in strays if not url.startswith(("data:", "blob:"))] == []


@contextlib.asynccontextmanager
async def code_server(home: Path) -> AsyncIterator[int]:
    """Run code-server as the remote script does; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHELL": "/bin/sh",
    }
    process = await asyncio.create_subprocess_exec(
        CODE_SERVER,
        *("--auth", "none", "--bind-addr", f"127.0.0.1:{port}", *options),
        env=environment,
        cwd=home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        said = b""
        while b"HTTP server listening" not in said:
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            assert line, said.decode()
            said += line
        drain = asyncio.create_task(process.stdout.read())
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its terminals' host outlives it otherwise
        await process.wait()
    await drain


@pytest.mark.skipif(not CODE_SERVER, reason="make test-vscode")
async def test_vscode(jp_serverapp: Any, jp_fetch: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "hello.txt").write_text("hello from over there")
    (work / "read.md").write_text("# A title over there")
    async with (
        code_server(tmp_path) as port,
        proxied(jp_serverapp, {"vscode": port}) as path,
        chromium_page() as page,
    ):
        origin = f"http://127.0.0.1:{jp_serverapp.port}"

        async def only_loopback(route: Any) -> None:
            await (route.continue_() if route.request.url.startswith(origin) else route.abort())

        await page.route("http*://**", only_loopback)  # its gallery of extensions
        strays: list[str] = []

        def note(request: Any) -> None:
            # It decodes the path that it is under; that is led back (`SpellingHandler`).
            url = unquote(request.url)
            if url.startswith(origin) and not url.startswith(unquote(f"{origin}{path}")):
                strays.append(request.url)

        page.on("request", note)
        token = jp_serverapp.identity_provider.token
        await page.goto(f"{origin}{path}vscode/?folder={work}&token={token}")
        files = page.locator(".explorer-folders-view .monaco-list-row")
        await files.filter(has_text="hello.txt").dblclick(timeout=60_000)
        await page.wait_for_selector(".view-line:has-text('hello from over there')", timeout=60_000)

        await page.keyboard.press("Control+`")
        await page.locator(".terminal .xterm-screen").click(timeout=60_000)
        await page.keyboard.type("echo typed-$((6*7)) > typed.txt\n")
        await files.filter(has_text="typed.txt").wait_for(timeout=60_000)
        assert (work / "typed.txt").read_text() == "typed-42\n"

        # A preview is a page in a page, served by a service worker below the proxied path.
        await files.filter(has_text="read.md").dblclick()
        await page.wait_for_selector(".view-line:has-text('A title over there')", timeout=60_000)
        await page.keyboard.press("Control+Shift+v")
        preview = page.frame_locator("iframe.webview.ready").frame_locator("#active-frame")
        await preview.locator("h1", has_text="A title over there").wait_for(timeout=60_000)
        assert strays == []
