"""Who may use the proxy, from where."""

from __future__ import annotations

import asyncio
import html
import logging
import re
from typing import Any

import pytest

from jupyterlab_clearml_session.proxy import trust

from .proxy_fixture import BOTH_WAYS, NAVIGATION, Browser, Proxy, head, proxy, raw
from .proxy_parts import REMOTE_TOKEN, SESSION, canned

__all__ = ["proxy"]  # the fixture


async def test_without_a_login_nothing_is_contacted(proxy: Proxy) -> None:
    for kind in ("jupyter/", "vscode/", "port/80/", "port-absolute/80/"):
        for headers, status in ((NAVIGATION, b"302"), ({}, b"403")):
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            request = (
                f"GET {proxy.base}/{kind} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{lines}\r\n"
            )
            answer = await raw(proxy, request.encode())
            assert answer.startswith(b"HTTP/1.1 " + status), kind
    assert proxy.service.requests == []


async def test_unauthorised_user_is_refused(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def is_authorized(_handler: Any, _user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(proxy.serverapp.authorizer, "is_authorized", is_authorized)
    assert (await proxy.get("port", "x")).code == 403
    assert asked == [("execute", "clearml_session")]
    assert proxy.service.requests == []


async def test_someone_elses_session_opens_after_a_warning_only(proxy: Proxy) -> None:
    proxy.serverapp.web_app.settings["clearml_session_manager"].mine = False
    browser = Browser(proxy)
    await browser.login()
    port, cookies = proxy.serverapp.port, browser.cookie
    path = f"{proxy.base}/port/{proxy.service.port}/x?y=1"
    assert "foreign_session" in await visit(port, path, cookies, navigates=False)
    page = await visit(port, path, cookies)
    assert page.startswith("HTTP/1.1 403")
    assert "Ada &lt;Lovelace&gt;" in page
    assert "http-equiv" not in page
    assert proxy.service.requests == []
    _, link = (html.unescape(found) for found in re.findall(r'<a href="([^"]+)"', page))
    forged = re.sub(r"[0-9a-f]{8}$", "00000000", link)
    assert (await visit(port, forged, cookies)).startswith("HTTP/1.1 403")

    agreed = await visit(port, link, cookies)
    assert agreed.startswith("HTTP/1.1 302")
    assert f"Location: {path}\r\n" in agreed
    (cookie,) = re.findall(r"Set-Cookie: (clearml-session-trust=[^\r]+)", agreed)
    assert "HttpOnly" in cookie
    assert f"Path={proxy.base}" in cookie
    assert "200 OK" in await visit(port, path, f"{cookies}; {cookie.partition(';')[0]}")
    assert proxy.service.requests[-1].get("Cookie") is None


async def test_session_of_someone_else_that_is_attached_while_it_is_looked_up_is_warned_of(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = proxy.serverapp.web_app.settings["clearml_session_manager"]
    manager.mine = manager.is_attached = False
    held = manager.held_tunnel

    async def look_up(session_id: str) -> object:
        manager.is_attached = (
            True  # ClearML is asked for a session that is not known yet, which takes a while
        )
        return await held(session_id)

    monkeypatch.setattr(manager, "held_tunnel", look_up)
    browser = Browser(proxy)
    await browser.login()
    path = f"{proxy.base}/port/{proxy.service.port}/x"
    assert "foreign_session" in await visit(proxy.serverapp.port, path, browser.cookie, navigates=False)
    assert proxy.service.requests == []


async def test_someone_elses_session_opens_for_a_program_with_the_token_but_for_no_other_header(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.serverapp.web_app.settings["clearml_session_manager"].mine = False
    browser = Browser(proxy)
    await browser.login()
    token = proxy.serverapp.identity_provider.token
    port = proxy.serverapp.port
    path = f"{proxy.base}/port/{proxy.service.port}/x"
    for scheme in ("token", "Bearer"):
        assert "200 OK" in await visit(port, path, "", f"Authorization: {scheme} {token}", navigates=False)
    seen = len(proxy.service.requests)
    # As a proxy in front of the local server adds them; it is the cookie, or the query, that logs in.
    for added in ("Basic YWRhOng=", f"Basic {token}", "Bearer an-sso-s", "Negotiate x", f"token{token}"):
        for query in ("", f"?token={token}", f"?%74oken={token}"):
            for navigates in (True, False):
                answer = await visit(
                    port, path + query, browser.cookie, f"Authorization: {added}", navigates=navigates
                )
                assert answer.startswith("HTTP/1.1 403"), (added, query)
                assert "launched by Ada" in answer
    # An identity provider may call something else a token, a cookie say.
    provider = type(proxy.serverapp.identity_provider)
    monkeypatch.setattr(provider, "is_token_authenticated", lambda *_: True)
    assert "launched by Ada" in await visit(port, path, browser.cookie, "Authorization: Basic YWRhOng=")
    assert len(proxy.service.requests) == seen


async def warned(proxy: Proxy, kind: str) -> tuple[str, str]:
    """Visit someone else's session; return the login cookie and the warning's link to an own address."""
    proxy.serverapp.web_app.settings["clearml_session_manager"].mine = False
    browser = Browser(proxy)
    await browser.login()
    page = await visit(proxy.serverapp.port, f"{proxy.base}/{kind}/x?y=1", browser.cookie)
    assert page.startswith("HTTP/1.1 403")
    apart, _ = re.findall(r'<a href="([^"]+)"', page)
    return browser.cookie, html.unescape(apart)


async def visit(
    port: int,
    target: str,
    cookie: str = "",
    *more: str,
    host: str = "",
    method: str = "GET",
    navigates: bool = True,
) -> str:
    """Make a navigation as a browser does; return the answer."""
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {host or '127.0.0.1'}",
        "Connection: close",
        *more,
    ]
    lines += [f"{name}: {value}" for name, value in NAVIGATION.items()] if navigates else []
    lines += [f"Cookie: {cookie}"] if cookie else []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode("latin-1")


async def test_someone_elses_session_at_an_address_of_its_own(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = proxy.serverapp.web_app.settings
    login, link = await warned(proxy, "jupyter")
    forged = re.sub(r"[0-9a-f]{8}$", "00000000", link)
    assert (await visit(proxy.serverapp.port, forged, login)).startswith("HTTP/1.1 403")
    assert not (await visit(proxy.serverapp.port, link)).startswith("HTTP/1.1 200")  # nobody is logged in
    led = await visit(proxy.serverapp.port, link, login)
    assert led.startswith("HTTP/1.1 302")
    (found,) = re.findall(r"Location: http://localhost:(\d+)(/x\?y=1&clearml-session-token=\S+)\r\n", led)
    port, invitation = int(found[0]), found[1]
    host = f"localhost:{port}"

    # Not without the invitation, which works once; not by another name; the local login counts for nothing.
    for target, cookie, name in (
        ("/x", "", host),
        ("/x", login, host),
        (invitation, "", f"evil.example:{port}"),
    ):
        assert (await visit(port, target, cookie, host=name)).startswith("HTTP/1.1 403")
    assert proxy.service.requests == []
    entered = await visit(port, invitation, host=host)
    assert entered.startswith("HTTP/1.1 302")
    assert "Location: /x?y=1\r\n" in entered
    (key,) = re.findall(r"Set-Cookie: (clearml-session-apart-[^;]+);.*HttpOnly.*SameSite=Lax", entered)
    assert (await visit(port, invitation, host=host)).startswith("HTTP/1.1 403")

    # The service is at "/" there: its token goes in, and neither that nor a cookie of ours comes out or goes in.
    page = f'<body data-jupyter-api-token="{REMOTE_TOKEN}" data-base-url="/"><a href="/lab">x</a>'.encode()
    proxy.service.reply = canned(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=1\r\nSet-Cookie: _xsrf=1\r\n"
        b"Location: /lab\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    )
    answer = await visit(port, "/x?y=1", f"{key}; {login}", host=host)
    assert answer.endswith('<body data-jupyter-api-token="" data-base-url="/"><a href="/lab">x</a>')
    assert "Set-Cookie: a=1; Path=/\r\n" in answer
    assert "Location: /lab\r\n" in answer
    assert answer.count("Set-Cookie") == 1
    (seen,) = proxy.service.requests
    assert seen.target == "/x?y=1"
    assert seen.get("Cookie") is None
    assert seen.get("Authorization") == f"token {REMOTE_TOKEN}"

    # A page from elsewhere, the local JupyterLab's too, cannot act there.
    local = f"http://127.0.0.1:{proxy.serverapp.port}"
    for origin, status in ((local, 403), ("null", 403), (f"http://{host}", 200)):
        empty = ("Content-Length: 0", f"Origin: {origin}")
        answer = await visit(port, "/x", key, *empty, host=host, method="POST", navigates=False)
        assert answer.startswith(f"HTTP/1.1 {status}")
    socket = ("Upgrade: websocket", "Connection: Upgrade", f"Origin: {local}")
    assert (await visit(port, "/x", key, *socket, host=host, navigates=False)).startswith("HTTP/1.1 403")
    assert (await visit(port, "/x", key, "X: a\n b", host=host)).startswith("HTTP/1.1 400")
    assert len(proxy.service.requests) == 2
    token = invitation.partition("clearml-session-token=")[2]
    for secret in (token, key.partition("=")[2], REMOTE_TOKEN):
        assert secret not in caplog.text

    await settings["clearml_session_aparts"].forget(SESSION)
    with pytest.raises(ConnectionRefusedError):
        await visit(port, "/x", key, host=host)


async def test_own_address_of_a_port_and_where_there_can_be_none(proxy: Proxy) -> None:
    login, link = await warned(proxy, f"port-absolute/{proxy.service.port}")
    led = await visit(proxy.serverapp.port, link, login)
    assert (
        f"{proxy.base}/port-absolute/{proxy.service.port}/x?y=1&" in led
    )  # such a service knows the whole path
    assert trust.other_loopback("jupyter.example") is None  # the browser is on another machine
    await proxy.serverapp.web_app.settings["clearml_session_aparts"].forget(SESSION)


async def test_no_own_address_is_opened_of_a_session_that_was_detached(proxy: Proxy) -> None:
    settings = proxy.serverapp.web_app.settings
    login, link = await warned(proxy, "jupyter")
    settings["clearml_session_manager"].is_attached = False
    await settings["clearml_session_aparts"].forget(SESSION)
    try:
        assert (await visit(proxy.serverapp.port, link, login)).startswith("HTTP/1.1 409")
        assert settings["clearml_session_aparts"]._open == {}
    finally:
        await settings["clearml_session_aparts"].forget(SESSION)


FROM_SITES: list[tuple[str, list[str], int]] = [
    ("POST", ["Origin: http://127.0.0.1"], 200),
    ("POST", ["Sec-Fetch-Site: same-origin"], 200),
    ("POST", ["Origin: http://evil.example"], 403),
    ("POST", ["Origin: null"], 403),
    ("POST", ["Origin: http://["], 403),
    ("GET", ["Origin: http://[", "Connection: Upgrade", "Upgrade: websocket"], 403),
    ("POST", ["Origin: http://evil.example", "Sec-Fetch-Site: same-origin"], 403),
    ("POST", ["Sec-Fetch-Site: cross-site"], 403),
    ("POST", ["Sec-Fetch-Site: same-site"], 403),
    ("POST", [], 403),
    ("GET", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], 403),
    ("GET", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], 200),
    ("GET", ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], 200),
    ("GET", [], 200),
]


async def test_cross_site_requests(proxy: Proxy) -> None:
    browser = Browser(proxy)
    await browser.login()
    for method, headers, status in FROM_SITES:
        assert await browser.send(method, *headers) == status, (method, headers)
        assert len(proxy.service.requests) == (1 if status == 200 else 0)
        while proxy.service.requests:
            assert proxy.service.requests.pop().get("Cookie") is None


@BOTH_WAYS
async def test_no_secret_in_the_log(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await raw(proxy, head(proxy, "GET", "/api/x", kind="jupyter"))
    proxy.service.reply = canned(b"nonsense\r\n\r\n")
    await raw(proxy, head(proxy, "GET", "/api/x", kind="jupyter"))
    assert REMOTE_TOKEN not in caplog.text
