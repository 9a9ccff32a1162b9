"""The header policy and the HTTP parser, as tables."""

from __future__ import annotations

import gzip
import sys
import zlib

import brotli
import pytest

from jupyterlab_clearml_session.errors import InvalidInput, RemoteBadAnswer
from jupyterlab_clearml_session.proxy import http1
from jupyterlab_clearml_session.proxy.headers import (
    Route,
    confine_cookie,
    location,
    set_cookie_names,
    strip_token,
    to_browser,
    to_remote,
)
from jupyterlab_clearml_session.proxy.jupyter_pages import decode, rewrite, rewrite_kernelspecs

STRIPPED = Route("/base/p/port/3000", 3000)
ABSOLUTE = Route("/base/p/port-absolute/3000", 3000, strip=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a=1", "a=1; Path=/base/p/port/3000/"),
        ("a=1; Path=/; HttpOnly", "a=1; HttpOnly; Path=/base/p/port/3000/"),
        ("a=1; Domain=evil.example; path=/x", "a=1; Path=/base/p/port/3000/x"),
        ("a=1; Path=relative; Secure; SameSite=None", "a=1; Secure; SameSite=None; Path=/base/p/port/3000/"),
        ("a=1; Domain =example.org;\tDOMAIN\t= example.org; Path =/x", "a=1; Path=/base/p/port/3000/x"),
        ("_xsrf=1; Path=/", None),
        ("username-localhost-8888=1", None),
        ("jupyterhub-session-id=1", None),
        ("__Host-a=1; Path=/; Secure", None),
        ("=1", None),
        ("a b=1", None),
    ],
)
def test_cookies_are_confined(value: str, expected: str | None) -> None:
    assert confine_cookie(value, STRIPPED) == expected


def test_cookie_of_a_service_that_knows_its_prefix_stays_below_it() -> None:
    assert confine_cookie("a=1; Path=/", ABSOLUTE) == "a=1; Path=/base/p/port-absolute/3000/"
    below = "/base/p/port-absolute/3000/x"
    assert confine_cookie(f"a=1; Path={below}", ABSOLUTE) == f"a=1; Path={below}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/lab", "/base/p/port/3000/lab"),
        ("/base/p/port/3000/lab", "/base/p/port/3000/lab"),
        ("http://localhost:3000/lab?x=1#y", "/base/p/port/3000/lab?x=1#y"),
        ("http://127.0.0.1:3000", "/base/p/port/3000/"),
        ("http://localhost:3001/lab", "http://localhost:3001/lab"),
        ("https://example.org/", "https://example.org/"),
        ("//example.org/x", "//example.org/x"),
        ("lab", "lab"),
        ("?x", "?x"),
        ("http://[", "http://["),
        ("http://localhost:x/", "http://localhost:x/"),
    ],
)
def test_location_is_mapped(value: str, expected: str) -> None:
    assert location(value, STRIPPED) == expected


def test_request_headers() -> None:
    sent = [
        ("Host", "lab.example:8888"),
        ("Cookie", 'username-lab="secret"; app=1; _xsrf=secret; other=secret'),
        ("Authorization", "token secret"),
        ("X-XSRFToken", "secret"),
        ("X-CSRFToken", "secret"),
        ("X-CSRFToken", "2|1a2b3c4d|5e6f|1700000000"),
        ("X-Auth-Request-Access-Token", "secret"),
        ("X-Amzn-Oidc-Accesstoken", "secret"),
        ("X-Goog-Iap-Jwt-Assertion", "secret"),
        ("X-Goog-Authenticated-User-Email", "secret"),
        ("Cf-Access-Jwt-Assertion", "secret"),
        ("X-Ms-Token-Aad-Access-Token", "secret"),
        ("X-Ms-Client-Principal", "secret"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Forwarded", "for=10.0.0.1"),
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "secret"),
        ("Keep-Alive", "5"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authorization", "secret"),
        ("Origin", "https://lab.example:8888"),
        ("Referer", "https://lab.example:8888/base/p/port/3000/x?token=secret&y=1"),
        ("Accept", "*/*"),
    ]
    got = to_remote(sent, STRIPPED, "lab.example:8888", {"app"})
    assert got == [
        ("Host", "localhost:3000"),
        ("Cookie", "app=1"),
        ("Origin", "http://localhost:3000"),
        ("Referer", "http://localhost:3000/x?y=1"),
        ("Accept", "*/*"),
    ]


def test_a_services_own_csrf_value_arrives() -> None:
    sent = [("Cookie", "csrftoken=its-own; _xsrf=secret"), ("X-CSRFToken", "its-own")]
    assert to_remote(sent, STRIPPED, "lab:1", {"csrftoken"})[1:] == [("Cookie", "csrftoken=its-own"), sent[1]]


def test_referer_from_elsewhere_and_foreign_origin_tell_nothing() -> None:
    sent = [("Referer", "http://lab:1/lab?token=secret"), ("Origin", "https://elsewhere.example")]
    assert to_remote(sent, STRIPPED, "lab:1", set()) == [("Host", "localhost:3000"), ("Origin", "null")]
    unreadable = [("Referer", "http://[/lab?token=secret"), ("Origin", "http://[")]
    assert to_remote(unreadable, STRIPPED, "lab:1", set()) == [("Host", "localhost:3000"), ("Origin", "null")]


def test_token_is_added_for_jupyter_only() -> None:
    assert ("Authorization", "token t") in to_remote([], Route("/p", 1, "t"), "h", set())
    assert to_remote([("Authorization", "Basic x")], STRIPPED, "h", set()) == [("Host", "localhost:3000")]
    assert "t0ken" not in repr(Route("/p", 1, "t0ken"))


def test_response_headers() -> None:
    sent = [
        ("Content-Type", "text/plain"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "_xsrf=1"),
        ("Location", "/x"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Clear-Site-Data", '"*"'),
        ("Access-Control-Allow-Origin", "*"),
        ("WWW-Authenticate", "Basic"),
        ("Alt-Svc", "h3"),
        ("Accept-CH", "Sec-CH-UA-Model"),
        ("Set-Login", "logged-in"),
        ("Service-Worker-Allowed", "/../../"),
    ]
    assert to_browser(sent, STRIPPED) == [
        ("Content-Type", "text/plain"),
        ("Set-Cookie", "a=1; Path=/base/p/port/3000/"),
        ("Location", "/base/p/port/3000/x"),
        ("Service-Worker-Allowed", "/base/p/port/3000/"),
    ]
    assert set_cookie_names(sent) == {"a"}


def test_token_parameter_is_cut_out_and_the_rest_stays_as_it_is() -> None:
    assert strip_token("a=%20&token=secret&b=+&%74oken=secret&c") == "a=%20&b=+&c"
    assert strip_token("") == ""


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/a b", []),
        ("GET", "/a\r\nX: 1", []),
        ("GET", "http://other/", []),
        ("GET\r\n", "/", []),
        ("GET", "/", [("X", "a\r\nY: b")]),
        ("GET", "/", [("X Y", "a")]),
        ("GET", "/", [("X", "\u2028")]),
    ],
)
def test_ambiguous_request_is_not_sent(method: str, target: str, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInput):
        http1.request_head(method, target, headers)


AMBIGUOUS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked",
    b"HTTP/1.1 200 OK\r\nContent-Length: +3",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0x3",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
    b"HTTP/1.1 200 OK\r\nX: a\r\n folded",
    b"HTTP/1.1 200 OK\r\nX : a",
    b"HTTP/1.1 200 OK\r\nX: a\nY: b",
    b"HTTP/1.1 200 OK\nX: a",
    b"HTTP/1.1 200 OK\r\nX: a\x00b",
    b"HTTP/1.1 200 OK\r\nno colon",
    b"HTTP/1.1 200 OK" + b"\r\nX: a" * 10_000,
    b"HTTP/2 200 OK",
    b"HTTP/1.1 2000 OK",
    b"SSH-2.0-OpenSSH_9.2",
    b"",
]


@pytest.mark.parametrize("head", AMBIGUOUS, ids=range(len(AMBIGUOUS)))
def test_ambiguous_response_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteBadAnswer):
        http1.response_head(head, "GET")


@pytest.mark.parametrize(
    ("head", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3", "GET", (False, 3, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\ncontent-length: 3", "GET", (False, 3, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3", "HEAD", (False, 0, True)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3", "GET", (False, 0, True)),
        (b"HTTP/1.1 204 No Content", "DELETE", (False, 0, True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", "GET", (True, None, True)),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 3", "GET", (False, 3, False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3", "GET", (False, 3, False)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive", "GET", (False, 3, True)),
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive",
            "GET",
            (True, None, False),
        ),
        (b"HTTP/1.1 200", "GET", (False, None, False)),
    ],
)
def test_framing(head: bytes, method: str, framing: tuple[bool, int | None, bool]) -> None:
    parsed = http1.response_head(head, method)
    assert (parsed.chunked, parsed.length, parsed.keep_alive) == framing


@pytest.mark.parametrize("line", [b"", b"-1", b"+1", b"0x1", b"1 2", b"g", b"1" * 16, b"1;\n"])
def test_malformed_chunk_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteBadAnswer):
        http1.chunk_size(line)


def test_chunk_extension_is_ignored() -> None:
    assert http1.chunk_size(b"fF ;name=value") == 255


PAGE = b"""<html><head>
<link rel="icon" href="/static/favicon.ico"><a href="//cdn.example/x">x</a><a href="https://example.org/">y</a>
<script id="jupyter-config-data" type="application/json">{"baseUrl": "/", "fullStaticUrl": "/static/lab",
 "fullSettingsUrl": "/lab/api/settings", "appUrl": "/lab", "token": "remote-secret",
 "wsUrl": "ws://x/", "n": 1}</script>
<script defer src='/static/lab/main.js?v=1'></script></head></html>"""


def test_jupyter_page_is_rewritten() -> None:
    page = rewrite(PAGE, "/p/jupyter").decode()
    assert '"baseUrl": "/p/jupyter/"' in page
    assert '"fullStaticUrl": "/p/jupyter/static/lab"' in page
    assert '"fullSettingsUrl": "/p/jupyter/lab/api/settings"' in page
    assert '"appUrl": "/lab"' in page
    assert '"token": ""' in page
    assert "remote-secret" not in page
    assert '"wsUrl": ""' in page
    assert 'href="/p/jupyter/static/favicon.ico"' in page
    assert "src='/p/jupyter/static/lab/main.js?v=1'" in page
    assert 'href="//cdn.example/x"' in page
    assert 'href="https://example.org/"' in page


CLASSIC = b"""<!DOCTYPE HTML><html><head>
<link rel="stylesheet" href="/static/nbclassic/style/style.min.css?v=1" type="text/css"/>
<script>
  document.nbclassicPath = '/nbclassic';
  require.config({ baseUrl: '/static/nbclassic/', waitSeconds: 30, paths: { 'auth/js/main': 'auth/js/main.min',
    custom : '/custom', 'custom-preload' : '/custom-preload', nbextensions : '/nbextensions',
    kernelspecs : '/kernelspecs', text: 'components/text' } });
</script></head>
<body class="notebook_app"
  data-jupyter-api-token="remote-secret"
data-base-url="/"
data-ws-url=""
data-notebook-path="a.ipynb" dir="ltr">
<a href="/lab?token=remote-secret" title='x'><img src='/logo.png?v=1'/></a>
<a href="/x?a=1&amp;token=remote-secret">y</a>
</body></html>"""


def test_classic_page_is_rewritten() -> None:
    page = rewrite(CLASSIC, "/a%40b/p/jupyter").decode()
    assert "remote-secret" not in page
    assert 'data-jupyter-api-token=""' in page
    assert 'data-base-url="/a%2540b/p/jupyter/"' in page  # nbclassic decodes it
    assert "nbclassicPath = '/nbclassic'" in page  # below the base URL
    assert "baseUrl: '/a%40b/p/jupyter/static/nbclassic/'" in page
    for name in ("custom ", "'custom-preload' ", "nbextensions ", "kernelspecs "):
        assert f"{name}: '/a%40b/p/jupyter/" in page
    assert "text: 'components/text'" in page
    assert 'href="/a%40b/p/jupyter/static/nbclassic/style/style.min.css?v=1"' in page
    assert 'href="/a%40b/p/jupyter/lab"' in page
    assert "src='/a%40b/p/jupyter/logo.png?v=1'" in page
    assert 'href="/a%40b/p/jupyter/x?a=1"' in page


def test_error_page_of_jupyter_loses_its_token() -> None:
    html = b'<link href="/x.css"><body class=""  \n  data-jupyter-api-token="remote-secret"   dir="ltr">'
    page = b'<link href="/p/x.css"><body class=""  \n  data-jupyter-api-token=""   dir="ltr">'
    assert rewrite(html, "/p") == page


@pytest.mark.parametrize(
    "page",
    [
        b'<a href="/x">no config</a>',
        b'<body data-base-url="/elsewhere/"><a href="/x">no config</a>',
        b'<script id="jupyter-config-data">not json</script><a href="/x">',
        b'<script id="jupyter-config-data">[1]</script><a href="/x">',
        b'\xff<script id="jupyter-config-data">{"baseUrl": "/"}</script>',
    ],
)
def test_any_other_page_stays_as_it_is(page: bytes) -> None:
    assert rewrite(page, "/p") == page


def test_a_config_value_cannot_end_its_script() -> None:
    page = rewrite(b'<script id="jupyter-config-data">{"baseUrl": "/", "x": "<\\/script><b>"}</script>', "/p")
    assert page.count(b"</script>") == 1


def test_kernelspec_logos() -> None:
    body = b'{"default": "x", "kernelspecs": {"x": {"resources": {"logo-svg": "/kernelspecs/x/logo.svg"}}}}'
    assert b'"/p/kernelspecs/x/logo.svg"' in rewrite_kernelspecs(body, "/p")
    assert rewrite_kernelspecs(b"[]", "/p") == b"[]"


def test_compressed_pages() -> None:
    assert decode(gzip.compress(PAGE), "gzip") == PAGE
    assert decode(gzip.compress(PAGE[:100]) + gzip.compress(PAGE[100:]), "gzip") == PAGE
    assert decode(zlib.compress(PAGE), "deflate") == PAGE
    raw = zlib.compressobj(wbits=-15)
    assert decode(raw.compress(PAGE) + raw.flush(), "deflate") == PAGE
    assert decode(PAGE, "identity") == PAGE
    assert decode(brotli.compress(PAGE), "br") == PAGE
    broken = [
        (b"junk", "gzip"),
        (b"junk", "deflate"),
        (b"\xff\xff", "deflate"),
        (gzip.compress(PAGE)[:-9], "gzip"),
        (b"junk" * 10, "br"),
        (brotli.compress(PAGE)[:-9], "br"),
        (PAGE, "zstd"),
        (PAGE, "gzip, br"),
    ]
    for body, coding in broken:
        with pytest.raises(RemoteBadAnswer):
            decode(body, coding)
    bomb = bytes(64 << 20)
    member = gzip.compress(bytes(3 << 20))
    for body, coding in (
        (gzip.compress(bomb), "gzip"),
        (member * 2, "gzip"),
        (gzip.compress(b"") * 1000, "gzip"),  # each would have all that follows it copied
        (brotli.compress(bomb, quality=1), "br"),
    ):
        with pytest.raises(RemoteBadAnswer, match="too large"):
            decode(body, coding)


def test_brotli_page_without_brotli_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(RemoteBadAnswer) as caught:
        decode(brotli.compress(PAGE), "br")
    assert "brotli" in caught.value.hint
