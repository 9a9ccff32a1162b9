"""The helper as one file: what is sent to the remote machine, and the command that starts it there."""

from __future__ import annotations

import hashlib
import io
import shlex
import zipfile
from functools import lru_cache
from importlib.resources import files

PACKAGE = "clearml_session_helper"
MODULES = (
    "messages.py",
    "wire.py",
    "sendlog.py",
    "link.py",
    "loop.py",
    "output.py",
    "kernel.py",
    "clients.py",
    "kernels.py",
    "machine.py",
    "idle.py",
    "daemon.py",
    "helper.py",
)
SEND = b"clearml-session-helper send"
"""What the command writes when the file is not there yet: the next bytes it reads are the file."""

_MAIN = f"from {PACKAGE}.helper import main\nmain()\n"
# Runs under whatever shell the account has; everything else is Python's. A connection that breaks while the file is
# sent looks to `head` like its end: only the size tells.
_SCRIPT = """\
umask 077
d="${{CLEARML_SESSION_HELPER_DIR:-$HOME/.cache/clearml-session-helper}}"
f="$d/helper-{digest}.pyz"
fail() {{ printf '\\nclearml-session-helper ready {{"error": "%s"}}\\n' "$1"; exit 1; }}
whole() {{ [ -s "$1" ] && [ $(wc -c < "$1") -eq {size} ]; }}
if ! whole "$f"; then
  mkdir -p "$d" || fail "no folder can be made for it"
  printf '\\n{send}\\n'
  head -c {size} > "$f.$$" && whole "$f.$$" && mv "$f.$$" "$f" || {{
    rm -f "$f.$$"
    fail "it could not be stored (is the disk full?)"
  }}
fi
for p in "$HOME/environment/bin/python" python3 python /proc/[0-9]*/exe; do
  case "$p" in /proc/*) p="$(readlink "$p")"; case "$p" in */python*) ;; *) continue ;; esac ;; esac
  if command -v "$p" > /dev/null 2>&1 &&
     "$p" -ISc 'import sys; sys.exit(sys.version_info < (3, 8))' > /dev/null 2>&1; then
    exec "$p" -IS "$f" attach --session {session} --client {client}
  fi
done
fail "there is no Python 3.8 or newer"
"""


@lru_cache(maxsize=1)
def bundle() -> bytes:
    """Return the helper as a zip file that Python runs. The same sources always give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "__main__.py", _MAIN)
        _add(archive, f"{PACKAGE}/__init__.py", "")
        for name in MODULES:
            source = files("jupyterlab_clearml_session.remote").joinpath(name).read_text("utf-8")
            _add(archive, f"{PACKAGE}/{name}", source)
    return buffer.getvalue()


def digest() -> str:
    """Return the hash that names the helper's version, as the helper itself computes it."""
    return hashlib.sha256(bundle()).hexdigest()[:16]


def attach_command(session_id: str, client_id: str) -> str:
    """Return the command line for an SSH exec channel that ends in the helper's ``attach``."""
    script = _SCRIPT.format(
        digest=digest(),
        size=len(bundle()),
        send=SEND.decode(),
        session=shlex.quote(session_id),
        client=shlex.quote(client_id),
    )
    return "exec sh -c " + shlex.quote(script)


def _add(archive: zipfile.ZipFile, name: str, source: str) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, source)
