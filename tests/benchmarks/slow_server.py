"""An HTTP server that doubles numbers, takes 20 ms per request and limits concurrent requests.

Prints its port, then serves until it is terminated.
"""

import asyncio
import json
import sys


async def serve(max_rows: int, max_concurrent: int) -> None:
    slots = asyncio.Semaphore(max_concurrent)

    async def answer(reader, writer):
        length_header = b"content-length:"
        while request := await reader.readline():
            assert request.startswith(b"POST /predict")
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(length_header):
                    length = int(line[len(length_header) :])
            rows = json.loads(await reader.readexactly(length))
            status = "200 OK" if len(rows) <= max_rows else "413 Content Too Large"
            async with slots:
                await asyncio.sleep(0.020)
            body = json.dumps([2 * row for row in rows]).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
