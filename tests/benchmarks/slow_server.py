"""A model behind HTTP: doubles the numbers it is sent. Takes 20 ms for a request, and so many at a time.

Prints the port it listens at, then serves until it is ended.
"""

import asyncio
import json
import sys


async def serve(most_rows: int, places: int) -> None:
    free = asyncio.Semaphore(places)

    async def answer(reader, writer):
        with_length = b"content-length:"
        while request := await reader.readline():
            assert request.startswith(b"POST /predict")
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(with_length):
                    length = int(line[len(with_length) :])
            rows = json.loads(await reader.readexactly(length))
            status = "200 OK" if len(rows) <= most_rows else "413 Content Too Large"
            async with free:
                await asyncio.sleep(0.020)
            body = json.dumps([2 * row for row in rows]).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
