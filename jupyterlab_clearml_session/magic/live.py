"""One display that is updated in place: HTML in a notebook, one line in a terminal."""

from __future__ import annotations

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
        """End the line of a terminal."""
        if self._terminal and self._shown is not None and sys.stdout.isatty():
            sys.stdout.write("\n")

    def _print(self, text: str) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
