"""How much later does JupyterLab's server answer with the extension than without? Interleaved runs, medians.

Each run is a new process with empty Jupyter folders, from its start until ``/api/status`` answers. Prints a
Markdown table; says too whether `clearml` or an SSH library was imported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CHILD = """
import sys
from jupyterlab.labapp import LabApp

enabled = sys.argv.pop(1) == "True"
name = "jupyterlab_clearml_session"
arguments = ["--ServerApp.port=0", "--ServerApp.ip=127.0.0.1", "--ServerApp.open_browser=False"]
arguments += ["--LabApp.open_browser=False", "--ServerApp.allow_root=True", "--ServerApp.log_level=ERROR"]
arguments += [f"--ServerApp.jpserver_extensions={name}={enabled}"]
server = LabApp.initialize_server(arguments)

def ready():
    heavy = [module for module in ("clearml", "asyncssh") if module in sys.modules]
    assert (name + ".extension" in sys.modules) == enabled
    print("up", *heavy, flush=True)
    server.stop()

server.io_loop.add_callback(server.io_loop.call_later, 0, ready)
server.start()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[bool, list[float]] = {False: [], True: []}
    heavy: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            for enabled in (False, True):
                taken, imported = start(Path(folder), enabled)
                seconds[enabled].append(taken)
                heavy.update(imported if enabled else ())
    # The first round fills caches of the file system and of bytecode.
    without, with_it = (statistics.median(seconds[enabled][1:]) for enabled in (False, True))
    print("| server start | without | with | difference | ratio |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| seconds, median of {rounds} | {without:.2f} | {with_it:.2f} | {with_it - without:+.2f} |", end=""
    )
    print(f" {with_it / without:.2f} |")
    print(f"\nImported at start: {', '.join(sorted(heavy)) or 'neither clearml nor asyncssh'}.")


def start(folder: Path, enabled: bool) -> tuple[float, list[str]]:
    """Start one server; return the seconds until its loop ran, and which heavy modules it had imported."""
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(enabled)],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        taken = time.perf_counter() - began
        process.communicate(timeout=60)
    if words[:1] != ["up"]:
        raise SystemExit(f"the server did not start (extension {'on' if enabled else 'off'})")
    return taken, words[1:]


if __name__ == "__main__":
    main()
