"""A user-space SSH server that takes dropbear's command line: what the remote script starts in a sandbox.

Runs as whoever starts it, for that user only, on loopback only. Any user name is accepted with the session's
password, which comes in the environment variable ``DROPBEAR_CLEARML_FIXED_PASSWORD``; nothing of the system is
read or changed. Gives commands, shells with a pty, SFTP, SCP and forwarding of TCP ports and Unix sockets.

Started by its path (not as a module), so it imports nothing of this package.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hmac
import os
import pty
import signal
import struct
import sys
import termios
from pathlib import Path

import asyncssh

PASSWORD_VARIABLE = "DROPBEAR_CLEARML_FIXED_PASSWORD"  # noqa: S105 - the name of it, not the password

_READ_SIZE = 65536


class PasswordServer(asyncssh.SSHServer):
    """Lets everybody in who knows the password, and lets them forward what they want: it is their machine."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), self._password)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        # Forwards back from here listen on loopback, whatever the client asks for.
        return listen_host in ("localhost", "127.0.0.1", "::1")

    def unix_server_requested(self, listen_path: str) -> bool:
        return True


async def serve(port: int, key_files: list[str], password: str) -> None:
    """Serve until cancelled. Raises OSError where the port is taken."""
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: PasswordServer(password),
        server_host_keys=[asyncssh.read_private_key(path) for path in key_files],
        process_factory=run_process,
        sftp_factory=asyncssh.SFTPServer,
        allow_scp=True,
        encoding=None,
        public_key_auth=False,
        kbdint_auth=False,
        gss_host=None,
        agent_forwarding=False,
        keepalive_interval=30,
        login_timeout=30,
    )
    try:
        await asyncio.Event().wait()
    finally:
        server.close()  # not waited for: from Python 3.12 on that would wait for all connections too


async def run_process(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run a command, or a login shell, with a pty if the client asked for one; end it with its channel."""
    if process.subsystem:
        process.exit(1)
        return
    shell = os.environ.get("SHELL") or "/bin/sh"
    argv = [shell, "-c", process.command] if process.command else [shell, "-l"]
    environment = {
        **os.environ,
        **{key: value for key, value in process.env.items() if key.startswith("LC_")},
    }
    if process.term_type:
        run = _run_in_terminal(process, argv, {**environment, "TERM": process.term_type})
    else:
        run = _run_with_pipes(process, argv, environment)
    running, closed = asyncio.create_task(run), asyncio.create_task(process.wait_closed())
    await asyncio.wait({running, closed}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    closed.cancel()
    with contextlib.suppress(asyncio.CancelledError, BrokenPipeError, asyncssh.Error):
        await running


async def _run_with_pipes(
    process: asyncssh.SSHServerProcess[bytes], argv: list[str], environment: dict[str, str]
) -> None:
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
        preexec_fn=_heed_hang_up,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_feed_pipe(process, child, child.stdin))
    try:
        # Not with asyncssh's redirection: its copies overtake each other when a slow client makes them pause.
        await asyncio.gather(
            _copy_pipe(child.stdout, process.stdout), _copy_pipe(child.stderr, process.stderr)
        )
        _exit(process, await child.wait())
    finally:
        feeding.cancel()
        _hang_up(child)


async def _copy_pipe(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(_READ_SIZE):
        target.write(data)
        await target.drain()


async def _feed_pipe(
    process: asyncssh.SSHServerProcess[bytes],
    child: asyncio.subprocess.Process,
    target: asyncio.StreamWriter,
) -> None:
    with contextlib.suppress(ConnectionError, asyncssh.Error):
        while not process.stdin.at_eof():
            try:
                data = await process.stdin.read(_READ_SIZE)
            except asyncssh.SignalReceived as received:
                _signal_group(child.pid, received.signal)
                continue
            except (asyncssh.BreakReceived, asyncssh.TerminalSizeChanged):
                continue
            target.write(data)
            await target.drain()
    target.close()


async def _run_in_terminal(
    process: asyncssh.SSHServerProcess[bytes], argv: list[str], environment: dict[str, str]
) -> None:
    main, terminal = pty.openpty()
    _resize(main, process.term_size)
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
    finally:
        os.close(terminal)
    os.set_blocking(main, False)
    typing = asyncio.create_task(_copy_input(process, main))
    try:
        await _copy_output(process, main)
        _exit(process, await child.wait())
    finally:
        typing.cancel()
        await asyncio.wait({typing})
        _hang_up(child)
        os.close(main)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    _heed_hang_up()


def _heed_hang_up() -> None:
    """In the child: where JupyterLab was started with nohup, commands would inherit that, and never end."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def _copy_output(process: asyncssh.SSHServerProcess[bytes], terminal: int) -> None:
    while True:
        await _ready(terminal, write=False)
        try:
            data = os.read(terminal, _READ_SIZE)
        except BlockingIOError:
            continue
        except OSError:  # Linux: EIO once the last process has closed the terminal
            return
        if not data:
            return
        process.stdout.write(data)
        await process.stdout.drain()


async def _copy_input(process: asyncssh.SSHServerProcess[bytes], terminal: int) -> None:
    while True:
        try:
            data = await process.stdin.read(_READ_SIZE)
        except asyncssh.TerminalSizeChanged as size:
            _resize(terminal, (size.width, size.height, size.pixwidth, size.pixheight))
            continue
        except asyncssh.BreakReceived:
            data = b"\x03"
        except asyncssh.SignalReceived as received:
            _signal_group(os.tcgetpgrp(terminal), received.signal)
            continue
        except (BrokenPipeError, asyncssh.Error):
            return
        if not data:
            data = b"\x04"  # what ^D sends: end of input
        while data:
            try:
                data = data[os.write(terminal, data) :]
            except BlockingIOError:
                await _ready(terminal, write=True)
        if process.stdin.at_eof():
            return


async def _ready(descriptor: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(descriptor, _set, ready)
    try:
        await ready
    finally:
        remove(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _resize(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))


def _signal_group(group: int, name: str) -> None:
    number = getattr(signal, f"SIG{name}", None)
    if number is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def _exit(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
    if status < 0:
        process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
    else:
        process.exit(status)


def _hang_up(child: asyncio.subprocess.Process) -> None:
    """End what is left of a command whose channel is gone, as sshd does."""
    if child.returncode is None:
        _signal_group(child.pid, "HUP")


def main(arguments: list[str]) -> None:
    """Take dropbear's options: ``-p PORT -r KEY``; ``-e -K -I -F`` are given too, and need nothing here."""
    parser = argparse.ArgumentParser(prog="sshd")
    parser.add_argument("-p", dest="port", type=int, required=True)
    parser.add_argument("-r", dest="keys", action="append", required=True)
    for flag in ("-e", "-F"):
        parser.add_argument(flag, action="store_true")
    for option in ("-K", "-I"):
        parser.add_argument(option, type=int)
    options = parser.parse_args(arguments)
    password = os.environ.pop(PASSWORD_VARIABLE, "")
    if not password:
        sys.exit("no password: refusing to let everybody in")
    os.chdir(Path.home())
    asyncio.run(serve(options.port, options.keys, password))


if __name__ == "__main__":
    main(sys.argv[1:])
