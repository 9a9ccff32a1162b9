"""The cell of the fault runs: numbered lines with display updates between, a result and a reply; and its judge."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What of all lines, updates, results and replies was lost, came twice, or came in another order."""

    lost: int = 0
    twice: int = 0
    in_order: bool = True

    def __bool__(self) -> bool:
        """True where nothing is wrong."""
        return self == Verdict()


@dataclass(frozen=True)
class Count:
    """Prints ``lines`` numbers; after each ``step`` of them they are flushed and a display is updated.

    ``pause`` seconds follow each step. With ``gates`` the loop stops ``parts`` times on its way and waits for
    `open_gate`, so that something can happen in the middle of each part.
    """

    lines: int = 100_000
    step: int = 400
    pause: float = 0.004
    gates: Path | None = None
    parts: int = 1

    @property
    def code(self) -> str:
        """The cell."""
        wait = done = ""
        if self.gates is not None:
            done = f"pathlib.Path({str(self.gates / 'done')!r}).touch()"
            gate = f"pathlib.Path({str(self.gates)!r}) / f'gate{{i // {self.part}}}'"
            starts = range(0, self.part * self.parts, self.part)
            wait = f"while i in {starts} and not ({gate}).exists(): time.sleep(0.005)"
        return f"""
import pathlib, sys, time
from IPython.display import display
handle = display(-1, display_id=True)
for i in range({self.lines}):
    {wait or "pass"}
    print(i)
    if i % {self.step} == 0:
        sys.stdout.flush()
        handle.update(i)
        time.sleep({self.pause})
{done}
'the end'
"""

    @property
    def part(self) -> int:
        """Lines of one part."""
        return self.lines // self.parts

    def open_gate(self, part: int) -> None:
        """Let the loop run its part with this number, counted from 0."""
        assert self.gates is not None
        (self.gates / f"gate{part}").touch()

    @property
    def finished(self) -> bool:
        """Whether a loop with gates has come to its end."""
        assert self.gates is not None
        return (self.gates / "done").exists()

    def judge(self, messages: list[dict[str, Any]], replies: list[dict[str, Any]] | None) -> Verdict:
        """Compare what was received of the cell with what it has said; without replies, but for the reply."""
        lines: list[str] = []
        updates: list[str] = []
        results: list[str] = []
        rest = ""
        for message in messages:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                *whole, rest = (rest + content["text"]).split("\n")
                lines += whole
            elif message["msg_type"] in ("display_data", "update_display_data"):
                updates.append(content["data"]["text/plain"])
            elif message["msg_type"] == "execute_result":
                results.append(content["data"]["text/plain"])
        wanted = [
            ([str(n) for n in range(self.lines)], lines),
            ([str(n) for n in (-1, *range(0, self.lines, self.step))], updates),
            (["'the end'"], results),
        ]
        if replies is not None:
            wanted.append((["ok"], [reply["status"] for reply in replies]))
        lost = sum(sum((Counter(want) - Counter(got)).values()) for want, got in wanted)
        twice = sum(sum((Counter(got) - Counter(want)).values()) for want, got in wanted) + bool(rest)
        in_order = all(_in_order(want, got) for want, got in wanted)
        return Verdict(lost, twice, in_order)


def _in_order(want: list[str], got: list[str]) -> bool:
    """Whether what came, each counted where it came first, came in the order in which it was said."""
    known = set(want)
    came = [value for value in dict.fromkeys(got) if value in known]
    there = set(came)
    return came == [value for value in want if value in there]
