"""The user's ordinary ClearML configuration: is there one, and writing the first one. Never imports `clearml`.

Reading it is left to the SDK; here only what must be known without a 2 s import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import Conflict, InvalidInput
from ..files import write_private

KEYS = ("api_server", "web_server", "files_server", "access_key", "secret_key")

_PREFIXES = ("CLEARML", "TRAINS")
_ACCESS_KEY = re.compile(r"""^[^#\n]*?access_key["']?\s*[:=]\s*["']?[^"'\s,}]""", re.MULTILINE)


def is_configured() -> bool:
    """Say whether there are credentials: in the environment, or in the configuration file the SDK would read."""
    if _variable() is not None:
        return True
    path = active_file()
    if path is None:
        return False
    try:
        return _ACCESS_KEY.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def why_not() -> str:
    """Return, in one sentence, why there are no credentials, where `is_configured` says so."""
    for prefix in _PREFIXES:
        given = os.environ.get(f"{prefix}_CONFIG_FILE")
        if given and active_file() is None:
            return f"{prefix}_CONFIG_FILE names {given}, which is not there."
    path = active_file()
    if path is not None:
        return f"{path} holds no access_key, or cannot be read."
    return "There is neither a clearml.conf nor CLEARML_API_* in the environment."


def active_file() -> Path | None:
    """Return the configuration file in use, or None where there is none."""
    for prefix in _PREFIXES:
        given = os.environ.get(f"{prefix}_CONFIG_FILE")
        if given:
            path = Path(os.path.expandvars(given)).expanduser()
            return path if path.is_file() else None
    for name in ("clearml.conf", "trains.conf"):
        path = Path.home() / name
        if path.is_file():
            return path
    return None


def fingerprint() -> tuple[str, ...]:
    """Return something that changes when the configuration does. Holds no secret."""
    path = active_file()
    environment = "\0".join(
        f"{name}={os.environ[name]}"
        for name in sorted(os.environ)
        if name.startswith(("CLEARML_API_", "TRAINS_API_"))
    )
    digest = hashlib.sha256(environment.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        return (digest, str(path), str(path.stat().st_mtime_ns) if path else "")
    except OSError:
        return (digest, str(path))


def checked(credentials: Mapping[str, Any]) -> dict[str, str]:
    """Return credentials with every value checked; raises InvalidInput naming the field.

    ``web_server`` and ``files_server`` may be left out; the SDK guesses them from ``api_server``.
    """
    found: dict[str, str] = {}
    for key in credentials:
        if key not in KEYS:
            raise InvalidInput(
                f"There is no such part of the credentials: {str(key)[:80]!r}.", field=str(key)[:80]
            )
    for key in KEYS:
        value = credentials.get(key)
        if value is None or value == "":
            if key in ("web_server", "files_server"):
                continue
            raise InvalidInput(f"'{key}' is missing.", field=key)
        if not isinstance(value, str) or len(value) > 2048 or not value.strip().isprintable():
            raise InvalidInput(f"'{key}' must be one line of text.", field=key)
        found[key] = value.strip().rstrip("/") if key.endswith("_server") else value.strip()
        if key.endswith("_server") and not _is_address(found[key]):
            raise InvalidInput(f"'{key}' must be an address like http://host:8008.", field=key)
    return found


def conflict() -> Conflict:
    """Return the error that says which configuration is there already, and the ways past it."""
    variable = _variable()
    if variable is not None:
        return Conflict(
            f"ClearML is configured by the environment of JupyterLab already: {variable} is set.",
            hint="Restart JupyterLab: with it to use what is set, without it to connect elsewhere.",
        )
    return Conflict(
        f"There is a ClearML configuration already: {active_file() or _ordinary_file()}.",
        hint="It is not overwritten. Move it away and connect again; "
        "or change it by hand and restart JupyterLab, which then uses it.",
    )


def write(credentials: Mapping[str, str]) -> Path:
    """Write the user's configuration file, mode 0600, and return its path.

    Raises Conflict where there is one already: it may hold much more than credentials and is never overwritten.
    """
    path = _ordinary_file()
    if path.exists() or active_file() is not None:
        raise conflict()
    lines = [f"    {key}: {json.dumps(credentials[key])}" for key in KEYS[:3] if credentials.get(key)]
    secrets = {key: credentials[key] for key in ("access_key", "secret_key")}
    write_private(path, "\n".join(["api {", *lines, f"    credentials {json.dumps(secrets)}", "}", ""]))
    return path


def _variable() -> str | None:
    """Return the environment variable that holds credentials, if one does."""
    names = ("CLEARML_AUTH_TOKEN", *(f"{prefix}_API_ACCESS_KEY" for prefix in _PREFIXES))
    return next((name for name in names if os.environ.get(name)), None)


def _ordinary_file() -> Path:
    """Return where the user's configuration belongs, whether it is there or not."""
    given = next(
        (os.environ[f"{p}_CONFIG_FILE"] for p in _PREFIXES if os.environ.get(f"{p}_CONFIG_FILE")), None
    )
    return Path(os.path.expandvars(given)).expanduser() if given else Path.home() / "clearml.conf"


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        if parts.username is not None:
            return False  # it would be sent in place of the token, and shown wherever the address is
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
