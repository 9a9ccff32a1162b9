"""Who may import whom (docs/architecture.md): a walk over the real imports of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from jupyterlab_clearml_session import errors

PACKAGE = "jupyterlab_clearml_session"
ROOT = Path(__file__).parent.parent / PACKAGE

_GROUND = {"models", "errors", "deadlines"}
_BACK = _GROUND | {"launch_spec", "launch_fields", "files", "redact", "phases"}
_MIDDLE = _BACK | {"backend", "ssh", "presets"}
_KNOWN = _MIDDLE | {"attached_file", "attachment", "record"}
_SESSIONS = _KNOWN | {"roster", "reader", "poller", "sessions", "forwards", "workspace"}

ALLOWED: dict[str, set[str]] = {
    "__init__": {"extension", "magic"},
    "errors": set(),
    "deadlines": set(),
    "models": set(),
    "files": set(),
    "attached_file": _GROUND | {"files"},
    "poller": {"errors", "deadlines"},
    "redact": set(),
    "launch_fields": _GROUND,
    "launch_spec": {"errors", "launch_fields"},
    "phases": _GROUND,
    "backend": _BACK,
    "ssh": _GROUND | {"files"},
    "presets": _BACK,
    "attachment": _GROUND | {"phases", "ssh"},
    "record": _MIDDLE | {"attachment"},
    "roster": _KNOWN,
    "reader": _KNOWN | {"roster"},
    "sessions": _SESSIONS,
    "forwards": _SESSIONS,
    "workspace": _SESSIONS,
    "proxy": _SESSIONS,
    "kernels": _SESSIONS | {"remote"},
    "api": _SESSIONS,
    "local": _GROUND | {"files"},
    "remote": set(),
    "magic": _GROUND | {"launch_spec"},
    "extension": _SESSIONS | {"proxy", "kernels", "api", "local"},
    "app": {"demo", "doctor"},
    "demo": {"deadlines", "phases"},
    "doctor": _SESSIONS,
}

# Third-party modules that only one room may import.
CONFINED = {"clearml": {"backend"}, "asyncssh": {"ssh", "local"}, "clearml_agent": {"local"}}

MODULES = sorted(ROOT.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the dotted names that ``path`` imports, ours as ``jupyterlab_clearml_session.x``."""
    here = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # __init__.py is its package, so one level less goes up there.
            up = here[: len(here) - node.level] if node.level else ()
            base = [*up, *(node.module.split(".") if node.module else [])]
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = _room(path)
    assert room in ALLOWED, f"{room}: a new room needs its place in the architecture"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1 and not parts[1].startswith("_"):
            other = parts[1]
            if other != room:
                assert other in ALLOWED[room], f"{room} may not import {other}"
        for module, rooms in CONFINED.items():
            if parts[0] == module:
                assert room in rooms, f"{room} may not import {module}"


def test_every_failure_stands_in_errors() -> None:
    failures = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in MODULES
        if path != ROOT / "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and failures & {base.id for base in node.bases if isinstance(base, ast.Name)}
    ]
    assert elsewhere == []
