"""The documents name what there is: every call of the REST API, and only files that a reader can open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jupyterlab_clearml_session.api.handlers import UnknownHandler, handlers

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    *(ROOT / "pyproject.toml", ROOT / "Makefile"),
    *sorted((ROOT / "jupyterlab_clearml_session").rglob("*.py")),
    *sorted((ROOT / "labextension" / "src").rglob("*.ts*")),
    *sorted((ROOT / "tests").rglob("*.py")),
]


def _calls() -> list[str]:
    """Return the calls of the REST API as the document writes them: "GET sessions/<id>/log"."""
    found = []
    for pattern, handler in handlers:
        if handler is UnknownHandler:
            continue
        path = pattern.removeprefix("/clearml-session/api/").replace(r"(?P<session_id>[^/]+)", "<id>")
        actions = re.search(r"\(\?P<action>([\w|]+)\)", path)
        paths = [path.replace(actions[0], each) for each in actions[1].split("|")] if actions else [path]
        for each in paths:
            named = re.sub(r"\(\?P(<\w+>)[^)]*\)", r"\1", each)
            verbs = [verb for verb in ("get", "post", "put", "delete") if verb in vars(handler)]
            found += [f"{verb.upper()} {named}" for verb in verbs]
    return found


@pytest.mark.parametrize("call", _calls())
def test_every_call_is_documented(call: str) -> None:
    assert f"`{call}`" in (ROOT / "docs" / "rest-api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_comments_send_a_reader_only_to_documents_that_are_there() -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in re.findall(r"docs/[\w-]+\.md|\b[A-Z_]+\.md", path.read_text(encoding="utf-8"))
    }
    assert sorted((path, name) for path, name in named if not (ROOT / name).exists()) == []
