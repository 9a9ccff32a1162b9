"""The process that `bench/kernels.py` measures through: a local server's part, with tunnel and relay.

Run as ``python -m bench._kernel_parts '<json>'``. Each line ``start`` on stdin starts a remote kernel; its
connection information is printed as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from jupyterlab_clearml_session.kernels.attach import ByteProcess, as_socket, open_channel
from jupyterlab_clearml_session.kernels.channel import SessionChannel
from jupyterlab_clearml_session.models import SshTarget
from jupyterlab_clearml_session.ssh.tunnel import Tunnel

SESSION = "be9c" * 8


async def serve(config: dict[str, Any]) -> None:
    """Attach to the machine behind the SSH server, and start kernels there on demand."""
    loop = asyncio.get_running_loop()

    async def target() -> SshTarget:
        return SshTarget("127.0.0.1", config["ssh_port"], "root", config["password"], (config["host_key"],))

    async def start_process(command: str) -> ByteProcess:
        # The account over there is the one of this machine: what would be in its home goes to a folder of ours.
        setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in config["env"].items())
        return await tunnel.start_process(f"env {setting} sh -c {shlex.quote(command)}")

    async def connect(client_id: str) -> Any:
        return as_socket(*await open_channel(start_process, SESSION, client_id))

    tunnel = Tunnel(target)
    tunnel.start()
    await tunnel.wait_up(10)
    channel = SessionChannel(
        lambda client_id: asyncio.run_coroutine_threadsafe(connect(client_id), loop).result(60)
    )
    channel.start()
    await asyncio.wrap_future(channel.request("kernelspecs"))
    print("ready", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        while await asyncio.to_thread(sys.stdin.readline):
            kernel_id = uuid.uuid4().hex
            key = uuid.uuid4().hex
            stream = await asyncio.wrap_future(
                channel.open_port(Path(folder) / kernel_id[:8], key.encode(), "hmac-sha256")
            )
            request = {"env": {}, "folders": [], "meta": {}, "adopt": False, "name": "python3", "key": key}
            request |= {"kernel_id": kernel_id, "signature_scheme": "hmac-sha256"}
            await asyncio.wrap_future(channel.start_kernel(stream, 0, **request))
            port = channel.port(stream)
            assert port is not None
            print(json.dumps({**port.info, "key": key}), flush=True)
        channel.close()
        await tunnel.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
