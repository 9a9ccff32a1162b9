"""Who may call: one key pair, and the JSON Web Tokens (HS256) that ``auth.login`` gives out for it.

The SDK and the agent read ``api_version``, ``server_version`` and ``feature_set`` out of the token without
checking it, and choose the endpoints' versions by them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from . import errors

API_VERSION = "2.34"
SERVER_VERSION = "2.3.0"
COMPANY_ID = "d1bd92a3b039400cbafc60a7a5b1e52b"
COMPANY_NAME = "clearml"
USER_ID = "local"
USER_NAME = "You, on this machine"
COOKIE = "clearml_token_basic"

_DEFAULT_LIFETIME_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Keys:
    """The credentials of the one user, and the secret that signs the tokens. Never printed."""

    access_key: str
    secret_key: str
    signing_key: str

    @classmethod
    def random(cls) -> Keys:
        """Fresh ones, of the lengths that a real server gives out."""
        return cls(secrets.token_hex(10).upper(), secrets.token_urlsafe(40), secrets.token_urlsafe(40))

    def __repr__(self) -> str:
        return "Keys(...)"


class Authenticator:
    """Gives out tokens and checks the ``Authorization`` header of every call."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def token(self, lifetime_s: int | None = None) -> str:
        """A signed token, valid for ``lifetime_s`` seconds (30 days where left out)."""
        now = int(time.time())
        claims = {
            "iat": now,
            "exp": now + (lifetime_s or _DEFAULT_LIFETIME_S),
            "auth_type": "Bearer",
            "session_id": secrets.token_hex(16),
            "env": "<unknown>",
            "api_version": API_VERSION,
            "server_version": SERVER_VERSION,
            "server_build": "",
            "feature_set": "basic",
            "identity": {
                "user": USER_ID,
                "role": "user",
                "user_name": USER_NAME,
                "company": COMPANY_ID,
                "company_name": COMPANY_NAME,
            },
        }
        head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = f"{head}.{_encode(json.dumps(claims).encode())}"
        return f"{body}.{self._sign(body)}"

    def check(self, header: str | None) -> None:
        """Let the caller through, or raise the 401 that a real server answers."""
        if not header:
            raise errors.no_credentials()
        scheme, _, value = header.partition(" ")
        if scheme == "Basic" and value:
            return self._check_basic(value)
        if scheme == "Bearer" and value:
            return self._check_token(value.strip())
        raise errors.bad_scheme()

    def _check_basic(self, value: str) -> None:
        try:
            pair = base64.b64decode(value, validate=True)
        except ValueError:
            raise errors.bad_credentials() from None
        wanted = f"{self._keys.access_key}:{self._keys.secret_key}".encode()
        if not hmac.compare_digest(pair, wanted):
            raise errors.bad_credentials()

    def _check_token(self, token: str) -> None:
        parts = token.split(".")
        if len(parts) != 3:
            raise errors.bad_token("Not enough segments")
        if not hmac.compare_digest(parts[2].encode(), self._sign(f"{parts[0]}.{parts[1]}").encode()):
            raise errors.bad_token("Signature verification failed")
        # Signed by this process a moment ago: what is inside can be trusted to be well-formed.
        claims: dict[str, Any] = json.loads(_decode(parts[1]))
        if claims["exp"] <= time.time():
            raise errors.bad_token("Signature has expired")

    def _sign(self, body: str) -> str:
        return _encode(hmac.new(self._keys.signing_key.encode(), body.encode(), hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
