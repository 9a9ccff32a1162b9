"""What the measurements share: processes that end with us, medians, and tables of ratios."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def process(
    *command: str,
    lines: int = 1,
    env: dict[str, str] | None = None,
    stderr: int | None = None,
    stdin: int | None = None,
) -> Iterator[list[str]]:
    """Run a process for the length of a `with` block; yield the first lines that it prints."""
    child = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=ROOT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        assert child.stdout is not None
        said = [child.stdout.readline().strip() for _ in range(lines)]
        if lines and not said[0]:
            raise RuntimeError(f"{command[:4]} did not start")
        yield said
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def part(name: str, *args: str) -> contextlib.AbstractContextManager[list[str]]:
    """Run a part of `bench._proxy_parts`."""
    return process(sys.executable, "-m", "bench._proxy_parts", name, *args)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    """Return the median; not a number where there is none."""
    return statistics.median(values) if values else float("nan")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
