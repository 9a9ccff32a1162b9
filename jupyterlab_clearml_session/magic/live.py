"""One display that is updated in place: HTML in a notebook, one line in a terminal."""

from __future__ import annotations

import shutil
import sys
import uuid
from typing import Any

from .displays import Markup


class Live:
    """Shows one thing that changes. Nothing is sent where nothing changed."""

    def __init__(self, shell: Any) -> None:
        self._publisher = shell.display_pub
        # The terminal's publisher prints updates one below the other.
        self._terminal = getattr(shell, "kernel", None) is None
        self._id = f"clearml-session-{uuid.uuid4().hex}"
        self._shown: tuple[str, str] | None = None
        self._width = 0
        self._cut = ""
        """The text of a terminal's line that has not been ended, where it was too long for it."""
        self._open = False

    def show(self, text: str, html: Markup) -> None:
        """Show this in place of what was shown before."""
        if (text, html) == self._shown:
            return
        first, self._shown = self._shown is None, (text, html)
        if self._terminal:
            self._print(text)
            return
        self._publisher.publish(
            {"text/plain": text, "text/html": str(html)},
            {},
            transient={"display_id": self._id},
            update=not first,
        )

    def close(self) -> None:
        """End the line of a terminal; a text that had to be cut is shown in full."""
        if self._open:
            sys.stdout.write(f"\r{self._cut}\n" if self._cut else "\n")
            sys.stdout.flush()
        self._open, self._width, self._cut = False, 0, ""

    def _print(self, text: str) -> None:
        if sys.stdout.isatty():
            # A line that wraps cannot be written over.
            room = max(shutil.get_terminal_size().columns - 1, 20)
            fits = text if len(text) <= room else text[: room - 3] + "..."
            self._cut = "" if fits == text else text
            sys.stdout.write("\r" + fits.ljust(self._width))
            self._width, self._open = len(fits), True
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
