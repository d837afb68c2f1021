"""Multipart forms: read as the general parser reads them, and refused where they are malformed."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser

from app.errors import InvalidRequestError
from app.serving import multipart

HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'

# Pieces of delimiters, so that data looks as much like one as it can.
pieces = st.sampled_from([b"\r\n", b"--", b"x", b"--x", b"\r\n--", b"\r", b"\n", b"y", b"\x00\xff"])
files = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.lists(pieces, max_size=8).map(b"".join)
    ),
    min_size=1,
    max_size=4,
)


def data_of(body: bytes, boundary: bytes) -> list[bytes]:
    """The data of all parts, by python-multipart."""
    found: list[bytearray] = []
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: found.append(bytearray()),
            "on_part_data": lambda data, start, end: found[-1].extend(data[start:end]),
        },
    )
    parser.write(body)
    parser.finalize()
    return [bytes(data) for data in found]


@given(files=files)
def test_forms_of_a_client_are_read(files: list[tuple[str, bytes]]) -> None:
    boundary = "x-boundary-that-no-data-holds"
    request = httpx.Request(
        "POST",
        "http://refit/predict",
        files=[("file", (name or "a", data)) for name, data in files],
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    body = request.read()
    parts = list(multipart.parse(body, request.headers["content-type"]))
    assert [part.data for part in parts] == [data for _, data in files] == data_of(body, boundary.encode())
    assert {part.name for part in parts} == {"file"}


@pytest.mark.parametrize(
    ("header", "name", "filename"),
    [
        (b'form-data; name="file"; filename="cat.png"', "file", "cat.png"),
        (b'form-data; name="file"; filename=""', "file", ""),
        (b"form-data; name=file; filename=cat.png", "file", "cat.png"),
        (b'FORM-DATA; filename="cat.png"; name="file"', "file", "cat.png"),
        (b'form-data; name="file"; filename="a\\"b.png"', "file", 'a"b.png'),
        ('form-data; name="file"; filename="кот.png"'.encode(), "file", "кот.png"),
        (b'form-data; name="text"', "text", None),
    ],
)
def test_names_are_read(header: bytes, name: str, filename: str | None) -> None:
    body = b"--x\r\nContent-Type: image/png\r\ncontent-disposition: " + header + b"\r\n\r\n1\r\n--x--\r\n"
    (part,) = multipart.parse(body, "multipart/form-data; boundary=x")
    assert (part.name, part.filename, part.data) == (name, filename, b"1")


@pytest.mark.parametrize(
    "body",
    [
        b"a preamble\r\n" + HEAD + b"1\r\n--x--\r\nan epilogue",
        HEAD + b"1\r\n--x-- \r\n",
        HEAD.replace(b"--x\r\n", b"--x \t\r\n") + b"1\r\n--x--",
    ],
)
def test_what_the_standard_allows_around_parts(body: bytes) -> None:
    assert [part.data for part in multipart.parse(body, 'multipart/form-data; boundary="x"')] == [b"1"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"this is no form",
        b"--y\r\n",
        b"--x",
        b"--x\r\n",
        b"--xx\r\n\r\n1\r\n--xx--",
        HEAD,
        HEAD + b"1",
        HEAD + b"1\r\n--x",
        HEAD + b"1\r\n--x-",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
        b"--x\r\nContent-Type: image/png\r\n\r\n1\r\n--x--",
        b"--x\r\nA: " + b"a" * 10_000 + b"\r\n\r\n1\r\n--x--",
    ],
)
def test_malformed_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        list(multipart.parse(body, "multipart/form-data; boundary=x"))


def test_missing_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="boundary"):
        list(multipart.parse(b"--x--", "multipart/form-data"))
