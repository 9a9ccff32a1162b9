"""One HTTP request to a Jupyter server: JSON in and out, always with a deadline.

`http.client` and not `urllib.request`: the latter would send requests for this very machine to the proxy of
``http_proxy``, and cannot speak over a Unix socket.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from ..errors import ServerUnreachable


def request(
    method: str, url: str, body: Any = None, *, token: str = "", socket_path: str = "", deadline: float
) -> tuple[int, Any]:
    """Send one request and return its status and JSON (None where there is none).

    ``deadline`` (seconds) holds for each step on the network. An answer that is no JSON is returned as text.
    Raises ServerUnreachable.
    """
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"token {token}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection = _connection(parts.scheme, parts.hostname or "", parts.port, socket_path, deadline)
        try:
            connection.request(method, target, body=data, headers=headers)
            response = connection.getresponse()
            return response.status, _content(response.read())
        finally:
            connection.close()
    except TimeoutError:
        raise ServerUnreachable(
            f"The Jupyter server at {where} did not answer within {deadline:g} seconds."
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a name that is none
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ServerUnreachable(f"The Jupyter server at {where} cannot be reached: {reason}.") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, deadline: float) -> None:
        super().__init__("localhost", timeout=deadline)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(
    scheme: str, host: str, port: int | None, socket_path: str, deadline: float
) -> http.client.HTTPConnection:
    if socket_path:
        return _UnixConnection(socket_path, deadline)
    if scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=deadline)
    context = ssl.create_default_context()
    if _is_loopback(host):
        # A server of our own user on this machine, often with a certificate it made for itself or one for
        # another name; nothing leaves the machine.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=deadline, context=context)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(data: bytes) -> Any:
    if not data:
        return None
    text = data.decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
