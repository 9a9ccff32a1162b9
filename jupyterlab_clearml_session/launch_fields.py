"""Checks of single launch options: JSON value in, clean value out, or `InvalidInput` naming the field.

Each check is called as ``check(value, field_name)``. Nothing here touches the network or the disk.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import InvalidInput
from .models import TASK_ID

Check = Callable[[Any, str], Any]

MAX_LINE = 4096
MAX_TEXT = 256 * 1024
MAX_DIFF = 5 * 1024 * 1024
MAX_ITEMS = 1000

_DOCKER_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_USERNAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_VSCODE_VERSION = re.compile(r"[0-9A-Za-z._-]+(:[0-9A-Za-z._-]+)?")
_VSCODE_EXTENSION = re.compile(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)+(@[0-9A-Za-z._-]+)?")
_GIT_REF = re.compile(r"(?!-)(?!.*(\.\.|//|@\{))[^\s~^:?*\[\\\x00-\x1f\x7f]{1,255}(?<![/.])")
_GIT_URL = re.compile(r"(https?|ssh|git|file)://\S+|[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:\S+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_URL_REQUIREMENT = re.compile(r"((git|hg|svn|bzr)\+)?(https?|ssh|file|git)://\S+")
_PIP_OPTION = re.compile(
    r"(--(extra-index-url|index-url|find-links|trusted-host|no-binary|only-binary)|-i|-f)[ =]\S+|--pre"
)
_PIP_EDITABLE = re.compile(r"(-e|--editable)[ =]+(?P<target>\S+)")
_PIP_FILE = re.compile(r"(-r|-c|--requirement|--constraint)\b")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def line(
    *, least: int = 0, most: int = MAX_LINE, pattern: re.Pattern[str] | None = None, what: str = ""
) -> Check:
    """Return a check for one line of text, stripped; empty is allowed where ``least`` is 0."""

    def check(value: Any, name: str) -> str:
        text = _string(value, name).strip()
        if _CONTROL.search(text):
            raise InvalidInput(f"'{name}' must be a single line without control characters.", field=name)
        if len(text) < least:
            raise InvalidInput(f"'{name}' needs at least {least} characters.", field=name)
        if len(text) > most:
            raise InvalidInput(f"'{name}' is too long: {len(text)} characters, at most {most}.", field=name)
        if text and pattern is not None and not pattern.fullmatch(text):
            raise InvalidInput(f"'{name}' is not {what}.", field=name)
        return text

    return check


def text(most: int = MAX_TEXT) -> Check:
    """Return a check for text of any number of lines, kept as it is."""

    def check(value: Any, name: str) -> str:
        found = _string(value, name)
        if "\0" in found:
            raise InvalidInput(f"'{name}' must not hold NUL characters.", field=name)
        if len(found) > most:
            raise InvalidInput(f"'{name}' is too long: {len(found)} characters, at most {most}.", field=name)
        return found

    return check


def flag(value: Any, name: str) -> bool:
    """Check a JSON boolean."""
    if not isinstance(value, bool):
        raise InvalidInput(f"'{name}' must be true or false.", field=name)
    return value


def one_of(*choices: str) -> Check:
    """Return a check for one of some words."""

    def check(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidInput(f"'{name}' must be one of {', '.join(choices)}.", field=name)
        return value

    return check


def lines(item: Check) -> Check:
    """Return a check for a list of texts, each one checked by ``item``; empty ones are dropped."""

    def check(value: Any, name: str) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InvalidInput(f"'{name}' must be a list of texts.", field=name)
        if len(value) > MAX_ITEMS:
            raise InvalidInput(f"'{name}' has {len(value)} entries, at most {MAX_ITEMS}.", field=name)
        return tuple(found for found in (item(entry, name) for entry in value) if found)

    return check


def minutes(value: Any, name: str) -> float:
    """Check a number of minutes, 0 (never) to one year."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInput(f"'{name}' must be a number of minutes.", field=name)
    if not 0 <= value <= 525_600:
        raise InvalidInput(f"'{name}' must lie between 0 (never) and 525600 (a year).", field=name)
    return value


task_id = line(pattern=TASK_ID, what="the id of a ClearML Task (32 characters 0-9 and a-f)")
username = line(pattern=_USERNAME, what="a user name")
vscode_version = line(pattern=_VSCODE_VERSION, what="a version like '4.96.2' or '4.96.2:2024.22.1'")


def base_task_id(value: Any, name: str) -> str:
    """Check a Task id; the command line's word ``none`` means that there is none."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return ""
    return str(task_id(value, name))


def docker(value: Any, name: str) -> str:
    """Check a docker image, optionally followed by arguments as the command line allows."""
    image = str(line()(value, name))
    name_of_image = image.partition(" ")[0]
    if image and not _DOCKER_IMAGE.fullmatch(name_of_image):
        raise InvalidInput(f"'{name_of_image}' is not the name of a docker image.", field=name)
    return image


def docker_args(value: Any, name: str) -> str:
    """Check arguments of ``docker run``: they must split as a shell would split them."""
    arguments = str(line()(value, name))
    try:
        shlex.split(arguments)
    except ValueError:
        raise InvalidInput("A quote is not closed in the docker arguments.", field=name) from None
    return arguments


def vscode_extensions(value: Any, name: str) -> str:
    """Check a comma-separated list of VS Code extension ids."""
    extensions = str(line()(value, name))
    for extension in filter(None, (part.strip() for part in extensions.split(","))):
        if not _VSCODE_EXTENSION.fullmatch(extension):
            raise InvalidInput(
                f"'{extension}' is not the id of a VS Code extension.",
                field=name,
                hint="An id looks like 'ms-python.python'; separate several by commas.",
            )
    return extensions


def requirement(value: Any, name: str) -> str:
    """Check one line of a pip requirements file: a package, a URL or an index option; comments are kept.

    Raises `InvalidInput` with the line in the message where pip could not read it, or where it names a file
    that the remote machine does not have.
    """
    found = str(line()(value, name))
    bare = re.split(r"(?:^|\s)#", found, maxsplit=1)[0].strip()
    if not bare:
        return found
    if _PIP_FILE.match(bare):
        raise InvalidInput(
            f"'{found}' names a file that the remote machine does not have.",
            field=name,
            hint="Paste the content of the file as the requirements text.",
        )
    editable = _PIP_EDITABLE.fullmatch(bare)
    if _PIP_OPTION.fullmatch(bare) or _URL_REQUIREMENT.fullmatch(editable["target"] if editable else bare):
        return found
    from packaging.requirements import InvalidRequirement, Requirement  # not at each start of the server

    try:
        Requirement(re.sub(r"(\s+--hash[= ]\S+)+$", "", bare))
    except InvalidRequirement:
        raise InvalidInput(
            f"'{found}' is not a package that pip understands.",
            field=name,
            hint="Write one package per line, like 'torch', 'torch==2.5' or 'git+https://host/repo.git'.",
            line=found,
        ) from None
    return found


def requirements_text(value: Any, name: str) -> str:
    """Check the text of a requirements file line by line; the text is kept as it is."""
    found = str(text()(value, name))
    for number, entry in enumerate(re.sub(r"\\\r?\n", " ", found).splitlines(), start=1):
        try:
            requirement(entry.replace("\t", " "), name)
        except InvalidInput as error:
            raise InvalidInput(
                f"Line {number} of the requirements: {error.message}", field=name, hint=error.hint, line=entry
            ) from None
    return found


def ssh_ports(value: Any, name: str) -> str:
    """Check a port ``N`` or a range ``N:M`` (1 to 65535, N <= M); a JSON number is fine too."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    found = str(
        line(pattern=re.compile(r"[0-9]{1,5}(:[0-9]{1,5})?"), what="a port or a range like '10022:15000'")(
            value, name
        )
    )
    ports = [int(port) for port in found.split(":") if port]
    if any(not 1 <= port <= 65535 for port in ports) or ports != sorted(ports):
        raise InvalidInput(
            f"'{name}' must be a port from 1 to 65535, or a rising range like '10022:15000'.", field=name
        )
    return found


def gateway(value: Any, name: str) -> str:
    """Check ``host`` or ``host:port``."""
    found = str(line(most=300)(value, name))
    host, colon, port = found.partition(":")
    if found and not _HOST.fullmatch(host):
        raise InvalidInput(
            f"'{found}' is not a gateway.",
            field=name,
            hint="Write a host name or IPv4 address, 'host' or 'host:port'.",
        )
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise InvalidInput(f"'{port}' is not a port of a gateway.", field=name)
    return found


def password(value: Any, name: str) -> str:
    """Check an SSH password. The remote script puts it into a shell command, in single quotes."""
    found = _string(value, name)
    if len(found) > 256 or re.search(r"[^!-~]|['\\]", found):
        raise InvalidInput(
            "The password must be at most 256 ASCII characters without space, single quote and backslash.",
            field=name,
        )
    return found


def environment(value: Any, name: str) -> dict[str, str]:
    """Check environment variables: names that a shell takes, values without NUL."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"'{name}' must be an object of texts.", field=name)
    if len(value) > MAX_ITEMS:
        raise InvalidInput(f"'{name}' has {len(value)} entries, at most {MAX_ITEMS}.", field=name)
    found: dict[str, str] = {}
    for variable, content in value.items():
        if not isinstance(variable, str) or not _ENV_NAME.fullmatch(variable):
            raise InvalidInput(
                f"{str(variable)[:80]!r} is not the name of an environment variable.", field=name
            )
        if variable == "PYTHONPATH":
            raise InvalidInput("The remote script never passes PYTHONPATH on.", field=name)
        found[variable] = str(text(32 * 1024)(content, f"{name}.{variable}"))
    return found


def git_url(value: Any, name: str) -> str:
    """Check the URL of a git repository; one with a password in it is refused."""
    found = str(line(least=1, pattern=_GIT_URL, what="the URL of a git repository")(value, name))
    try:
        parts = urlsplit(found)
        secret = parts.password is not None or (
            parts.scheme.startswith("http") and parts.username is not None
        )
    except ValueError:
        raise InvalidInput(f"'{name}' is not the URL of a git repository.", field=name) from None
    if secret:
        raise InvalidInput(
            "The URL of the repository holds credentials.",
            field=name,
            hint="Take them out; use 'git_credentials' to give the session access.",
        )
    return found


git_ref = line(pattern=_GIT_REF, what="the name of a git branch")
git_commit = line(pattern=_COMMIT, what="a git commit (40 characters 0-9 and a-f)")


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"'{name}' must be a text.", field=name)
    if _SURROGATE.search(value):
        # JSON can carry half characters; no server takes them.
        raise InvalidInput(f"'{name}' holds characters that are not Unicode.", field=name)
    return value
