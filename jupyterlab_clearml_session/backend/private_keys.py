"""Private SSH keys: made, and their public halves. Imports `cryptography`, so it is imported where it is needed."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

_RSA_BITS = 2048
_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def generate() -> list[tuple[str, str]]:
    """Return fresh keys, ECDSA, Ed25519 and RSA, each as its private and its public half."""
    made: list[tuple[_PrivateKey, PrivateFormat]] = [
        (ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL),
        (ed25519.Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH),
        (
            rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS),
            PrivateFormat.TraditionalOpenSSL,
        ),
    ]
    return [
        (key.private_bytes(Encoding.PEM, form, NoEncryption()).decode(), _public(key)) for key, form in made
    ]


def public_half(private: str) -> str | None:
    """Return the public half of a private key, in OpenSSH's one-line format; None where it cannot be read."""
    data = private.encode()
    try:
        load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return _public(key) if isinstance(key, _PrivateKey) else None


def _public(key: _PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
