# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""The rows of a PNG without their filters; ISO/IEC 15948, clause 9, https://www.w3.org/TR/png/#9Filters."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport abs
from libc.string cimport memcpy

cdef enum:
    SAMPLES = 3  # of a pixel, a byte each


cdef inline int paeth(int left, int above, int corner) noexcept nogil:
    cdef int to_left = abs(above - corner), to_above = abs(left - corner), to_corner = abs(left + above - 2 * corner)
    cdef int guess = above if to_above <= to_corner else corner
    # Without `and`, whose branch no processor foresees.
    return left if (to_left <= to_above) & (to_left <= to_corner) else guess


cdef void undo(int kind, uint8_t* row, const uint8_t* above, Py_ssize_t length) noexcept nogil:
    """Undo a row's filter in place. Left of its first pixel, everything is 0."""
    cdef Py_ssize_t at
    if kind == 1:
        for at in range(SAMPLES, length):
            row[at] += row[at - SAMPLES]
    elif kind == 2:
        for at in range(length):
            row[at] += above[at]
    elif kind == 3:
        for at in range(SAMPLES):
            row[at] += above[at] >> 1
        for at in range(SAMPLES, length):
            row[at] += <uint8_t>((row[at - SAMPLES] + above[at]) >> 1)
    elif kind == 4:
        for at in range(SAMPLES):
            row[at] += above[at]
        for at in range(SAMPLES, length):
            row[at] += <uint8_t>paeth(row[at - SAMPLES], above[at], above[at - SAMPLES])


def unfilter(const uint8_t[::1] data, uint8_t[:, ::1] rows) -> None:
    """Undo the filters of 8-bit RGB.

    Args:
        data: for each row its filter's number, a byte, and what that filter made of the row.
        rows: uint8 [height, 3 * width]; gets the rows.

    Raises:
        ValueError: there are more or fewer bytes than that, or there is no such filter.
    """
    cdef Py_ssize_t number, length = rows.shape[1]
    cdef uint8_t[::1] none
    if length == 0 or length % SAMPLES or data.shape[0] != rows.shape[0] * (1 + length):
        raise ValueError("The bytes are not those of so many pixels.")
    none = bytearray(length)
    for number in range(rows.shape[0]):
        if data[number * (1 + length)] > 4:
            raise ValueError("There is no such filter.")
        memcpy(&rows[number, 0], &data[number * (1 + length) + 1], length)
        undo(data[number * (1 + length)], &rows[number, 0], &rows[number - 1, 0] if number else &none[0], length)
