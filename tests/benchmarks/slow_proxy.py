"""Passes connections on to another port of loopback, slowly: `slow_proxy.py PORT TARGET DELAY_S MEGABYTES_PER_S FILE`.

FILE is there once it listens, and holds how many bytes have gone to the target.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

_PIECE = 1 << 16


async def forward(port: int, target: int, delay_s: float, bytes_per_s: float, passed: Path) -> None:
    """Pass connections on to another port of loopback, and keep how many bytes went there in a file."""
    total, line = 0, asyncio.Lock()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        nonlocal total
        await asyncio.sleep(delay_s)
        while data := await reader.read(_PIECE):
            async with line:
                await asyncio.sleep(len(data) / bytes_per_s)
            writer.write(data)
            await writer.drain()
            if counts:
                total += len(data)
                passed.write_text(str(total))
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(
            pump(reader, there_writer, counts=True),
            pump(there_reader, writer, counts=False),
            return_exceptions=True,
        )

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    passed.write_text("0")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    own, there, delay, megabytes, file = sys.argv[1:]
    asyncio.run(forward(int(own), int(there), float(delay), 1e6 * float(megabytes), Path(file)))
