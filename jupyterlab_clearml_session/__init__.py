"""Remote ClearML machines inside your own JupyterLab. Entry points that Jupyter and IPython look for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("jupyterlab_clearml_session")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyterlab-clearml-session"}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .extension import ClearMLSessionExtension

    return [{"module": "jupyterlab_clearml_session", "app": ClearMLSessionExtension}]


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics: ``%load_ext jupyterlab_clearml_session``."""
    from .magic import ClearMLSessionMagics

    ipython.register_magics(ClearMLSessionMagics)
