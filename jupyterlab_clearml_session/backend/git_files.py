"""The user's git credentials as the remote script takes them: gzip and base64 in the Task's runtime.

The script takes them out of the Task as soon as it runs.
"""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

from ..errors import InvalidInput

_FILES = {"_git_credentials": ".git-credentials", "_git_config": ".gitconfig"}


def collect() -> dict[str, str]:
    """Return runtime entries for ``~/.git-credentials`` and ``~/.gitconfig``, those that are there. Blocks.

    Raises InvalidInput for the field ``git_credentials`` where one cannot be read.
    """
    found: dict[str, str] = {}
    for entry, name in _FILES.items():
        path = Path.home() / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise InvalidInput(f"~/{name} cannot be read.", field="git_credentials") from None
        found[entry] = base64.encodebytes(gzip.compress(text.encode("utf-8"))).decode("ascii")
    return found
