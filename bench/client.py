"""A client that costs little beside the server: HTTP/1.1 on plain asyncio protocols, with requests made beforehand."""

import asyncio
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the status is 0 if the connection was closed instead. `head` is in lower case."""

    status: int
    head: bytes
    body: bytes


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A POST request as it is sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Sends one request at a time, and is kept for the next; made by `connect`."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # which uvloop's is no subclass of

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        head = head.lower()
        if len(body) >= int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self._received = b""
            self._settle(Answer(int(head[9:12]), head, body))

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._settle(Answer(0, b"", b""))

    @property
    def open(self) -> bool:
        """Whether it can be used again."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; the answer is still to come."""
        self._answer = asyncio.get_running_loop().create_future()
        self.write(request)
        return self._answer

    def write(self, data: bytes) -> None:
        """Send a request, or a part of one, that nobody waits for."""
        if self._transport is None:
            self._settle(Answer(0, b"", b""))
        else:
            self._transport.write(data)

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def _settle(self, answer: Answer) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(answer)


async def connect(url: str) -> Connection:
    """Open a connection to the server of an address."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, address.hostname or "", address.port or 80))[1]
