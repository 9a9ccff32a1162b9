"""The words behind the magic: parsing, help, and never a traceback of ours."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterlab_clearml_session.errors import BadArguments
from jupyterlab_clearml_session.launch_spec import LaunchSpec
from jupyterlab_clearml_session.magic.arguments import Parsed, find_command, overview, parse, split, usage
from jupyterlab_clearml_session.magic.commands import commands
from jupyterlab_clearml_session.magic.launch_options import NO_PLACE, launch_body, launch_options


def parsed(line: str) -> Parsed:
    words = split(line)
    command = find_command(commands(), words[0])
    return parse(command, words[1:], NO_PLACE)


@pytest.mark.parametrize(
    ("line", "values", "words"),
    [
        ("list -a --ended", {"all_users": True, "ended": True}, []),
        ("list --all_users", {"all_users": True}, []),
        ("launch --queue gpu --packages torch==1.7 tqdm --wait",
         {"queue": "gpu", "packages": ["torch==1.7", "tqdm"], "wait": True}, []),
        ("launch --packages a --packages b", {"packages": ["a", "b"]}, []),
        ("launch --queue='my queue'", {"queue": "my queue"}, []),
        ("launch --docker-args '-e A=1 -it'", {"docker_args": "-e A=1 -it"}, []),
        ("launch --docker-args -it", {"docker_args": "-it"}, []),
        ("launch --git-credentials", {"git_credentials": True}, []),
        ("launch --git-credentials false", {"git_credentials": False}, []),
        ("launch --vscode-server=No", {"vscode_server": False}, []),
        ("launch --jupyter-lab --wait", {"jupyter_lab": True, "wait": True}, []),
        ("launch --sess demo", None, []),
        ("launch --session-n demo", {"name": "demo"}, []),
        ("launch --name demo --debug 1f", {"name": "demo", "debugging_session": "1f"}, []),
        ("launch --idle-timeout 30", {"idle_timeout_min": 30.0}, []),
        ("launch --init-script", {"init_script": None}, []),
        ("launch --env A=1 B=2", {"env": ["A=1", "B=2"]}, []),
        ("attach Interactive Session", {}, ["Interactive", "Session"]),
        ("attach -- --odd", {}, ["--odd"]),
        ("log 1f -n 5", {"lines": 5}, ["1f"]),
        ("run --in a,b --out c -k ir", {"in": "a,b", "out": "c", "kernel": "ir"}, []),
        ("run far --in a, b ,c --out d away", {"in": "a,b,c", "out": "d"}, ["far", "away"]),
        ("run --in a, --new", {"in": "a,", "new": True}, []),
        ("info --id abc", {"id": "abc"}, []),
        ("launch --queue --help", {"help": True}, []),
    ],
)  # fmt: skip
def test_parses_as_the_command_line_does(line: str, values: dict[str, Any] | None, words: list[str]) -> None:
    if values is None:
        with pytest.raises(BadArguments, match="could be any of --session-name, --session-tags"):
            parsed(line)
        return
    assert (parsed(line).values, parsed(line).words) == (values, words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lanch", "There is no subcommand 'lanch'. Did you mean 'launch'?"),
        ("list --endde", "'list' has no option --endde. Did you mean --ended?"),
        ("launch --queue", "--queue needs a value."),
        ("launch --queue --docker x", "--queue needs a value."),
        ("launch --docker-network bridge", "--docker-network is one of host, port, none, not 'bridge'."),
        ("launch --public-ip=maybe", "--public-ip is true or false, not 'maybe'."),
        ("launch --wait=yes", "--wait takes no value."),
        ("launch --idle-timeout soon", "--idle-timeout needs a number, not 'soon'."),
        ("launch --idle-timeout nan", "--idle-timeout cannot be nan."),
        ("launch --verbose", "--verbose has no place here."),
        ("launch 'a", "A quotation mark is not closed in: launch 'a"),
        ("queues now", "'queues' takes no words without an option: 'now'."),
    ],
)
def test_says_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(BadArguments) as caught:
        parsed(line)
    assert caught.value.message == message
    assert caught.value.hint or "quotation" in message


def test_launch_has_every_option_of_the_spec_under_the_long_name_of_the_command_line() -> None:
    dests = {option.dest for option in launch_options()}
    assert set(LaunchSpec().to_json(include_secrets=True)) <= dests
    names = {name for option in launch_options() for name in option.names}
    import clearml_session

    upstream = (Path(clearml_session.__file__).parent / "__main__.py").read_text(encoding="utf-8")
    theirs = set(re.findall(r"parser\.add_argument\(\s*['\"](--[a-z-]+)['\"]", upstream))
    assert len(theirs) > 35
    assert theirs - names - set(NO_PLACE) == set()


@pytest.mark.parametrize("name", list(commands()))
def test_help_names_every_option(name: str) -> None:
    text = usage(commands()[name])
    assert text.startswith(f"%clearml_session {name}")
    for option in commands()[name].options:
        assert option.names[0] in text
    assert max(len(line) for line in text.splitlines()) <= 116
    assert f"  {name} " in overview(commands())


def test_a_launch_body_is_a_launch_spec(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("numpy\n")
    (tmp_path / "i.sh").write_text("echo hi\n")
    line = (
        "launch --queue q --name demo --tags a b --requirements r.txt --init-script i.sh --upload-files r.txt "
        "--env A=1 B=x=y --skip-docker-network --clone-repo https://x.org/r.git --clone-branch main "
        "--password --wait --timeout 5"
    )
    body = launch_body(parsed(line).values, lambda: "secret-word", tmp_path)
    assert body.pop("launched_by") == "magic"
    spec = LaunchSpec.from_json(body)
    assert spec.requirements == "numpy\n"
    assert spec.init_script == "echo hi\n"
    assert spec.upload_files == (str(tmp_path / "r.txt"),)
    assert spec.env == {"A": "1", "B": "x=y"}
    assert (spec.docker_network, spec.name, spec.tags, spec.password) == (
        "none",
        "demo",
        ("a", "b"),
        "secret-word",
    )
    assert spec.clone_repo is not None
    assert spec.clone_repo.branch == "main"
    assert set(body) == {"queue", "name", "tags", "requirements", "init_script", "upload_files", "env",
                         "docker_network", "clone_repo", "password"}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("launch --requirements gone.txt", "--requirements: there is no 'gone.txt' in "),
        ("launch --init-script .", "--init-script: '.' cannot be read: "),
        ("launch --env A", "--env needs NAME=VALUE, not 'A'."),
        ("launch --clone-branch b", "--clone-branch and --clone-commit need --clone-repo."),
        ("launch --requirements ~nobody-of-this-name/r.txt", "cannot be read"),
    ],
)
def test_a_launch_body_that_cannot_be_made(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadArguments, match=re.escape(message)):
        launch_body(parsed(line).values, lambda: "", tmp_path)


_WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([name for command in commands().values() for o in command.options for name in o.names]),
    st.sampled_from(
        ["--", "-", "=", "--=", "'", '"', "\\", "true", "1f", "$x", "{x}", "\x00", "a,b", "-n", "٣"]
    ),
)


@given(
    st.sampled_from([*commands(), "", "what"]),
    st.lists(_WORDS, max_size=6),
    st.sampled_from([" ", "=", "\n"]),
)
def test_any_line_parses_or_is_a_typed_error(name: str, words: list[str], between: str) -> None:
    line = f"{name} " + between.join(words)
    with suppress(BadArguments):
        given_words = split(line)
        if given_words:
            result = parse(find_command(commands(), given_words[0]), given_words[1:], NO_PLACE)
            assert set(result.values) <= {"help", *(o.dest for o in commands()[given_words[0]].options)}
