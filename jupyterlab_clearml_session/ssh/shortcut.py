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
import struct
import time
from typing import TYPE_CHECKING, Any

import asyncssh
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from .wire import Wire

TESTED = ((2, 18), (2, 24))
"""The first and the last version of asyncssh that this is known to fit."""

WINDOW_ADJUST = 93
CHANNEL_DATA = 94
TAG = 16
LARGEST = 256 * 1024
"""Bytes of a packet; channel data comes in smaller ones."""

READ_BUFFER = 2 * LARGEST
"""Bytes that `receive` is given at most; more than a packet may have."""

PACKET = 32 * 1024
"""Bytes of channel data that are sent in one packet: what sshd takes."""

BULK = 4096
"""Bytes of a packet from which it is opened together with its neighbours."""

HEAD = 10
"""Bytes before the data of an opened packet: length of the padding, type, channel, size."""

BLOCK = 16
GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")

_HEAD = struct.Struct(">BBII")
_LENGTH = struct.Struct(">I")
_COUNTER = struct.Struct(">Q")

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


def shortcut(connection: asyncssh.SSHClientConnection, wire: Wire) -> Shortcut | None:
    """Return the shortcut for a connection that has just been made, or None where it does not fit."""
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
    made = Shortcut(connection, wire)
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
            self.fits = len(self.state._iv) == 12
        except (AttributeError, TypeError, ValueError):
            return
        self._open_into = getattr(self.key, "decrypt_into", None)  # an older cryptography has neither
        self._seal_into = getattr(self.key, "encrypt_into", None)

    def open(self, packet: memoryview, plain: memoryview) -> None:
        """Open a packet into `plain`, without a step. Raises InvalidTag; what is in `plain` then means nothing."""
        if self._open_into is not None:
            self._open_into(self.state._iv, packet[4:], packet[:4], plain)
        else:
            plain[:] = self.key.decrypt(self.state._iv, packet[4:], packet[:4])

    def seal(self, plain: bytes, packet: memoryview) -> None:
        """Seal a packet into `packet`, and step."""
        length = packet[:4] = _LENGTH.pack(len(plain))
        if self._seal_into is not None:
            self._seal_into(self.state._iv, plain, length, packet[4:])
        else:
            packet[4:] = self.key.encrypt(self.state._iv, plain, length)
        self.step()

    def step(self) -> None:
        """Go on to the next packet (RFC 5647 7.1)."""
        iv = self.state._iv
        self.state._iv = iv[:4] + _COUNTER.pack((_COUNTER.unpack_from(iv, 4)[0] + 1) & 0xFFFFFFFFFFFFFFFF)


class Shortcut:
    """Takes whole packets from the wire and puts whole packets on it. Made by `shortcut`."""

    def __init__(self, connection: Any, wire: Wire) -> None:
        self._connection = connection
        self._wire = wire
        self._padding = os.urandom(2 * BLOCK)  # under AES-GCM nobody sees whether it was used before
        self._aligned = False
        self._incoming: _Cipher | None = None
        self._outgoing: _Cipher | None = None
        self._run = memoryview(bytearray(HEAD + READ_BUFFER))
        self._channel: Any = None
        """Whose data the run is; it lies from `_start` to `_end`."""
        self._start = self._end = HEAD

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
            if end - at >= BULK:
                at = self._open_run(data, at)
                if end - at < 4:
                    break
            size = 4 + _LENGTH.unpack_from(data, at)[0] + TAG
            if size > LARGEST or not self.incoming().fits:
                self._aligned = False  # asyncssh may refuse it, or the length means nothing here
            elif end - at < size:
                break
            else:
                packet = data[at : at + size]
                at += size
                self._deliver()
                if not self._open(packet):
                    connection.data_received(bytes(packet), None)
        self._deliver()
        if not self._aligned:
            # asyncssh may hold a part of a packet; from the next boundary on it gets whole ones only.
            connection.data_received(bytes(data[at:]), None)
            self._aligned = self._is_idle() and self.incoming().fits
            return end
        return at

    def send(self, channel: Any, data: memoryview) -> int:
        """Send as much of `data` as can be sent now and return how many bytes that is; the rest is asyncssh's."""
        connection = self._connection
        cipher = self.outgoing()
        if (
            channel._send_buf
            or channel._send_state != "open"
            or not connection._kex_complete
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
            or not cipher.fits
        ):
            return 0
        number = channel._send_chan.to_bytes(4, "big")
        sent = 0
        while sent < len(data):
            size = min(len(data) - sent, PACKET)
            if (
                size > channel._send_window
                or size > channel._send_pktsize
                or connection._rekey_bytes_sent >= connection._rekey_bytes
            ):
                break
            padding = BLOCK - (HEAD + size) % BLOCK
            if padding < 4:
                padding += BLOCK
            plain = b"".join(
                (
                    bytes((padding, CHANNEL_DATA)),
                    number,
                    size.to_bytes(4, "big"),
                    data[sent : sent + size],
                    self._padding[:padding],
                )
            )
            whole = 4 + len(plain) + TAG
            cipher.seal(plain, self._wire.room(whole))
            connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
            connection._rekey_bytes_sent += len(plain)
            channel._send_window -= size
            sent += size
            self._wire.written(whole)
        return sent

    # -- helpers

    def _is_idle(self) -> bool:
        """Whether asyncssh waits for the beginning of a packet and holds nothing back."""
        connection = self._connection
        idle: bool = not connection._inpbuf and connection._recv_handler == connection._recv_pkthdr
        return idle

    def _open_run(self, data: memoryview, at: int) -> int:
        """Open the large packets of channel data from `at` on; return where they end.

        Their data comes to lie in one piece: the head of an opened packet falls on the last bytes of the one before
        it, which are put back then.
        """
        connection = self._connection
        cipher = self.incoming()
        if not cipher.fits or not self._is_idle():
            return at
        run = self._run
        end = len(data)
        while end - at >= BULK:
            size = _LENGTH.unpack_from(data, at)[0]
            stop = at + 4 + size + TAG
            if not BULK <= size <= LARGEST or stop > end:
                break
            here = self._end
            kept = bytes(run[here - HEAD : here])
            try:
                cipher.open(data[at:stop], run[here - HEAD : here - HEAD + size])
                padding, kind, number, length = _HEAD.unpack_from(run, here - HEAD)
            except InvalidTag:
                break
            finally:
                run[here - HEAD : here] = kept
            channel = connection._channels.get(number)
            if (
                kind != CHANNEL_DATA
                or size != HEAD + length + padding
                or channel is None
                or channel._recv_state != "open"
                or length > channel._recv_window - (here - self._start if channel is self._channel else 0)
            ):
                break
            cipher.step()
            connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
            at = stop
            if channel is not self._channel:
                self._deliver()
                self._channel = channel
                self._start = here
            self._end = here + length
        return at

    def _open(self, packet: memoryview) -> bool:
        """Process one packet. False where asyncssh has to do it; nothing has happened then."""
        connection = self._connection
        if not self._is_idle():
            return False
        cipher = self.incoming()
        try:
            plain = cipher.key.decrypt(cipher.state._iv, packet[4:], packet[:4])
        except InvalidTag:
            return False
        if len(plain) < HEAD or plain[1] not in (CHANNEL_DATA, WINDOW_ADJUST):
            return False
        padding, kind, number, size = _HEAD.unpack_from(plain)
        channel = connection._channels.get(number)
        if channel is None or channel._recv_state != "open":
            return False
        if kind == WINDOW_ADJUST:
            if len(plain) != HEAD + padding:
                return False
        elif size > channel._recv_window or len(plain) != HEAD + size + padding:
            return False
        cipher.step()
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        try:
            if kind == CHANNEL_DATA:
                channel._accept_data(plain[HEAD : HEAD + size])
            else:
                channel._send_window += size
                channel._flush_send_buf()
        except Exception:  # noqa: BLE001 -- as asyncssh does: what a session raises ends the connection
            connection.internal_error()
        return True

    def _deliver(self) -> None:
        """Hand the run to its channel."""
        channel, self._channel = self._channel, None
        data = self._run[self._start : self._end]
        self._start = self._end = HEAD
        if channel is None:
            return
        lent = not channel._recv_paused and getattr(channel._session, "takes_loans", False)
        try:
            channel._accept_data(data if lent else bytes(data))
        except Exception:  # noqa: BLE001 -- as asyncssh does: what a session raises ends the connection
            self._connection.internal_error()
