"""The ClearML SDK's session, made fit for a server process.

Importing this module imports `clearml` (2 s): `connection.py` does that in a thread, when it is first needed.

The SDK's own `Session._send_request` is replaced, and nothing else. It retries a refused connection 240 times
(measured with 2.1.12: a login at a closed port was still being tried when it was stopped after 90 s), and TLS
errors for ever, in a loop that no setting ends. The SDK still reads the configuration (file, environment, vaults),
keeps and refreshes the token, and knows the certificates to check.
"""

from __future__ import annotations

import json as json_module
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clearml.config
import jwt
import requests
from clearml.backend_api import load_config
from clearml.backend_api.session.defs import MissingConfigError
from clearml.backend_api.session.session import LoginError, Session
from clearml.backend_api.utils import get_http_session_with_retry
from clearml.backend_config.errors import ConfigurationError

from ..errors import (
    BadCredentials,
    ClearMLBadAnswer,
    ClearMLDeadline,
    ClearMLSessionError,
    ClearMLUnreachable,
    NotConfigured,
)
from . import answers

API_VERSION = "2.23"
"""What the SDK 2.1 itself speaks; servers answer the newest implementation up to it."""

_CONNECT_TIMEOUT = 5.0
_AWAY = frozenset({429, 502, 503, 504})
_NOT_A_LOGIN = "The login was answered with something that is not ClearML's protocol."
_NO_TOKEN = (ValueError, jwt.InvalidTokenError)
"""What the SDK lets through where the answer to a login holds no token, or one that is none."""
_log = logging.getLogger(__name__)


class BoundedSession(Session):
    """One authenticated line to an API server; each request ends within its deadline.

    Parameters
    ----------
    credentials:
        As `configuration.checked` returns them; None takes the user's ordinary configuration.
    deadline:
        Seconds within which the login must be done.

    Raises
    ------
    NotConfigured, ClearMLUnreachable, ClearMLDeadline, ClearMLBadAnswer, BadCredentials
    """

    def __init__(self, credentials: Mapping[str, str] | None, deadline: float) -> None:
        self._given = given = credentials or {}
        self._local = threading.local()
        self._deadline = deadline
        self._local.until = time.monotonic() + deadline
        try:
            # Read anew each time: the SDK would keep what it read first for the life of the process.
            config = _load_configuration()
            # read=False: a read timeout stays one, instead of a retry that was refused.
            self._requests = get_http_session_with_retry(total=0, read=False, config=config)
            super().__init__(
                host=given.get("api_server"),
                api_key=given.get("access_key"),
                secret_key=given.get("secret_key"),
                logger=_log,
                config=config,
                http_retries_config={"total": 0},
            )
        except MissingConfigError:
            raise NotConfigured("ClearML is not configured on this machine.") from None
        except ConfigurationError as error:
            raise NotConfigured(
                f"The ClearML configuration cannot be read: {error}",
                hint="Correct that file; or take it away, and paste credentials in the panel.",
            ) from None
        except (LoginError, *_NO_TOKEN) as error:
            raise _typed(error) from None

    def call(self, endpoint: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Send one request and return its ``data``.

        ``endpoint`` is "service.action", ``deadline`` is in seconds. Raises as `__init__`, and what
        `answers.failure` makes of an error answer.
        """
        self._local.until = time.monotonic() + deadline
        service, action = endpoint.split(".")
        try:
            response = self.send_request(service, action, version=API_VERSION, json=dict(body))
        except (LoginError, *_NO_TOKEN) as error:
            raise _typed(error) from None
        return answers.data(response.status_code, response.text)

    def user_id(self) -> str:
        """Return the id of the user whose credentials these are, as the token says; empty where it does not."""
        # Not `token`: where that has run out it is asked for anew, and this is called on the event loop.
        try:
            claims = self.get_decoded_token(self.raw_token)
        except _NO_TOKEN:
            return ""
        return str(claims.get("identity", {}).get("user") or "")

    def web_server(self) -> str:
        """Return the address of the ClearML web page, without a slash at the end; empty where unknown."""
        try:
            return (self._given.get("web_server") or str(self.get_app_server_host(self.config))).rstrip("/")
        except ValueError:
            return ""

    def files_server(self) -> str:
        """Return the address of the ClearML file server, without a slash at the end."""
        return (self._given.get("files_server") or str(self.get_files_server_host(self.config))).rstrip("/")

    @property
    def _until(self) -> float:
        """When this thread's request must be done; a thread that only wants headers may have to log in for them."""
        return float(getattr(self._local, "until", time.monotonic() + self._deadline))

    @property
    def verify(self) -> bool | str:
        """How certificates are checked, as `requests` takes it."""
        return True if self._requests.verify is None else self._requests.verify

    def default_output_uri(self) -> str:
        """Return where the configuration wants artifacts to be stored; empty for the file server."""
        config: Any = self.config
        return str(config.get("sdk.development.default_output_uri", None) or "").rstrip("/")

    def _send_request(  # noqa: PLR0917 - the SDK's signature
        self,
        service: str,
        action: str,
        version: str | None = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        auth: Any = None,
        data: Any = None,
        json: Any = None,
        refresh_token_if_unauthorized: bool = True,
        params: Any = None,
    ) -> requests.Response:
        """Do one HTTP request within the deadline of this thread; asks once more with a fresh token after a 401."""
        path = f"v{version}/{service}.{action}" if version else f"{service}.{action}"
        sent = dict(headers or {})
        sent.update(
            dict.fromkeys(self._WORKER_HEADER, self.worker), **dict.fromkeys(self._CLIENT_HEADER, self.client)
        )
        response = self._request_once(
            method or "get",
            f"{self.host}/{path}",
            headers=sent,
            auth=auth,
            data=data,
            json=json,
            params=params,
        )
        if response.status_code == 401 and refresh_token_if_unauthorized:
            self.refresh_token()
            self.add_auth_headers(sent)
            return self._send_request(
                service,
                action,
                version,
                method,
                sent,
                auth,
                data,
                json,
                False,
                params,
            )
        if service == "auth":
            # The SDK would turn any other answer into a text.
            answers.data(response.status_code, response.text)
        return response

    def _request_once(self, method: str, url: str, **arguments: Any) -> requests.Response:
        until = self._until
        left = max(0.05, until - time.monotonic())
        try:
            response = self._requests.request(
                method, url, timeout=(min(left, _CONNECT_TIMEOUT), left), **arguments
            )
        except requests.exceptions.SSLError:
            raise ClearMLUnreachable(
                f"The certificate of {self.host} is not trusted.",
                hint="See api.verify_certificate in the ClearML configuration.",
            ) from None
        except requests.exceptions.ConnectTimeout:
            raise ClearMLUnreachable(f"{self.host} does not answer.") from None
        except (
            requests.exceptions.Timeout,
            requests.exceptions.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            # A timeout within a body is told by requests as a broken connection.
            if isinstance(error, requests.exceptions.Timeout) or time.monotonic() >= until:
                raise ClearMLDeadline(f"{self.host} did not answer in time.") from None
            raise ClearMLUnreachable(f"{self.host} cannot be reached.") from None
        except (requests.exceptions.RequestException, ValueError):
            raise ClearMLUnreachable(
                f"'{self.host}' is not an address that can be reached.",
                hint="It should look like http://host:8008",
            ) from None
        if response.status_code in _AWAY:
            raise ClearMLUnreachable(f"{self.host} is not available right now (HTTP {response.status_code}).")
        return response


def _typed(error: Exception) -> ClearMLSessionError:
    """Return the failure behind what the SDK's login raises: a LoginError keeps only its text."""
    if isinstance(error, _NO_TOKEN):
        return ClearMLBadAnswer(_NOT_A_LOGIN)
    cause = error.__context__
    if isinstance(cause, ClearMLSessionError):
        return cause
    if "401" in str(error):
        return BadCredentials("The ClearML server does not accept the credentials.")
    if isinstance(cause, json_module.JSONDecodeError):
        return ClearMLBadAnswer(_NOT_A_LOGIN)
    return ClearMLBadAnswer("The login at the ClearML server failed.")


def configured_host() -> str:
    """Return the address of the API server that the user's configuration names."""
    return str(Session.get_api_server_host(_load_configuration()))


def _load_configuration() -> Any:
    return load_config(str(Path(clearml.config.__file__).parent))
