"""The embedded default: ClearML on this machine, for trying it and for tests.

A ClearML-compatible API and file server, the real ``clearml-agent`` and a user-space SSH server, all below one
directory, on loopback only, ended with the process that started them.
"""

from __future__ import annotations

from .mode import LocalMode

__all__ = ["LocalMode"]
