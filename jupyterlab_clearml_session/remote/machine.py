"""The remote machine as the helper sees it: the session's own processes, kernelspecs, load.

Runs on any Python from 3.8 on; only the kernelspecs need jupyter_client, which a Python that serves Jupyter has.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESOURCE_LIMIT = 256 * 1024
"""Largest logo in bytes that is sent to the local side."""
_QUERY = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu"


# -- processes of the session ------------------------------------------------------------------------------


class Process:
    """A process by id and start time, so that a reused id is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_time = _start_time(pid)

    @property
    def alive(self) -> bool:
        return self.start_time is not None and _start_time(self.pid) == self.start_time


def find_jupyter(session_id: str) -> int | None:
    """Return the process that serves the session's Jupyter: the one whose environment names the Task."""
    for pid, command in _processes():
        serves = "jupyter" in command and any(word in command for word in ("lab", "notebook", "server"))
        if serves and environment(pid).get("CLEARML_TASK_ID") == session_id:
            return pid
    return None


def find_task(session_id: str) -> int | None:
    """Return the main process of the session's Task: the oldest one whose environment names the Task."""
    pids = [
        pid
        for pid, _ in _processes()
        if environment(pid).get("CLEARML_TASK_ID") == session_id
        and "CLEARML_SESSION_HELPER" not in environment(pid)
    ]
    return min(pids, key=lambda pid: (_start_time(pid) or 0, pid)) if pids else None


def environment(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty where it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def working_directory(pid: int) -> str | None:
    """Return the folder a process works in."""
    try:
        return str(Path(f"/proc/{pid}/cwd").resolve(strict=True))
    except OSError:
        return None


def interpreter(pid: int) -> str | None:
    """Return the Python a process runs on: as it was called (a virtual environment), not what that links to."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    called = os.fsdecode(arguments[0]) if arguments else ""
    found = shutil.which(called, path=environment(pid).get("PATH"))
    return found if found and "python" in Path(found).name else None


def _processes() -> Iterator[tuple[int, str]]:
    own = os.getuid()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid != own:
                continue
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])


# -- kernelspecs -------------------------------------------------------------------------------------------


def kernelspecs() -> dict[str, dict[str, Any]]:
    """Return the machine's kernelspecs by name, as `KernelProcess.start` takes them, with their logos.

    Where jupyter_client is missing, the helper's own Python is offered if it has ipykernel.
    """
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        return _own_kernelspec()
    found: dict[str, dict[str, Any]] = {}
    for name, entry in KernelSpecManager().get_all_specs().items():
        spec = entry["spec"]
        if (spec.get("metadata") or {}).get("kernel_provisioner"):
            continue  # it is started by something that only the remote Jupyter has
        argv = list(spec.get("argv") or [])
        if argv and argv[0] in ("python", "python3", f"python3.{sys.version_info[1]}"):
            argv[0] = sys.executable
        found[name] = {
            "name": name,
            "display_name": spec.get("display_name") or name,
            "language": spec.get("language") or "",
            "interrupt_mode": spec.get("interrupt_mode") or "signal",
            "argv": argv,
            "env": spec.get("env") or {},
            "metadata": spec.get("metadata") or {},
            "resource_dir": entry["resource_dir"],
            "prefix": sys.prefix,
        }
    return found


def resources(spec: dict[str, Any]) -> dict[str, str]:
    """Return the logos of a kernelspec, base64 by file name."""
    found = {}
    for path in sorted(Path(spec["resource_dir"]).glob("logo-*")) if spec["resource_dir"] else []:
        with contextlib.suppress(OSError):  # one that cannot be read: the kernel does without
            if path.is_file() and path.stat().st_size <= RESOURCE_LIMIT:
                found[path.name] = base64.b64encode(path.read_bytes()).decode()
    return found


def _own_kernelspec() -> dict[str, dict[str, Any]]:
    try:
        import ipykernel  # noqa: F401
    except ImportError:
        return {}
    version = sys.version_info[0]
    return {
        f"python{version}": {
            "name": f"python{version}",
            "display_name": f"Python {version} (ipykernel)",
            "language": "python",
            "interrupt_mode": "signal",
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "env": {},
            "metadata": {"debugger": True},
            "resource_dir": "",
            "prefix": sys.prefix,
        }
    }


# -- load --------------------------------------------------------------------------------------------------


class Meter:
    """Load of the machine. The processor's is measured between two calls."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._last = _cpu_times()

    def measure(self) -> dict[str, Any]:
        """Return cpu_percent (0 to 100 over all cores), memory, disk (bytes) and gpus."""
        now = _cpu_times()
        busy, total = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        disk = shutil.disk_usage(self._folder)
        return {
            "cpu_percent": round(100 * busy / total, 1) if total else 0.0,
            "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory": _memory(),
            "disk": {"total": disk.total, "used": disk.used, "free": disk.free},
            "gpus": _gpus(),
            "time": time.time(),
        }


def _cpu_times() -> tuple[float, float]:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return (0.0, 0.0)
    values = [float(field) for field in fields[:8]]
    return sum(values) - values[3] - values[4], sum(values)


def _memory() -> dict[str, int]:
    values = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {}
    total = values.get("MemTotal", 0)
    used = total - values.get("MemAvailable", 0)
    # In a container the control group's limit is what counts.
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = int(Path(limit_file).read_text()), int(Path(usage_file).read_text())
        except (OSError, ValueError):
            continue  # no limit, or the other version of control groups
        if limit < total:
            return {"total": limit, "used": usage}
    return {"total": total, "used": used}


def _gpus() -> list[dict[str, Any]]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=" + _QUERY, "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer must not hide the rest
    names = ("index", "name", "utilization_percent", "memory_used_mb", "memory_total_mb", "temperature_c")
    gpus = []
    for line in result.stdout.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(names):
            gpus.append({name: _number(values[index]) for index, name in enumerate(names)})
    return gpus


def _number(text: str) -> Any:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
