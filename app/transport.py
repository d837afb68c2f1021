"""Transports that send at once what was written in one turn of the event loop."""

import asyncio
from typing import Any

_MOST_BYTES = 65_536


class GatheringTransport:
    """A transport that holds what is written until the event loop has called all that is due, then sends it.

    An answer leaves in one piece, head and body, and the answers to a batch of requests one right after the other: a
    client is woken up once for all of them, and not between one and the next, which on a small machine takes a
    processor from the service each time.

    Args:
        transport: sends.
        loop: its event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        """Send bytes soon, after those that were written before; at once where they are many."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > _MOST_BYTES:
            self.flush()

    def send(self, data: bytes) -> None:
        """Send bytes at once, after those that were written before."""
        self._parts.append(data)
        self.flush()

    def flush(self) -> None:
        """Send what was written."""
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Send what was written, then close the connection."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
