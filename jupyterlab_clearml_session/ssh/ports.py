"""Which TCP ports of the remote machine something listens on, and what it is, for "Open port ..."."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from ..errors import RemoteBadAnswer
from .tunnel import Tunnel

TIMEOUT = 10.0
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp (include/net/tcp_states.h)."""

_ANY = {"00000000", "0" * 32}
_LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}

_SOCKETS = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null"
_OWNERS = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '^/proc/' -e 'socket:'"
# The first words of a command line, one a line; a line break within a word would begin another word.
_WORDS = (
    'for pid in {pids}; do echo "== $pid"; head -c 1000 /proc/$pid/cmdline | tr "\\n\\0" " \\n"; echo; done'
)
_RUNS_OTHERS = re.compile(r"(python|pypy|node|ruby|perl|java|bash|sh|dash)[\d.]*$")
_MOST = 60


@dataclass(frozen=True)
class ListeningPort:
    """A port that a channel of the tunnel can be opened to.

    ``uid`` is the remote user that listens; ``process`` what listens, as a person would call it, empty where it
    is another user's.
    """

    port: int
    uid: int
    inode: str = ""
    process: str = ""


async def listening_ports(tunnel: Tunnel) -> list[ListeningPort]:
    """Return the ports that can be reached on the remote machine's loopback, lowest first.

    Raises
    ------
    RemoteBadAnswer
        The remote machine has no /proc/net/tcp.
    TunnelDown, RemoteDeadline
        As `Tunnel.run`.
    """
    _, output, _ = await tunnel.run(f"{_SOCKETS}; {_OWNERS}", timeout=TIMEOUT)
    if not output:
        raise RemoteBadAnswer("The remote machine does not tell which ports it listens on.")
    text = output.decode("utf-8", "replace")
    ports = parse(text)
    owners = parse_owners(text, {found.inode for found in ports})
    if not owners:
        return ports
    _, output, _ = await tunnel.run(
        _WORDS.format(pids=" ".join(sorted(set(owners.values())))), timeout=TIMEOUT
    )
    names = parse_names(output.decode("utf-8", "replace"))
    return [replace(found, process=names.get(owners.get(found.inode, ""), "")) for found in ports]


def parse(text: str) -> list[ListeningPort]:
    """Parse the lines of /proc/net/tcp and tcp6 (proc_net_tcp(5)); sockets on other addresses are left out."""
    found: dict[int, ListeningPort] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[3] != LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        if address in _ANY | _LOOPBACK:
            number = int(port, 16)
            found.setdefault(number, ListeningPort(number, int(fields[7]), fields[9]))
    return [found[port] for port in sorted(found)]


def parse_owners(text: str, inodes: Iterable[str]) -> dict[str, str]:
    """Parse ``ls -l`` of the processes' open files: the process id by the socket's inode."""
    wanted = set(inodes)
    owners: dict[str, str] = {}
    pid = ""
    for line in text.splitlines():
        if directory := re.fullmatch(r"/proc/(\d+)/fd:", line):
            pid = directory[1]
        elif (socket := re.search(r"socket:\[(\d+)\]$", line)) and socket[1] in wanted:
            owners.setdefault(socket[1], pid)  # children inherit it; their parent has the lower number
    return owners


def parse_names(text: str) -> Mapping[str, str]:
    """Parse the first words of command lines: a name for people by process id."""
    words: dict[str, list[str]] = {}
    pid = ""
    for line in text.splitlines():
        if line.startswith("== "):
            pid = line[3:]
        elif line:
            words.setdefault(pid, []).append(line)
    return {pid: process_name(found) for pid, found in words.items()}


def process_name(words: list[str]) -> str:
    """Name a program by its command line: ``python3 -m tensorboard.main ...`` is ``tensorboard.main``.

    Nothing else of the command line is told, since it may hold secrets.
    """
    name = PurePosixPath(words[0]).name
    if _RUNS_OTHERS.match(name):
        for option, word in itertools.pairwise(words):
            if option == "-m":
                name = word
                break
            if word == "-c":
                break
            if not word.startswith("-"):
                name = PurePosixPath(word).name
                break
    return "".join(letter for letter in name if letter.isprintable())[:_MOST]
