"""What the magics show: pure functions from REST data to plain text and to HTML.

HTML is built by `tag` alone, which escapes all text and attributes. Colours are JupyterLab's theme variables with
fall-backs for other front ends; nothing is said by colour only.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

SHORT = 8
"""Characters of an id that are shown."""

_COLOURS = {
    "ready": "var(--jp-success-color1, #2e7d32)",
    "failed": "var(--jp-error-color1, #c62828)",
    "reconnecting": "var(--jp-warn-color1, #b26a00)",
    "ended": "var(--jp-ui-font-color2, #757575)",
}
_OTHER_COLOUR = "var(--jp-info-color1, #0277bd)"

Row = Sequence[Any]

_LINE = 160
"""Characters of a log line that fit beside the progress."""


class Markup(str):
    """HTML that is safe as it is."""

    __slots__ = ()


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """Return an element; text and attribute values are escaped, `Markup` is kept."""
    inner = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{inner}</{name}>")


def link(text: str, url: str | None) -> Markup:
    """Return a link that opens in a new tab; plain text where the address is not http(s) or a path."""
    if not url or not _is_web(url):
        return Markup(html.escape(text))
    return tag("a", text, href=url, target="_blank", rel="noopener noreferrer")


def command_button(text: str, command: str, session_id: str) -> Markup:
    """Return a button that runs a command of the JupyterLab extension; it does nothing elsewhere."""
    return tag(
        "button",
        text,
        type="button",
        class_="jp-mod-styled",
        data_commandlinker_command=command,
        data_commandlinker_args=json.dumps({"id": session_id}),
    )


def phase_badge(session: Mapping[str, Any]) -> Markup:
    colour = _COLOURS.get(str(session.get("phase")), _OTHER_COLOUR)
    return tag("strong", session.get("phase", ""), style=f"color: {colour}")


def text_table(heads: Sequence[str], rows: Sequence[Row], empty: str) -> str:
    """Return a table of aligned columns, or ``empty`` where there are no rows."""
    if not rows:
        return empty
    cells = [[_flat(str(cell)) for cell in row] for row in rows]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    lines = [[head.upper() for head in heads], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def html_table(heads: Sequence[str], rows: Sequence[Row], empty: str) -> Markup:
    """Return a table; cells may be `Markup`."""
    if not rows:
        return tag("p", empty)
    head = tag("tr", *(tag("th", each, scope="col", style="text-align: left") for each in heads))
    body = [tag("tr", *(tag("td", cell, style="text-align: left") for cell in row)) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", *body))


def html_facts(rows: Sequence[tuple[str, Any]]) -> Markup:
    """Return a table of two columns with row heads."""
    made = [
        tag(
            "tr",
            tag("th", key, scope="row", style="text-align: left"),
            tag("td", value, style="text-align: left"),
        )
        for key, value in rows
    ]
    return tag("table", tag("tbody", *made))


def text_facts(rows: Sequence[tuple[str, Any]]) -> str:
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key:<{width}}  {_flat(str(value))}" for key, value in rows)


# -- sessions ------------------------------------------------------------------------------------------------

SESSION_HEADS = ("id", "name", "phase", "", "queue", "since")


def session_row(session: Mapping[str, Any], now: datetime | None = None) -> Row:
    """Return a session's row of the plain table."""
    return (
        short_id(session),
        session.get("name", ""),
        session.get("phase", ""),
        _text_beyond_phase(session),
        (session.get("queue") or {}).get("name", ""),
        since(session.get("phase_since"), now),
    )


def session_html_row(session: Mapping[str, Any], now: datetime | None = None) -> Row:
    """Return a session's row of the HTML table: the same, with links."""
    short, name, _, text, queue, ago = session_row(session, now)
    return (tag("code", short), link(name, session.get("web_url")), phase_badge(session), text, queue, ago)


def session_facts(session: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what `info` shows of a session; parts that are not there are left out."""
    queue, user, tunnel = (session.get(key) or {} for key in ("queue", "user", "tunnel"))
    place = f", place {queue['position']}" if queue.get("position") else ""
    rtt = f", {tunnel['rtt_ms']:.0f} ms" if isinstance(tunnel.get("rtt_ms"), (int, float)) else ""
    ssh = (session.get("endpoints") or {}).get("ssh") or {}
    facts = [
        ("id", session.get("id")),
        ("name", session.get("name")),
        ("phase", _joined(session.get("phase"), session.get("phase_text"), ": ")),
        ("ClearML status", session.get("status")),
        ("queue", f"{queue['name']}{place}" if queue.get("name") else None),
        ("project", session.get("project")),
        ("user", user.get("name") or user.get("id")),
        ("tags", ", ".join(session.get("tags") or ())),
        ("comment", session.get("comment")),
        ("created", _clock(session.get("created"))),
        ("started", _clock(session.get("started"))),
        ("ended", _clock(session.get("ended"))),
        ("attached", "yes" if session.get("attached") else "no"),
        (
            "tunnel",
            f"{tunnel['state']}, host key {tunnel.get('host_key')}{rtt}" if tunnel.get("state") else None,
        ),
        ("SSH", f"{ssh.get('user')}@{ssh.get('host')} port {ssh.get('port')}" if ssh else None),
        ("kernels", ", ".join(session.get("kernelspecs") or ())),
        ("debugs Task", session.get("parent")),
        ("launched by", session.get("launched_by")),
        ("error", (session.get("error") or {}).get("message")),
        ("hint", (session.get("error") or {}).get("hint")),
        ("in ClearML", session.get("web_url")),
    ]
    return [(key, str(value)) for key, value in facts if value]


def short_id(session: Mapping[str, Any]) -> str:
    """Return the beginning of a session's id, by which it can be named."""
    return str(session["id"])[:SHORT]


def named(session: Mapping[str, Any]) -> str:
    """Return how messages name a session."""
    return f"{session.get('name')!r} ({short_id(session)})"


def session_text(session: Mapping[str, Any]) -> str:
    """Return one line."""
    return f"{session.get('name')} ({short_id(session)}): {_phase_words(session)}"


def session_html(session: Mapping[str, Any]) -> Markup:
    return tag(
        "div",
        link(str(session.get("name")), session.get("web_url")),
        " ",
        tag("code", short_id(session)),
        " ",
        phase_badge(session),
        " ",
        _text_beyond_phase(session),
    )


def progress_text(session: Mapping[str, Any], seconds: float) -> str:
    """Return how far a session has come, in one line."""
    progress = session.get("progress") or {}
    steps = f"[{progress['step']}/{progress['steps']}] " if progress.get("steps") else ""
    last = f" | {_flat(str(progress['last_line']))[:_LINE]}" if progress.get("last_line") else ""
    return f"{steps}{session.get('name')}: {_phase_words(session)}, {seconds:.0f} s{last}"


def progress_html(session: Mapping[str, Any], seconds: float) -> Markup:
    progress = session.get("progress") or {}
    parts: list[Any] = [session_html(session)]
    if progress.get("steps"):
        label = f"step {progress['step']} of {progress['steps']}"
        bar = tag("progress", label, value=progress["step"], max=progress["steps"], aria_label=label)
        parts.append(tag("div", bar, f" {label}, {seconds:.0f} s"))
    if progress.get("last_line"):
        parts.append(tag("pre", str(progress["last_line"]), style="opacity: 0.7; white-space: pre-wrap"))
    return tag("div", *parts)


def since(moment: Any, now: datetime | None = None) -> str:
    """Return how long ago an ISO 8601 moment is, as "5 min"; empty where it is none."""
    then = _moment(moment)
    if then is None:
        return ""
    seconds = max(0.0, ((now or datetime.now(timezone.utc)) - then).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Return a number of bytes as "1.5 MB" (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _clock(moment: Any) -> str:
    """Return an ISO 8601 moment in UTC to the second; empty where it is none."""
    then = _moment(moment)
    return "" if then is None else f"{then.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _moment(moment: Any) -> datetime | None:
    try:
        then = datetime.fromisoformat(str(moment).replace("Z", "+00:00"))
    except ValueError:
        return None
    return then if then.tzinfo is not None else then.replace(tzinfo=timezone.utc)


def _phase_words(session: Mapping[str, Any]) -> str:
    return _joined(session.get("phase"), _text_beyond_phase(session), ", ")


def _text_beyond_phase(session: Mapping[str, Any]) -> str:
    text = str(session.get("phase_text") or "")
    return "" if text.lower() == session.get("phase") else text


def _joined(first: Any, second: Any, between: str) -> str:
    return between.join(str(part) for part in (first, second) if part)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _is_web(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") or (
        not parts.scheme and not parts.netloc and url.startswith("/")
    )
