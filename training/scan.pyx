# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""The entropy-coded scan of a baseline JPEG, at 1/8 of the picture's width and height.

There a block of 8 x 8 samples is one pixel, their mean, and of most Huffman codes nothing but the length matters: a table
says of the next bits how many of them, and how many coefficients, belong to the codes that they hold. The standard is
ITU-T T.81; arithmetic and rounding are those of libjpeg-turbo (jddctmgr.c, jidctred.c, jdcolor.c).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memset

cdef enum:
    LOOK = 13  # bits that are looked up together: the tables of more do not fit into a processor's first cache
    END = 128  # added to the coefficients of a step that ends its block
    UNKNOWN = 255  # stands for the coefficients of a step that is not in the table
    LARGEST = 511  # sample, before 128 is added, up to which libjpeg clips and does not wrap around

cdef struct Codes:
    uint16_t step[1 << LOOK]  # coefficients << 8 | bits, of all whole codes at the start of the index
    uint16_t code[1 << LOOK]  # symbol << 8 | bits, of the first code; 0 if it is longer than the index
    int last[17]  # the largest code of each length, or -1
    int offset[17]  # from a code of each length to its symbol's place
    uint8_t symbols[256]

cdef struct Bits:
    uint64_t ahead  # what comes next, the first bit highest
    int count  # bits in it that are valid; negative if the data ended, or made no sense
    Py_ssize_t place  # of the next byte

cdef struct Source:
    const uint8_t* data
    Py_ssize_t size

cdef struct Component:
    const Codes* dc
    const Codes* ac
    int[64] steps  # of quantisation, in zigzag order
    int previous  # DC coefficient

cdef uint8_t[64] ZIGZAG = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35,
    42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
]


cdef class Huffman:
    """A Huffman table; T.81, annex C.

    Args:
        counts: how many codes there are of each length from 1 to 16 bits.
        symbols: what they mean, in the order of the codes.

    Raises:
        ValueError: there are no such codes.
    """

    cdef Codes codes

    def __init__(self, const uint8_t[:] counts, const uint8_t[:] symbols) -> None:
        cdef int length, number, code = 0, place = 0
        memset(&self.codes, 0, sizeof(Codes))
        if counts.shape[0] != 16 or symbols.shape[0] > 256:
            raise ValueError("A Huffman table has codes of 16 lengths and at most 256 symbols.")
        for length in range(1, 17):
            self.codes.offset[length] = place - code
            for number in range(counts[length - 1]):
                self.codes.symbols[place & 255] = symbols[place]
                if length <= LOOK:
                    self._enter(code << (LOOK - length), 1 << (LOOK - length), symbols[place] << 8 | length)
                code += 1
                place += 1
            self.codes.last[length] = code - 1 if counts[length - 1] else -1
            if code >= 1 << length:
                raise ValueError("A Huffman table has more codes than there can be.")
            code <<= 1
        self._combine()

    cdef int _enter(self, int first, int count, int code) except -1:
        cdef int index
        for index in range(first, first + count):
            if index >= 1 << LOOK:
                raise ValueError("A Huffman table has more codes than there can be.")
            self.codes.code[index] = <uint16_t>code
        return 0

    cdef void _combine(self) noexcept:
        cdef int index, used, coefficients, code, more
        for index in range(1 << LOOK):
            used = coefficients = 0
            while coefficients < END:
                code = self.codes.code[(index << used) & ((1 << LOOK) - 1)]
                more = END if is_end(code) else coefficients_of(code)
                if code == 0 or used + (code & 31) > LOOK or (more < END and coefficients + more >= 64):
                    break
                used += (code & 31) + (0 if more == END else size_of(code))
                coefficients += more
                if used >= LOOK:
                    break
            self.codes.step[index] = <uint16_t>(coefficients << 8 | used) if used else UNKNOWN << 8


cdef inline bint is_end(int code) noexcept nogil:
    return size_of(code) == 0 and code >> 12 != 15


cdef inline int size_of(int code) noexcept nogil:
    """Of the number behind it, in bits."""
    return code >> 8 & 15


cdef inline int coefficients_of(int code) noexcept nogil:
    return (code >> 12) + 1


cdef inline Bits refill(Bits bits, Source source) noexcept nogil:
    """At least 56 valid bits, if there are so many before the next marker."""
    cdef const uint8_t* data
    cdef uint64_t word
    if bits.count >= 0 and bits.place + 8 <= source.size:
        data = source.data + bits.place
        word = (
            <uint64_t>data[0] << 56 | <uint64_t>data[1] << 48 | <uint64_t>data[2] << 40 | <uint64_t>data[3] << 32
            | <uint64_t>data[4] << 24 | <uint64_t>data[5] << 16 | <uint64_t>data[6] << 8 | <uint64_t>data[7]
        )
        if ((~word - 0x0101010101010101ULL) & word & 0x8080808080808080ULL) == 0:  # no byte is 255
            bits.ahead |= word >> bits.count
            bits.place += (63 - bits.count) >> 3
            bits.count |= 56
            return bits
    return refill_bytewise(bits, source)


cdef Bits refill_bytewise(Bits bits, Source source) noexcept nogil:
    cdef uint8_t byte
    while 0 <= bits.count < 56 and bits.place < source.size:
        byte = source.data[bits.place]
        if byte == 255:
            if bits.place + 1 >= source.size or source.data[bits.place + 1] != 0:
                break
            bits.place += 1
        bits.place += 1
        bits.ahead |= <uint64_t>byte << (56 - bits.count)
        bits.count += 8
    return bits


cdef inline Bits drop(Bits bits, int count) noexcept nogil:
    bits.ahead <<= count
    bits.count -= count
    return bits


cdef inline int find(const Codes* codes, uint64_t ahead) noexcept nogil:
    """symbol << 8 | bits of the next code; 0 if there is no such code."""
    cdef int length, code = codes.code[ahead >> (64 - LOOK)]
    if code:
        return code
    for length in range(LOOK + 1, 17):
        code = <int>(ahead >> (64 - length))
        if code <= codes.last[length]:
            return codes.symbols[(code + codes.offset[length]) & 255] << 8 | length
    return 0


cdef inline int extend(uint64_t ahead, int size) noexcept nogil:
    """The number in the next bits; T.81, F.2.2.1."""
    cdef int value
    if size == 0:
        return 0
    value = <int>(ahead >> (64 - size))
    return value if value >> (size - 1) else value - (1 << size) + 1


cdef inline Bits first(Bits bits, Source source, Component* component) noexcept nogil:
    """A block's DC coefficient, which becomes the component's `previous`."""
    cdef int code
    bits = refill(bits, source)
    code = find(component.dc, bits.ahead)
    bits = drop(bits, code & 31)
    component.previous += extend(bits.ahead, size_of(code))
    bits = drop(bits, size_of(code))
    if code == 0 or not -32768 <= component.previous <= 32767:
        bits.count = -1
    return bits


cdef inline Bits skip(Bits bits, Source source, const Codes* codes) noexcept nogil:
    """Past a block's AC coefficients; 56 bits are enough for two steps, each of at most LOOK + 15."""
    cdef int code, step, place = 1
    while True:
        bits = refill(bits, source)
        step = codes.step[bits.ahead >> (64 - LOOK)]
        if place + (step >> 8) < 64:
            place += step >> 8
            bits = drop(bits, step & 63)
            step = codes.step[bits.ahead >> (64 - LOOK)]
            if place + (step >> 8) < 64:
                place += step >> 8
                bits = drop(bits, step & 63)
                continue
        code = place + (step >> 8)
        if code == 64 or END < code < END + 64:
            return drop(bits, step & 63)
        bits = refill(bits, source)
        # A long code, or codes of which the last ones belong to the next block.
        code = find(codes, bits.ahead)
        bits = drop(bits, code & 31)
        if code == 0:
            bits.count = -1
        if is_end(code):
            return bits
        bits = drop(bits, size_of(code))
        place += coefficients_of(code)
        if place > 64:
            bits.count = -1
        if place >= 64:
            return bits


cdef inline Bits read(Bits bits, Source source, Component* component, int* block, bint* flat) noexcept nogil:
    """A block's AC coefficients, times their steps, in natural order; `flat` if all are 0."""
    cdef int code, value, place = 0
    flat[0] = True
    while place < 63:
        bits = refill(bits, source)
        code = find(component.ac, bits.ahead)
        bits = drop(bits, code & 31)
        if code == 0:
            bits.count = -1
        if is_end(code):
            return bits
        place += coefficients_of(code)
        if place > 63:
            bits.count = -1
            return bits
        value = extend(bits.ahead, size_of(code)) * component.steps[place]
        bits = drop(bits, size_of(code))
        if not -32768 <= value <= 32767:
            bits.count = -1
        if flat[0]:
            memset(block, 0, 64 * sizeof(int))
            flat[0] = False
        block[ZIGZAG[place]] = value
    return bits


cdef inline int clip(int64_t value) noexcept nogil:
    return 0 if value < 0 else 255 if value > 255 else <int>value


cdef inline int sample(int64_t value) noexcept nogil:
    """-1 if it is too large."""
    return clip(value + 128) if -LARGEST <= value <= LARGEST else -1


cdef inline int64_t odd(const int64_t* values) noexcept nogil:
    return values[1] * 29692 - values[3] * 10426 + values[5] * 6967 - values[7] * 5906


cdef void halves(const int* block, int* pixels) noexcept nogil:
    """2 x 2 pixels of a block, as `jpeg_idct_2x2` of libjpeg; -1 for those that are too large."""
    cdef int64_t[8] column
    cdef int64_t[2][8] rows
    cdef int x, y
    for x in range(8):
        for y in range(1, 8, 2):
            column[y] = block[8 * y + x]
        rows[0][x] = (block[x] * 32768LL + odd(column) + (1 << 12)) >> 13
        rows[1][x] = (block[x] * 32768LL - odd(column) + (1 << 12)) >> 13
    for y in range(2):
        pixels[2 * y] = sample((rows[y][0] * 32768 + odd(rows[y]) + (1 << 19)) >> 20)
        pixels[2 * y + 1] = sample((rows[y][0] * 32768 - odd(rows[y]) + (1 << 19)) >> 20)


cdef Bits restart(Bits bits, Source source, int number) noexcept nogil:
    """Past the marker that ends an interval."""
    cdef Py_ssize_t place = bits.place
    if 0 <= bits.count < 8 and place + 2 <= source.size and source.data[place] == 255:
        if source.data[place + 1] == 0xD0 + (number & 7):
            return Bits(ahead=0, count=0, place=place + 2)
    bits.count = -1
    return bits


cdef Bits unit(Source source, Bits bits, Component* components, int across, int down, uint8_t* pixels, Py_ssize_t stride) noexcept nogil:
    """One unit of the scan; `pixels` are its first one and those behind it, `stride` bytes a row."""
    cdef int[64] block
    cdef int[4] values
    cdef int number, x, y, value, least = 0
    cdef bint flat
    cdef Component* component
    for y in range(down):
        for x in range(across):
            bits = skip(first(bits, source, components), source, components.ac)
            value = sample((<int64_t>components.previous * components.steps[0] + 4) >> 3)
            least = min(least, value)
            pixels[y * stride + 3 * x] = <uint8_t>value
    for number in range(1, 3):
        component = components + number
        bits = first(bits, source, component)
        value = sample((<int64_t>component.previous * component.steps[0] + 4) >> 3)
        values = [value, value, value, value]
        if across == 2 and down == 2:
            bits = read(bits, source, component, block, &flat)
            if not flat:
                block[0] = component.previous * component.steps[0]
                halves(block, values)
        else:
            bits = skip(bits, source, component.ac)
        for y in range(down):
            for x in range(across):
                least = min(least, values[2 * y + x])
                pixels[y * stride + 3 * x + number] = <uint8_t>values[2 * y + x]
    if least < 0:
        bits.count = -1
    return bits


cdef Py_ssize_t scan(
    Source source,
    Bits bits,
    Component* components,
    int across,
    int down,
    int interval,
    uint8_t* pixels,
    Py_ssize_t rows,
    Py_ssize_t columns,
) noexcept nogil:
    cdef Py_ssize_t row, column
    cdef int number, units = 0
    for row in range(rows // down):
        for column in range(columns // across):
            if interval and units and units % interval == 0:
                bits = restart(bits, source, units // interval - 1)
                for number in range(3):
                    components[number].previous = 0
            units += 1
            bits = unit(source, bits, components, across, down, pixels + 3 * (row * down * columns + column * across), 3 * columns)
            if bits.count < 0:
                return -1
    return bits.place if bits.count < 8 else -1


def means(
    const uint8_t[::1] data,
    Py_ssize_t place,
    tables,
    const int[:, ::1] steps,
    int across,
    int down,
    int interval,
    uint8_t[:, :, ::1] pixels,
) -> int:
    """Decode a scan of three components, the first of which has 1, 2 or 4 blocks in each unit, the others one.

    Args:
        data: the file.
        place: of the scan's first byte.
        tables: for each component, the Huffman tables of its DC and AC coefficients.
        steps: of quantisation, int32 [3, 64], in zigzag order.
        across: blocks of the first component in a unit, side by side, 1 or 2.
        down: one above the other, 1 or 2.
        interval: units between two restart markers; 0 if there are none.
        pixels: uint8 [blocks down, blocks across, 3], of whole units; gets the three components.

    Returns:
        The place behind the scan; -1 if anything is not in order.

    Raises:
        ValueError: the arguments do not fit together.
    """
    cdef Component[3] components
    cdef int number, zigzag
    cdef Py_ssize_t rows = pixels.shape[0], columns = pixels.shape[1]
    if not (0 <= place < data.shape[0] and across in (1, 2) and down in (1, 2) and rows % down == 0 and columns % across == 0):
        raise ValueError("The picture is not of whole units, or its scan is outside of the file.")
    if not (rows and columns and pixels.shape[2] == 3 and steps.shape[0] == 3 and steps.shape[1] == 64):
        raise ValueError("A scan has three components.")
    for number in range(3):
        components[number].dc = &(<Huffman?>tables[number][0]).codes
        components[number].ac = &(<Huffman?>tables[number][1]).codes
        components[number].previous = 0
        for zigzag in range(64):
            components[number].steps[zigzag] = steps[number, zigzag]
    with nogil:
        place = scan(
            Source(data=&data[0], size=data.shape[0]),
            Bits(ahead=0, count=0, place=place),
            components,
            across,
            down,
            interval,
            &pixels[0, 0, 0],
            rows,
            columns,
        )
    return place


def to_rgb(uint8_t[:, :, ::1] pixels) -> None:
    """Convert YCbCr to RGB, in place; ITU-T T.871."""
    cdef Py_ssize_t index
    cdef uint8_t* pixel = &pixels[0, 0, 0]
    cdef int luma, blue, red
    if pixels.shape[2] != 3:
        raise ValueError("There are three components.")
    with nogil:
        for index in range(pixels.shape[0] * pixels.shape[1]):
            luma, blue, red = pixel[0], pixel[1] - 128, pixel[2] - 128
            pixel[0] = <uint8_t>clip(luma + ((91881 * red + 32768) >> 16))
            pixel[1] = <uint8_t>clip(luma + ((-22554 * blue - 46802 * red + 32768) >> 16))
            pixel[2] = <uint8_t>clip(luma + ((116130 * blue + 32768) >> 16))
            pixel += 3
