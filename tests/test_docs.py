"""The documents name what there is: calls of the REST API, settings, and only files that a reader can open."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from traitlets import TraitType
from traitlets.config import Configurable

from jupyterlab_clearml_session.api.handlers import UnknownHandler, handlers
from jupyterlab_clearml_session.backend.client import ClearMLClient
from jupyterlab_clearml_session.extension import ClearMLSessionExtension
from jupyterlab_clearml_session.sessions import ClearMLSessionManager

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


def test_every_setting_is_documented() -> None:
    document = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
    kinds: list[type[Configurable]] = [ClearMLClient, ClearMLSessionManager, ClearMLSessionExtension]
    names = [f"{kind.__name__}.{name}" for kind in kinds for name in _own_settings(kind)]
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in document] == []


def test_no_setting_shares_its_section_with_one_of_jupyter_s() -> None:
    sections: dict[str, set[str]] = {}
    waiting: list[type] = [Configurable]
    while waiting:
        kind = waiting.pop()
        sections.setdefault(kind.__name__, set()).add(kind.__module__.partition(".")[0])
        waiting += kind.__subclasses__()
    ours = {name: owners for name, owners in sections.items() if "jupyterlab_clearml_session" in owners}
    assert [name for name, owners in ours.items() if len(owners) > 1] == []


def _own_settings(kind: type[Configurable]) -> list[str]:
    return [
        name
        for name, trait in vars(kind).items()
        if isinstance(trait, TraitType) and trait.metadata.get("config")
    ]
