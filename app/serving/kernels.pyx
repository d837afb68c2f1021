# cython: language_level=3, boundscheck=True, wraparound=False
"""A convolutional network in float32 on this machine's processors, without any library; the layers are in `layers.h`."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

cdef extern from "kernels.h" nogil:
    enum: CONVOLUTION
    enum: WINOGRAD
    enum: MAXIMUM
    enum: SUM
    enum: LINEAR
    enum: RELU
    enum: GELU
    enum: ROWS_4
    enum: ROWS_8
    enum: ROWS_16

    ctypedef struct Map:
        long pictures, side, channels, border, across, size

    ctypedef struct Layer:
        int kind, activation, source, target, residual
        long kernel, stride, pad, block
        const float *weights
        const float *shift

    ctypedef struct Group:
        long end, pictures

    ctypedef struct Program:
        int width, layers, maps, groups
        Layer *layer
        Map *map
        Group *group
        float scale[3]
        float shift[3]
        long outputs, scratch, most

    ctypedef struct Team:
        pass

    int widest()
    Team *open_team(const Program *program, int threads)
    void close_team(Team *team)
    void compute_batch(Team *team, const uint8_t *pixels, long total, float *answers)

import numpy as np

KINDS = {"convolution": CONVOLUTION, "winograd": WINOGRAD, "maximum": MAXIMUM, "sum": SUM}
ACTIVATIONS = {"linear": LINEAR, "relu": RELU, "gelu": GELU}
ROWS = {4: ROWS_4, 8: ROWS_8, 16: ROWS_16}
WIDTHS = tuple(width for width in (4, 8, 16) if width <= widest())


cdef class Network:
    """The layers of a network and the maps between them. Any number of `Computer` may use it.

    Args:
        width: floats in a vector, of `WIDTHS`.
        maps: int64 [maps, 4], for how many pictures each one has room, its side and border in pixels, and channels; the
            first takes the pictures, as many as a thread computes at a time.
        groups: int64 [groups, 2], the layers up to a number that are computed for so many pictures, before they are for
            the next ones. Maps for fewer pictures than the first one are used in one group only.
        layers: int64 [layers, 9], each one's kind, activation, source, target and residual, which are numbers of maps
            or -1 for no residual, kernel, stride and pad in pixels, and how many tiles or pixels it computes at a time.
        weights: float32, of each layer, in the order in which it reads them.
        shifts: float32 [channels] of each layer, what is added to its sums.
        scale: of the three colours; with `shift`, the input of the first layer is scale * pixel + shift.
        shift: of the three colours.
        outputs: answers for a picture, the first channels of what the last layer gives.
        scratch: floats that the layer which needs most keeps in between.

    Raises:
        MemoryError: there is not enough.
    """
    cdef Program program
    cdef object kept
    cdef readonly int side

    def __cinit__(self, int width, const long[:, ::1] maps, const long[:, ::1] groups, const long[:, ::1] layers,
                  list weights, list shifts, scale, shift, long outputs, long scratch):
        cdef const float[::1] values
        cdef int number
        cdef Layer *layer
        cdef Map *place
        if width not in WIDTHS:
            raise ValueError(f"This processor has no vectors of {width} floats.")
        self.program.layer = <Layer *>calloc(layers.shape[0], sizeof(Layer))
        self.program.map = <Map *>calloc(maps.shape[0], sizeof(Map))
        self.program.group = <Group *>calloc(groups.shape[0], sizeof(Group))
        if not self.program.layer or not self.program.map or not self.program.group:
            raise MemoryError
        self.kept = (weights, shifts)
        self.side = maps[0, 1]
        self.program.most, self.program.groups = maps[0, 0], groups.shape[0]
        self.program.width, self.program.outputs, self.program.scratch = width, outputs, scratch
        self.program.layers, self.program.maps = layers.shape[0], maps.shape[0]
        for number in range(3):
            self.program.scale[number], self.program.shift[number] = scale[number], shift[number]
        for number in range(maps.shape[0]):
            place = self.program.map + number
            place.pictures, place.side = maps[number, 0], maps[number, 1]
            place.border, place.channels = maps[number, 2], maps[number, 3]
            # Tiles of 4x4 pixels may reach beyond the picture.
            place.across = (place.side + 3) // 4 * 4 + 2 * place.border
            place.size = place.across * place.across * place.channels
        for number in range(groups.shape[0]):
            self.program.group[number].end, self.program.group[number].pictures = groups[number, 0], groups[number, 1]
        for number in range(layers.shape[0]):
            layer = self.program.layer + number
            layer.kind, layer.activation = layers[number, 0], layers[number, 1]
            layer.source, layer.target, layer.residual = layers[number, 2], layers[number, 3], layers[number, 4]
            layer.kernel, layer.stride, layer.pad = layers[number, 5], layers[number, 6], layers[number, 7]
            layer.block = layers[number, 8]
            values = weights[number]
            layer.weights = &values[0]
            values = shifts[number]
            layer.shift = &values[0]

    def __dealloc__(self):
        free(self.program.layer)
        free(self.program.map)
        free(self.program.group)


cdef class Computer:
    """Computes batches of a network, one at a time, with threads of its own.

    Args:
        network: the network.
        threads: that compute, the caller included.

    Raises:
        MemoryError: there is not enough, or no more threads can be started.
    """
    cdef Network network
    cdef Team *team

    def __cinit__(self, Network network, int threads):
        self.network = network
        self.team = open_team(&network.program, threads)
        if not self.team:
            raise MemoryError

    def __dealloc__(self):
        if self.team:
            close_team(self.team)

    def compute(self, const uint8_t[:, :, :, ::1] pixels):
        """Answers float32 [N, outputs] to pictures uint8 [N, 3, side, side].

        Raises:
            ValueError: the pictures have another shape.
        """
        answers = np.empty((pixels.shape[0], self.network.program.outputs), np.float32)
        cdef float[:, ::1] found = answers
        cdef long total = pixels.shape[0]
        if pixels.shape[1] != 3 or pixels.shape[2] != self.network.side or pixels.shape[3] != self.network.side:
            raise ValueError(f"The network takes pictures of 3 x {self.network.side} x {self.network.side} numbers.")
        if total:
            with nogil:
                compute_batch(self.team, &pixels[0, 0, 0, 0], total, &found[0, 0])
        return answers
