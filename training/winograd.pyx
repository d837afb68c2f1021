# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
"""3x3 convolutions of stride 1, padding 1, in float32, and the gradient of their weights; the arithmetic is in `convolve.h`.

They go by Winograd's minimal filtering, F(4x4, 3x3), 36 multiplications for 16 pixels instead of 144: Lavin and Gray 2016,
Fast algorithms for convolutional neural networks, arXiv:1509.09308.
"""

cdef extern from "convolve.h" nogil:
    enum: LINE
    enum: ROWS_16

    ctypedef struct Shape:
        long height, width, down, across

    ctypedef struct Pass:
        Shape shape
        long inputs, outputs, tiles, block, items, next, entered, scratch_step
        const float *x
        const float *weights
        const float *gradient
        float *result
        float *scratch
        int width

    int widest()
    void *parallel()
    void run(Pass *work, int threads)

import numpy as np

cdef enum:
    PLACES = 36
    BLOCK = 1 << 18  # floats that a block of tiles takes: what fits into a processor's second cache


def available():
    """Whether this processor has AVX2 or AVX-512, which it is made for, and torch was imported and brought its threads."""
    return widest() > 4 and parallel() != NULL


cdef Pass described(const float[:, :, :, ::1] x, Py_ssize_t outputs) except *:
    cdef Pass work
    if not available() or not x.size or x.shape[3] % 8 or outputs % 8:
        raise ValueError("The channels are no multiple of 8, there is no picture, or this processor is not made for it.")
    work.shape.height, work.shape.width = x.shape[1], x.shape[2]
    work.shape.down, work.shape.across = (x.shape[1] + 3) // 4, (x.shape[2] + 3) // 4
    work.tiles = x.shape[0] * work.shape.down * work.shape.across
    work.inputs, work.outputs, work.x, work.width = x.shape[3], outputs, &x[0, 0, 0, 0], strip(outputs) // 2
    work.next = work.entered = 0
    return work


def strip(Py_ssize_t outputs):
    """How many outputs lie together in the weights that `convolve` takes; fewer in the last strip, if some are left."""
    return 32 if widest() == 16 and outputs % 16 == 0 else 16


def convolve(const float[:, :, :, ::1] x, const float[::1] weights, float[:, :, :, ::1] result, int threads):
    """Write the convolution of x [N, H, W, inputs] to `result` [N, H, W, outputs].

    Args:
        weights: transformed, in 36 places, in each one strips of outputs, [inputs, strip].
        threads: of torch's that compute it.

    Raises:
        ValueError: shapes do not belong together, or channels are no multiple of 8.
    """
    cdef Pass work = described(x, result.shape[3])
    if weights.shape[0] != PLACES * work.inputs * work.outputs or tuple(x.shape)[:3] != tuple(result.shape)[:3]:
        raise ValueError("The weights or the result have another shape.")
    work.block = max(2 * ROWS_16, BLOCK // (PLACES * (work.inputs + work.outputs)) // ROWS_16 * ROWS_16)
    work.items = (work.tiles + work.block - 1) // work.block
    work.result, work.weights, work.gradient = &result[0, 0, 0, 0], &weights[0], NULL
    work.scratch_step = PLACES * (work.inputs + work.block * (work.inputs + work.outputs) + 2 * LINE)
    cdef float[::1] scratch = np.empty(threads * work.scratch_step, np.float32)
    work.scratch = &scratch[0]
    with nogil:
        run(&work, threads)


def weight_gradient(const float[:, :, :, ::1] x, const float[:, :, :, ::1] gradient, float[:, :, :, ::1] result):
    """Write the gradient of the transformed weights to `result` [threads, 36, inputs, outputs], a share by each thread.

    Args:
        x: [N, H, W, inputs].
        gradient: of the convolution's result, [N, H, W, outputs].

    Raises:
        ValueError: shapes do not belong together, or channels are no multiple of 8.
    """
    cdef Pass work = described(x, gradient.shape[3])
    if tuple(x.shape)[:3] != tuple(gradient.shape)[:3] or tuple(result.shape)[1:4] != (PLACES, work.inputs, work.outputs):
        raise ValueError("The gradient or the result have another shape.")
    # Few enough for the caches, enough to be worth a look at every sum.
    work.block = min(128, max(24, work.inputs * work.outputs // (work.inputs + work.outputs)))
    work.items = result.shape[0]
    work.result, work.gradient = &result[0, 0, 0, 0], &gradient[0, 0, 0, 0]
    work.scratch_step = PLACES * (max(work.inputs, work.outputs) + work.block * (work.inputs + work.outputs + LINE) + 2 * LINE)
    cdef float[::1] scratch = np.empty(work.items * work.scratch_step, np.float32)
    work.scratch = &scratch[0]
    with nogil:
        run(&work, work.items)
