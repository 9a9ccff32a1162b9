"""``%clearml_session`` and ``%%clearml_session``: the same as the panel, from a notebook cell.

Runs in the kernel process and is a REST client of the local Jupyter server: neither `clearml` nor an SSH library is
imported here.
"""

from __future__ import annotations

from .magics import ClearMLSessionMagics
from .objects import SessionHandle

__all__ = ["ClearMLSessionMagics", "SessionHandle"]
