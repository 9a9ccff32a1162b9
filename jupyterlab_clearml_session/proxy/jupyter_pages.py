"""The rewrites: a remote Jupyter believes to be at ``/`` and is served below a path of ours.

The pages of JupyterLab and Notebook carry a JSON blob, ``<script id="jupyter-config-data">``, from which their code
takes all addresses. Those of nbclassic, and those that tell an error, have attributes of
``<body>`` instead, one of which is the token. Pages with neither are left alone, byte for byte. In the API only the
list of kernelspecs holds absolute paths for the browser (their logos).
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from typing import Any
from urllib.parse import quote

from ..errors import RemoteBadAnswer
from .headers import strip_token

MAX_PAGE = 4 * 1024 * 1024
"""Larger HTML is no page of Jupyter's and is passed through."""

MAX_MEMBERS = 100
"""Of a page in gzip. Each one has what follows it copied, so that many small ones would take minutes."""

_BROKEN = "The remote Jupyter sent a page with broken compression."
_TOO_LARGE = "The remote Jupyter sent a page that is too large or broken off."

_CONFIG = re.compile(
    r"(<script\b[^>]*\bid=[\"']?jupyter-config-data[\"']?[^>]*>)(.*?)(</script>)", re.DOTALL | re.IGNORECASE
)
_BODY_TOKEN = re.compile(r"(<body\b[^>]*?\sdata-jupyter-api-token=)([\"'])[^\"'>]*\2")
_BODY_BASE = re.compile(r"(<body\b[^>]*?\sdata-base-url=)([\"'])/\2")
_REQUIRE_PATH = re.compile(r"(\b(?:baseUrl|custom|custom-preload|nbextensions|kernelspecs)'?\s*:\s*')/(?!/)")
"""nbclassic's ``require.config``, in a script of the page."""

_TOKEN_NAMES = frozenset({"token", "amp;token"})
_ABSOLUTE = re.compile(r"(<[^>]*?\s(?:src|href)=)([\"'])/(?!/)([^\"']*)\2", re.IGNORECASE)


def rewrite(html: bytes, prefix: str) -> bytes:
    """Return a page of a Jupyter at ``/`` such that it works at ``<prefix>/``, without its token."""
    try:
        text = html.decode("utf-8")
    except UnicodeDecodeError:
        return html
    match = _CONFIG.search(text)
    if match is None:
        return _rewrite_classic(text, prefix).encode()
    try:
        config = json.loads(match[2])
    except ValueError:
        return html
    if not isinstance(config, dict) or not isinstance(config.get("baseUrl"), str):
        return html
    blob = json.dumps(_rewrite_config(config, prefix)).replace("</", "<\\/")
    before, after = text[: match.start()], text[match.end() :]
    return "".join((_prefixed(before, prefix), match[1], blob, match[3], _prefixed(after, prefix))).encode()


def rewrite_kernelspecs(body: bytes, prefix: str) -> bytes:
    """Return the answer of ``/api/kernelspecs`` with the paths of the logos below `prefix`."""
    try:
        model = json.loads(body)
        for spec in model["kernelspecs"].values():
            resources = spec["resources"]
            for name, path in resources.items():
                if path.startswith("/"):
                    resources[name] = prefix + path
    except (ValueError, KeyError, TypeError, AttributeError):
        return body  # not what Jupyter answers: none of our business
    return json.dumps(model).encode()


def decode(body: bytes, encoding: str) -> bytes:
    """Undo a ``Content-Encoding`` that a remote uses although it was asked not to.

    Raises
    ------
    RemoteBadAnswer
        The encoding is none that can be undone here, or the data are broken or far too large.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding == "br":
        return _decode_brotli(body)
    # Some servers leave out the wrapper that "deflate" stands for.
    windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (47, -15)}.get(coding)
    if windows is None:
        raise RemoteBadAnswer(f"The remote Jupyter sent a page with the unknown encoding {coding[:40]!r}.")
    for window in windows:
        with contextlib.suppress(zlib.error):
            return _inflate(body, window)
    raise RemoteBadAnswer(_BROKEN)


def _rewrite_config(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(config)
    for name, value in config.items():
        is_address = name == "baseUrl" or (name.startswith("full") and name.endswith("Url"))
        if is_address and isinstance(value, str) and value.startswith("/"):
            result[name] = prefix + value
    result["wsUrl"] = ""
    result["token"] = ""
    return result


def _rewrite_classic(text: str, prefix: str) -> str:
    if not _BODY_TOKEN.search(text) and not _BODY_BASE.search(text):
        return text
    text = _BODY_TOKEN.sub(r"\1\2\2", text)
    text = _BODY_BASE.sub(lambda match: f"{match[1]}{match[2]}{quote(prefix)}/{match[2]}", text)
    text = _REQUIRE_PATH.sub(lambda match: f"{match[1]}{prefix}/", text)
    return _prefixed(text, prefix)


def _prefixed(text: str, prefix: str) -> str:
    def replace(match: re.Match[str]) -> str:
        path, mark, query = match[3].partition("?")
        query = strip_token(query, names=_TOKEN_NAMES)
        return f"{match[1]}{match[2]}{prefix}/{path}{mark if query else ''}{query}{match[2]}"

    return _ABSOLUTE.sub(replace, text)


def _inflate(body: bytes, window: int) -> bytes:
    page = b""
    for _ in range(MAX_MEMBERS):  # of gzip there may be several
        inflater = zlib.decompressobj(window)
        page += inflater.decompress(body, MAX_PAGE)
        if inflater.unconsumed_tail or not inflater.eof or len(page) > MAX_PAGE:
            break
        body = inflater.unused_data
        if not body:
            return page
    raise RemoteBadAnswer(_TOO_LARGE)


def _decode_brotli(body: bytes) -> bytes:
    try:
        import brotli

        decoder = brotli.Decompressor()
        page: bytes = decoder.process(body, output_buffer_limit=MAX_PAGE)
    except (ImportError, TypeError) as exc:  # not there, or too old to know the limit
        raise RemoteBadAnswer(
            "The remote Jupyter compresses its pages with Brotli although it was asked not to.",
            hint="Install the Python package 'brotli' (1.2 or newer) beside JupyterLab.",
        ) from exc
    except brotli.error:
        raise RemoteBadAnswer(_BROKEN) from None
    if not decoder.is_finished():
        raise RemoteBadAnswer(_TOO_LARGE)
    return page
