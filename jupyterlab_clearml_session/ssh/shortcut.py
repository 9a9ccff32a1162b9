"""Channel data past asyncssh's packet code, which goes on to do everything else.

For each packet asyncssh moves the rest of its input about, copies the data some ten times, builds a cipher object,
and sends an empty packet ahead of every one of ours (a defence that only CBC needs): two thirds of the CPU time of
a download. Here channel data under AES-GCM is opened and sealed directly. All other packets, key exchanges among
them, and all data that meets a channel in an unusual state are asyncssh's, whose own counters are used, so that
either can take the next packet.

This needs attributes that asyncssh does not publish. It is used only with the versions that it was tested with and
where everything has the expected shape; otherwise asyncssh does it all, slower.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import asyncssh
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TESTED = ((2, 18), (2, 24))
"""The first and the last version of asyncssh that this is known to fit."""

WINDOW_ADJUST = 93
CHANNEL_DATA = 94
TAG = 16
LARGEST = 256 * 1024
"""Bytes of a packet; channel data comes in smaller ones. Whoever calls `receive` has room for it."""

WORTH_A_VIEW = 4096
"""Bytes of channel data from which it costs less not to copy them out of their packet."""

BLOCK = 16
GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")

_CONNECTION = (
    "_channels",
    "_inpbuf",
    "_kex_complete",
    "_recv_encryption",
    "_recv_handler",
    "_recv_pkthdr",
    "_recv_seq",
    "_rekey_bytes",
    "_rekey_bytes_sent",
    "_rekey_seconds",
    "_rekey_time",
    "_send_encryption",
    "_send_seq",
    "internal_error",
)


def shortcut(connection: asyncssh.SSHClientConnection, write: Callable[[bytes], None]) -> Shortcut | None:
    """Return the shortcut for a connection that has just been made, or None where it does not fit.

    `write` takes bytes for the wire, as the connection's own transport does.
    """
    version = re.match(r"(\d+)\.(\d+)", asyncssh.__version__)
    if version is None or not TESTED[0] <= (int(version[1]), int(version[2])) <= TESTED[1]:
        return None
    info = connection.get_extra_info
    if any(info(name) not in GCM for name in ("send_cipher", "recv_cipher")):
        return None
    if any(info(name) != "none" for name in ("send_compression", "recv_compression")):
        return None
    if not all(hasattr(connection, name) for name in _CONNECTION):
        return None
    made = Shortcut(connection, write)
    return made if made.incoming().fits and made.outgoing().fits else None


class _Cipher:
    """AES-GCM with the key and the counter that an encryption object of asyncssh holds."""

    def __init__(self, encryption: Any) -> None:
        self.encryption = encryption
        self.fits = False
        """False where it is another cipher."""
        try:
            self.state = encryption._cipher
            self.key = AESGCM(self.state._key)
            self.fits = len(self.state._iv) == 12 and callable(self.state._update_iv)
        except (AttributeError, TypeError, ValueError):
            return


class Shortcut:
    """Takes whole packets from the wire and puts whole packets on it. Made by `shortcut`."""

    def __init__(self, connection: Any, write: Callable[[bytes], None]) -> None:
        self._connection = connection
        self._write = write
        self._padding = os.urandom(2 * BLOCK)  # under AES-GCM nobody sees whether it was used before
        self._aligned = False
        self._incoming: _Cipher | None = None
        self._outgoing: _Cipher | None = None

    def incoming(self) -> _Cipher:
        """The cipher of the next packet that arrives; a key exchange brings a new one."""
        if self._incoming is None or self._incoming.encryption is not self._connection._recv_encryption:
            self._incoming = _Cipher(self._connection._recv_encryption)
        return self._incoming

    def outgoing(self) -> _Cipher:
        """The cipher of the next packet that is sent."""
        if self._outgoing is None or self._outgoing.encryption is not self._connection._send_encryption:
            self._outgoing = _Cipher(self._connection._send_encryption)
        return self._outgoing

    def receive(self, data: memoryview) -> int:
        """Process the whole packets that `data` begins with; return how many bytes they are.

        The caller keeps the rest and gives it again, with what follows it.
        """
        connection = self._connection
        end = len(data)
        at = 0
        while self._aligned and end - at >= 4:
            size = 4 + int.from_bytes(data[at : at + 4], "big") + TAG
            if size > LARGEST or not self.incoming().fits:
                self._aligned = False  # asyncssh may refuse it, or the length means nothing here
            elif end - at < size:
                return at
            else:
                packet = data[at : at + size]
                at += size
                if not self._open(packet):
                    connection.data_received(bytes(packet), None)
        if not self._aligned:
            # asyncssh may hold a part of a packet; from the next boundary on it gets whole ones only.
            connection.data_received(bytes(data[at:]), None)
            self._aligned = self._is_idle() and self.incoming().fits
            return end
        return at

    def send(self, channel: Any, data: bytes | bytearray | memoryview) -> bool:
        """Send up to 32 KiB as one packet. False where asyncssh has to do it; nothing has happened then."""
        connection = self._connection
        size = len(data)
        if (
            not 0 < size <= channel._send_pktsize
            or size > channel._send_window
            or channel._send_buf
            or channel._send_state != "open"
            or not connection._kex_complete
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
        ):
            return False
        cipher = self.outgoing()
        if not cipher.fits:
            return False
        padding = BLOCK - (10 + size) % BLOCK
        if padding < 4:
            padding += BLOCK
        head = (
            bytes((padding, CHANNEL_DATA)) + channel._send_chan.to_bytes(4, "big") + size.to_bytes(4, "big")
        )
        plain = b"".join((head, data, self._padding[:padding]))
        length = len(plain).to_bytes(4, "big")
        sealed = cipher.key.encrypt(cipher.state._iv, plain, length)
        cipher.state._update_iv()
        connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
        connection._rekey_bytes_sent += len(plain)
        channel._send_window -= size
        self._write(length)
        self._write(sealed)
        return True

    # -- helpers

    def _is_idle(self) -> bool:
        """Whether asyncssh waits for the beginning of a packet and holds nothing back."""
        connection = self._connection
        idle: bool = not connection._inpbuf and connection._recv_handler == connection._recv_pkthdr
        return idle

    def _open(self, packet: memoryview) -> bool:
        """Deliver a packet of channel data. False where asyncssh has to do it; nothing has happened then."""
        connection = self._connection
        if not self._is_idle():
            return False
        cipher = self.incoming()
        try:
            plain = cipher.key.decrypt(cipher.state._iv, packet[4:], packet[:4])
        except InvalidTag:
            return False
        if len(plain) < 10 or plain[1] not in (CHANNEL_DATA, WINDOW_ADJUST):
            return False
        channel = connection._channels.get(int.from_bytes(plain[2:6], "big"))
        size = int.from_bytes(plain[6:10], "big")
        if channel is None or channel._recv_state != "open":
            return False
        if plain[1] == WINDOW_ADJUST:
            if len(plain) != 10 + plain[0]:
                return False
        elif size > channel._recv_window or len(plain) != 10 + size + plain[0]:
            return False
        cipher.state._update_iv()
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        try:
            if plain[1] == CHANNEL_DATA:
                channel._accept_data(_payload(plain, size, channel._session))
            else:
                channel._send_window += size
                channel._flush_send_buf()
        except Exception:  # noqa: BLE001 -- as asyncssh does: what a session raises ends the connection
            connection.internal_error()
        return True


def _payload(plain: bytes, size: int, session: object) -> bytes | memoryview:
    """Return the data of a packet; as a view only where the session has said that it takes one."""
    if size >= WORTH_A_VIEW and getattr(session, "takes_views", False):
        return memoryview(plain)[10 : 10 + size]
    return plain[10 : 10 + size]
