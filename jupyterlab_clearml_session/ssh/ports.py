"""Which TCP ports of the remote machine something listens on, for "Open port ..."."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RemoteBadAnswer
from .tunnel import Tunnel

TIMEOUT = 10.0
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp (include/net/tcp_states.h)."""

_ANY = {"00000000", "0" * 32}
_LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}


@dataclass(frozen=True)
class ListeningPort:
    """A port that a channel of the tunnel can be opened to. `uid` is the remote user that listens."""

    port: int
    uid: int


async def listening_ports(tunnel: Tunnel) -> list[ListeningPort]:
    """Return the ports that can be reached on the remote machine's loopback, lowest first.

    Raises
    ------
    RemoteBadAnswer
        The remote machine has no /proc/net/tcp.
    TunnelDown, RemoteDeadline
        As `Tunnel.run`.
    """
    _, output, _ = await tunnel.run("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", timeout=TIMEOUT)
    if not output:
        raise RemoteBadAnswer("The remote machine does not tell which ports it listens on.")
    return parse(output.decode("ascii", "replace"))


def parse(text: str) -> list[ListeningPort]:
    """Parse the lines of /proc/net/tcp and tcp6 (proc_net_tcp(5)); sockets on other addresses are left out."""
    found: dict[int, ListeningPort] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[3] != LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        if address in _ANY | _LOOPBACK:
            number = int(port, 16)
            found.setdefault(number, ListeningPort(number, int(fields[7])))
    return [found[port] for port in sorted(found)]
