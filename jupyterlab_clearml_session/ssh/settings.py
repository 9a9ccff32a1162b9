"""How the tunnel behaves: every number that it uses, in one place."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class TunnelSettings:
    """Times are seconds, sizes are bytes. The defaults come from measurements (docs/performance.md).

    A dead link is noticed `probe_interval` + `probe_deadline` after the last byte that arrived.
    """

    connect_timeout: float = 15.0
    """From the name lookup to the end of the authentication."""
    probe_interval: float = 1.0
    """How long the link may be silent before a probe is sent."""
    probe_deadline: float = 2.0
    """How long it may stay silent after that. Any received byte counts as life."""
    backoff_initial: float = 0.25
    backoff_factor: float = 1.7
    backoff_max: float = 30.0
    """Waits between attempts grow from initial to max; each is shortened by a random part of up to a half."""
    wake_gap: float = 5.0
    """The wall clock running this far ahead of the monotonic one means that the machine has slept."""
    open_timeout: float = 10.0
    """For the remote machine to open a channel."""
    relay_timeout: float = 5.0
    """For the remote machine to start the process that acknowledges at once; without it things go on, slower."""
    max_channels: int = 200
    """Open channels on one SSH connection. More than that are refused at once, typed."""
    window_min: int = 2 * MIB
    """Receive window of a channel of the interactive connection."""
    window_bulk: int = 8 * MIB
    window_max: int = 32 * MIB
    window_rate: int = 800 * MIB
    """That of one for bulk: a round trip at `window_rate` bytes/s, within those two. With 2 MB, an sshd that is
    near waits for the window each time that this process is not run for a few milliseconds."""
    granted_window: int = 2 * MIB
    """What sshd lets us send on a channel until it has been taken over there."""
    upload_rate: int = 160 * MIB
    max_lanes: int = 8
    """A large upload uses as many channels as carry `upload_rate` bytes/s at the distance, up to that number."""
    encryption: tuple[str, ...] = (
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes256-ctr",
        "aes128-ctr",
    )
    """In order of preference. AES-GCM is the fastest by far on machines that have AES instructions."""
