"""Multipart forms (RFC 7578) that are in memory already: parts are found by searching, and nothing is spooled."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from python_multipart.multipart import parse_options_header

from app.errors import InvalidRequestError

# What nearly every client writes; anything else, such as escapes or filename*, goes through the general parser.
_PLAIN = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?', re.IGNORECASE)
_PLAIN_TYPE = re.compile(r'multipart/form-data; ?boundary=([^\s";,]+)', re.IGNORECASE)
_MAX_HEADER_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form; `filename` is None for text, and may be empty for a file."""

    name: str
    filename: str | None
    data: bytes


def parse(body: bytes, content_type: str) -> Iterator[Part]:
    """Read a form part by part.

    Args:
        body: all of it.
        content_type: the request's, with the boundary.

    Raises:
        InvalidRequestError: it is no form, or ends early.
    """
    boundary = _boundary(content_type)
    if not boundary:
        raise _malformed("Its content type names no boundary.")
    delimiter = b"\r\n--" + boundary
    # The first delimiter has no line before it, unless the client wrote a preamble.
    place = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2
    if place == 1:
        raise _malformed("The boundary does not occur in it.")
    place += len(delimiter) - 2
    while body[place : place + 2] != b"--":
        line = body.find(b"\r\n", place)
        if line < 0 or body[place:line].strip(b" \t"):
            raise _malformed("It ends early, or a boundary does not end its line.")
        start = body.find(b"\r\n\r\n", line, line + _MAX_HEADER_BYTES)
        end = body.find(delimiter, start + 2)
        if start < 0 or end < 0:
            raise _malformed("A part of it ends early.")
        yield _part(body[line + 2 : start], body[start + 4 : end])
        place = end + len(delimiter)


@lru_cache(maxsize=64)  # a client library may write the same one into all of its forms
def _boundary(content_type: str) -> bytes | None:
    if plain := _PLAIN_TYPE.fullmatch(content_type):
        return plain[1].encode("latin-1")
    return parse_options_header(content_type)[1].get(b"boundary")


def _part(headers: bytes, data: bytes) -> Part:
    for line in headers.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            name, filename = _disposition(value.strip())
            if name is not None:
                return Part(_text(name), None if filename is None else _text(filename), data)
    raise _malformed("A part of it has no name.")


def _disposition(value: bytes) -> tuple[bytes | None, bytes | None]:
    if plain := _PLAIN.fullmatch(value):
        return plain[1], plain[2]
    options = parse_options_header(value)[1]
    return options.get(b"name"), options.get(b"filename")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _malformed(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The multipart form cannot be read. {reason} Let your HTTP library make the form and its header."
    )
