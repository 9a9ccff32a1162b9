"""A small ClearML-compatible API server: the same answers as a real one, for one machine and one user."""

from __future__ import annotations
