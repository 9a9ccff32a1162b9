"""Tab completion, through IPython's own completer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jupyterlab_clearml_session.magic import ClearMLSessionMagics
from jupyterlab_clearml_session.magic.completion import Completer

from .magic_fixture import FakeJupyter, fake_fixture, magics_fixture, session, shell_fixture  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("magics")


def completed(shell: Any, text: str) -> list[str]:
    """Return what the text becomes with each of the completions offered."""
    reply = shell.Completer
    from IPython.core.completer import provisionalcompleter

    with provisionalcompleter():
        return [text[: c.start] + c.text for c in reply.completions(text, len(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%clearml_session la", ["%clearml_session launch"]),
        ("s = %clearml_session sh", ["s = %clearml_session shutdown"]),
        ("%%clearml_session ru", ["%%clearml_session run"]),
        ("%clearml_session launch --docker-n", ["%clearml_session launch --docker-network"]),
        ("%clearml_session launch --docker-network=p", ["%clearml_session launch --docker-network=port"]),
        ("%clearml_session launch --queue g", ["%clearml_session launch --queue gpu"]),
        ("%clearml_session launch --queue=g", ["%clearml_session launch --queue=gpu"]),
        (
            "%clearml_session launch --packages x --preset m",
            ["%clearml_session launch --packages x --preset mine"],
        ),
        ("%clearml_session attach sess", ['%clearml_session attach "session 1"']),
        ('%clearml_session attach "session', ['%clearml_session attach "session 1"']),
        ('%clearml_session attach "session 1', ['%clearml_session attach "session 1"']),
        ("%clearml_session attach session ", ["%clearml_session attach session 1"]),
        ("%clearml_session open session 1 v", ["%clearml_session open session 1 vscode"]),
        (
            "%clearml_session launch --continue-session ",
            ["%clearml_session launch --continue-session " + session(2)["id"]],
        ),
        ("%clearml_session attach 0000", ["%clearml_session attach " + session(1)["id"]]),
        ("%clearml_session open te", ["%clearml_session open terminal"]),
        ("%%clearml_session run --kernel p", ["%%clearml_session run --kernel python3"]),
        ("%%clearml_session run --in alpha,be", ["%%clearml_session run --in alpha,beta"]),
        ("%clearml_session log -n 5 --he", ["%clearml_session log -n 5 --help"]),
    ],
)
def test_completes(text: str, expected: list[str], shell: Any, fake: FakeJupyter) -> None:
    fake.active, fake.ended = [session(1)], [session(2)]
    fake.queues = [{"id": "q", "name": "gpu", "length": 0, "tags": [], "workers": []}]
    fake.presets = {"presets": {"mine": {}}, "last": {}}
    shell.user_ns.update(alpha=1, beta=2)
    assert completed(shell, text) == expected


def test_files(shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reqs").mkdir()
    (tmp_path / "reqs" / "all of.txt").touch()
    assert completed(shell, "%clearml_session launch --requirements re") == [
        "%clearml_session launch --requirements reqs/"
    ]
    assert completed(shell, "%clearml_session launch --requirements reqs/a") == [
        '%clearml_session launch --requirements "reqs/all of.txt"'
    ]


@pytest.mark.parametrize(
    "text",
    [
        "%clearml_session nonsense x",
        "%clearml_session launch --requirements nowhere/a",
        "%clearml_session launch --requirements ~nobody-of-this-name/a",
        "%clearml_session list x",
    ],
)
def test_nothing_to_offer(text: str, magics: ClearMLSessionMagics) -> None:
    found = Completer(magics.client, list).complete(text)
    assert found is not None
    assert found[1] == []


def test_python_is_completed_as_before(shell: Any) -> None:
    shell.user_ns["some_long_name"] = 1
    assert "some_long_name" in completed(shell, "some_lo")


def test_the_server_is_asked_once_and_its_failure_is_no_error(
    magics: ClearMLSessionMagics, fake: FakeJupyter
) -> None:
    fake.answers["GET", "clearml-session/api/queues"] = (503, {"message": "no"})
    completer = Completer(magics.client, list)
    for _ in range(3):
        assert completer.complete("%clearml_session launch --queue ") == ("", [])
    assert len(fake.asked) == 1


def test_other_lines_are_not_ours(magics: ClearMLSessionMagics) -> None:
    completer = Completer(magics.client, list)
    assert completer.complete("%clearml_session") is None
    assert completer.complete("x = clearml_session la") is None
