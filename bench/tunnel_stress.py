"""Many channels, both ways, through a real sshd that changes its keys all the time; every byte is checked.

For `ssh/shortcut.py`, which shares a connection's state with asyncssh: a packet taken in the wrong order or with
the wrong key would break the connection or the data. Needs root, as `bench.proxy` does.

    python -m bench.tunnel_stress [--seconds N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from bench.proxy import openssh
from jupyterlab_clearml_session.models import SshTarget
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

CHANNELS = 8
CLIENT_REKEY = 3_000_000
SERVER_REKEY = "2M"


async def carry(tunnel: Tunnel, port: int, seed: int, *, bulk: bool) -> int:
    """Send some megabytes through an echo, in pieces of any size; return how many bytes came back right."""
    numbers = random.Random(seed)
    data = numbers.randbytes(numbers.randrange(1, 4_000_000))
    channel = await tunnel.open_channel(port, bulk=bulk)

    async def feed() -> None:
        at = 0
        while at < len(data):
            size = numbers.choice((1, 30, 1_000, 32_768, 32_769, 500_000))
            channel.write(data[at : at + size])
            at += size
            if numbers.random() < 0.7:
                await channel.drain()
        channel.write_eof()

    feeding = asyncio.create_task(feed())
    got = bytearray()
    if numbers.random() < 0.5:
        await channel.pour(numbers.randrange(1, len(data)), got.extend)
    while piece := await channel.read(numbers.choice((100_000, 10_000, 1 << 20))):
        got += piece
        if numbers.random() < 0.05:
            await asyncio.sleep(0.005)
    await feeding
    channel.close()
    if got != data:
        raise AssertionError(f"seed {seed}: what came back differs")
    return len(data)


async def stress(target: SshTarget, seconds: float) -> None:
    """Keep `CHANNELS` exchanges going for a time; print what was done."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def same_target() -> SshTarget:
        return target

    tunnel = Tunnel(same_target)
    tunnel.start()
    await tunnel.wait_up(10)
    while not tunnel.bulk_ready:
        await asyncio.sleep(0.05)
    links = (tunnel._link, tunnel._bulk)
    exchanges = 0
    for link in links:
        assert link is not None
        assert link._shortcut is not None
        connection = link._connection
        connection._rekey_bytes = CLIENT_REKEY
        before = connection.send_newkeys

        def counted(k: bytes, h: bytes, before: object = before) -> None:
            nonlocal exchanges
            exchanges += 1
            before(k, h)  # type: ignore[operator]

        connection.send_newkeys = counted  # type: ignore[method-assign]
    end = time.monotonic() + seconds
    done = count = 0

    async def worker(number: int) -> None:
        nonlocal done, count
        seed = number
        while time.monotonic() < end:
            done += await carry(tunnel, port, seed, bulk=bool(number % 2))
            count += 1
            seed += CHANNELS

    await asyncio.gather(*(worker(number) for number in range(CHANNELS)))
    assert (tunnel._link, tunnel._bulk) == links, "a connection was lost"
    assert all(link is not None and link.alive for link in links), "a connection was lost"
    await tunnel.close()
    server.close()
    print(f"{count} streams, {done >> 20} MiB each way, {exchanges} key exchanges, nothing lost")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    with (
        tempfile.TemporaryDirectory() as folder,
        openssh(Path(folder), f"RekeyLimit {SERVER_REKEY}\n") as (port, host_key, password, _),
    ):
        asyncio.run(stress(SshTarget("127.0.0.1", port, "root", password, (host_key,)), seconds))


if __name__ == "__main__":
    main()
