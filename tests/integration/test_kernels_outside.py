"""Remote kernels in other programs: papermill, nbclient, jupyter console, Jupyter's own kernel test suite."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ..kernel_fixture import RemoteMachine, machine
from ..kernel_server_fixture import NAME, app, attached

pytestmark = pytest.mark.integration
__all__ = ["app", "machine"]

KERNEL_TEST = f'''
import unittest
import jupyter_kernel_test

class RemoteKernelTests(jupyter_kernel_test.KernelTests):
    kernel_name = "{NAME}"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{{"text": "zi", "matches": {{"zip"}}}}]
    complete_code_samples = ["1", "print('hello')"]
    incomplete_code_samples = ["for i in range(3):"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result = [{{"code": "6*7", "result": "42"}}]
    code_display_data = [
        {{"code": "from IPython.display import HTML, display; display(HTML('<b>b</b>'))", "mime": "text/html"}}
    ]
    code_history_pattern = "1?2*"
    # With IPython 9 the suite's "range" and "search" fail on a local kernel just the same.
    supported_history_operations = ("tail",)
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    support_iopub_welcome = True

unittest.main()
'''


def outside_env(app: Any) -> dict[str, str]:
    """The environment with the one line that the documentation tells."""
    return {**os.environ, "JUPYTER_PATH": f"{app.runtime_dir}/clearml-session/current"}


async def run_outside(app: Any, *command: str, cwd: Path) -> str:
    """Run a Python program in a process of its own; return what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=cwd,
        env=outside_env(app),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def notebook(path: Path) -> None:
    """Write a notebook of three cells for the remote kernel."""
    cells = [
        {"source": "n = 3", "metadata": {"tags": ["parameters"]}},
        {"source": "import os; print(os.environ['HOME'])", "metadata": {}},
        {"source": "n * 2", "metadata": {}},
    ]
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
    book = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": NAME, "display_name": NAME, "language": "python"}},
        "cells": [{**code, "id": f"cell{number}", **cell} for number, cell in enumerate(cells)],
    }
    path.write_text(json.dumps(book))


def outputs(path: Path) -> list[Any]:
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]


async def test_papermill(machine: RemoteMachine, app: Any, tmp_path: Path) -> None:
    notebook(tmp_path / "in.ipynb")
    async with attached(machine, app) as setup:
        await run_outside(app, "-m", "papermill", "in.ipynb", "out.ipynb", "-p", "n", "21", cwd=tmp_path)
        assert await setup.kernels.list_kernels(setup.session_id) == [], "it leaves no kernel behind"
    *_, home, result = outputs(tmp_path / "out.ipynb")
    assert "".join(home[0]["text"]).strip() == str(machine.home)
    assert result[0]["data"]["text/plain"] == ["42"]


async def test_nbclient(machine: RemoteMachine, app: Any, tmp_path: Path) -> None:
    notebook(tmp_path / "in.ipynb")
    async with attached(machine, app):
        await run_outside(app, "-m", "jupyter", "execute", "--inplace", "in.ipynb", cwd=tmp_path)
    assert outputs(tmp_path / "in.ipynb")[-1][0]["data"]["text/plain"] == ["6"]


async def test_jupyters_kernel_test_suite(machine: RemoteMachine, app: Any, tmp_path: Path) -> None:
    (tmp_path / "suite.py").write_text(KERNEL_TEST)
    async with attached(machine, app):
        output = await run_outside(app, "suite.py", "-v", cwd=tmp_path)
    assert output.splitlines()[-1].startswith("OK")


async def test_a_console_from_outside(machine: RemoteMachine, app: Any, tmp_path: Path) -> None:
    def talk() -> None:
        command = ["-m", "jupyter_console", "--kernel", NAME, "--simple-prompt", "--no-confirm-exit"]
        env = {**outside_env(app), "TERM": "dumb"}
        console = pexpect.spawn(sys.executable, command, env=env, timeout=60, encoding="utf-8")
        console.expect("In")
        console.sendline("import os; print('home is', os.environ['HOME'])")
        console.expect(f"home is {machine.home}")
        console.sendline("answer = input('who? ')")
        console.expect("who")
        console.sendline("me")
        console.sendline("print('it was', answer)")
        console.expect("it was me")
        console.sendline("exit")
        console.expect(pexpect.EOF)

    async with attached(machine, app):
        await asyncio.to_thread(talk)
