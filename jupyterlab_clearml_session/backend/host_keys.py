"""SSH host keys: fresh ones for each session, and the public halves that the tunnel must find again.

Upstream's remote script serves the keys of the Task's ``SSH`` configuration, a dictionary with the names of its own
``default_ssh_fingerprint``. Without that, it serves private keys that everybody can read in its source.
"""

from __future__ import annotations

import ast
import functools
import json
import warnings
from collections.abc import Mapping

from .remote_script import remote_source

NAMES = ("ssh_host_ecdsa_key", "ssh_host_ed25519_key", "ssh_host_rsa_key")


def generate() -> dict[str, str]:
    """Return fresh host keys, private and public, under the names that the remote script reads.

    Blocks for 0.05 to 0.5 s (RSA): call it in a thread. The kinds and formats are those that sshd and dropbear's
    converter both take.
    """
    from . import private_keys  # cryptography takes 50 ms, which a server's start does not have

    pairs = dict(zip(NAMES, private_keys.generate(), strict=True))
    keys = {name: private for name, (private, _) in pairs.items()}
    return keys | {f"{name}__pub": public for name, (_, public) in pairs.items()}


def public_keys(configuration: str | Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the public keys (OpenSSH one-line format, no comment) in a ``SSH`` configuration or a vault.

    Takes the dictionary or its JSON text; a key without a public half has it derived. What cannot be read is left
    out: the tunnel then has one key less to accept.
    """
    if isinstance(configuration, str):
        try:
            configuration = json.loads(configuration) if configuration.strip() else {}
        except (ValueError, RecursionError):
            return ()
    if not isinstance(configuration, Mapping):
        return ()
    found: list[str] = []
    for name in NAMES:
        public = configuration.get(f"{name}__pub")
        if isinstance(public, str) and public.strip():
            found.append(" ".join(public.split()[:2]))
        else:
            derived = _derive(configuration.get(name))
            if derived:
                found.append(derived)
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=1)
def default_public_keys() -> tuple[str, ...]:
    """Return the public halves of upstream's default keys, read from the installed remote script.

    They prove nothing about a machine: everybody has their private halves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the script's escapes, nothing of ours
        tree = ast.parse(remote_source("interactive_session_task.py"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "default_ssh_fingerprint" for target in node.targets
        ):
            assert isinstance(node.value, ast.Dict)
            keys = [_constant(key) for key in node.value.keys if key is not None]
            return public_keys(dict(zip(map(str, keys), map(_constant, node.value.values), strict=True)))
    return ()


def _constant(node: ast.expr) -> str | None:
    """Evaluate texts joined by ``+``, which is all that the dictionary is made of."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_constant(node.left)}{_constant(node.right)}"
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str)):
        return node.value
    raise ValueError("the default host keys of the remote script are written in an unknown way")


def _derive(private: str | None) -> str | None:
    if not isinstance(private, str) or not private.strip():
        return None
    from . import private_keys

    return private_keys.public_half(private)
