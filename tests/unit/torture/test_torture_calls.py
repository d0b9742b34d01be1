"""The client of the torture makes one request of each call, whatever happens to its connection."""

import asyncio
from pathlib import Path

from torture.calls import Caller, open_session
from torture.report import Report


async def test_a_call_whose_connection_breaks_is_not_sent_again(tmp_path: Path) -> None:
    heads = list[bytes]()

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, open_session() as session:
        caller = Caller(session, [f"http://{host}:{port}"], tmp_path / "calls", Report(1))
        reply = await caller.call("take back", "DELETE", "/ratings/ann/7")
        caller.close()
    assert reply.status == 0
    assert len(heads) == 1
