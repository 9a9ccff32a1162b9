"""The remote script: read from the installed ``clearml-session`` package, which is never imported."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..errors import RemoteScriptMissing


@functools.lru_cache(maxsize=4)
def remote_source(name: str) -> str:
    """Return the text of one file of the package; raises RemoteScriptMissing."""
    try:
        for path in files("clearml-session") or ():
            if path.name == name and path.parent.name == "clearml_session":
                return Path(str(path.locate())).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        pass
    raise RemoteScriptMissing(f"The installed clearml-session has no {name}.")


def session_script() -> str:
    """Return the script of an ordinary session, put together as the command line does."""
    return remote_source("tcp_proxy.py") + "\n\n" + remote_source("interactive_session_task.py")
