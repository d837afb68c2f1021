/* A 3x3 convolution and the gradient of its weights in tiles of 4x4 pixels, for vectors of WIDTH floats. Included once for
   each WIDTH, as `vectors.h` is. */

#include "vectors.h"

/* All channels of a tile, of which there is a multiple of 8. */
INLINE void NAME(tile_all)(const Window *window, long channels, float *to, long step) {
    long channel = 0;
    for (; channel + WIDTH <= channels; channel += WIDTH)
        NAME(tile_in)(window->from + channel, window->row, channels, to + channel, step);
    if (channel < channels)
        tile_in_8(window->from + channel, window->row, channels, to + channel, step);
}

/* A block of tiles: transformed, multiplied in each of 36 places, transformed back. */
static TARGET void NAME(convolve)(const Pass *pass, long block, float *scratch) {
    long inputs = pass->inputs, outputs = pass->outputs, first = block * pass->block;
    long count = least(pass->block, pass->tiles - first);
    long in_step = pass->block * inputs + LINE, out_step = pass->block * outputs + LINE;
    float *transformed = scratch + 36 * inputs, *products = transformed + 36 * in_step;
    for (long tile = 0; tile < count; tile++) {
        Window window = cut(&pass->shape, pass->x, inputs, first + tile, 1, 6, scratch);
        NAME(tile_all)(&window, inputs, transformed + tile * inputs, in_step);
    }
    for (long place = 0; place < 36; place++)
        NAME(product)(count, inputs, outputs, transformed + place * in_step, inputs, 1,
                      pass->weights + place * inputs * outputs, products + place * out_step, 0);
    for (long tile = 0; tile < count; tile++) {
        Window window = target(&pass->shape, pass->result, outputs, first + tile);
        for (long channel = 0; channel < outputs; channel += WIDTH) {
            VECTOR values[4][4];
            NAME(tile_out)(products + tile * outputs + channel, out_step, values);
            for (long row = 0; row < window.rows; row++)
                for (long column = 0; column < window.columns; column++)
                    STORE(window.to + row * window.row + column * outputs + channel) = values[row][column];
        }
    }
}

/* What a slice of all tiles gives of the gradient of the transformed weights, [36, inputs, outputs]. */
static TARGET void NAME(weigh)(const Pass *pass, long slice, float *scratch) {
    long inputs = pass->inputs, outputs = pass->outputs, down = inputs + LINE;
    long in_step = pass->block * down + LINE, out_step = pass->block * outputs + LINE;
    long start = slice * pass->tiles / pass->items, end = (slice + 1) * pass->tiles / pass->items;
    float *left = scratch + 36 * (inputs > outputs ? inputs : outputs), *right = left + 36 * in_step;
    float *result = pass->result + slice * 36 * inputs * outputs;
    if (start == end)
        memset(result, 0, 36 * inputs * outputs * sizeof(float));
    for (long first = start; first < end; first += pass->block) {
        long count = least(pass->block, end - first);
        for (long tile = 0; tile < count; tile++) {
            Window window = cut(&pass->shape, pass->x, inputs, first + tile, 1, 6, scratch);
            NAME(tile_all)(&window, inputs, left + tile * down, in_step);
            window = cut(&pass->shape, pass->gradient, outputs, first + tile, 0, 4, scratch);
            for (long strip = 0; strip < outputs; strip += 2 * WIDTH) {
                long wide = least(2 * WIDTH, outputs - strip);
                for (long channel = 0; channel < wide; channel += WIDTH)
                    NAME(tile_back)(window.from + strip + channel, window.row, outputs,
                                    right + strip * count + tile * wide + channel, out_step);
            }
        }
        for (long place = 0; place < 36; place++)
            NAME(product)(inputs, count, outputs, left + place * in_step, 1, down, right + place * out_step,
                          result + place * inputs * outputs, first > start);
    }
}

#undef WIDTH
#undef ROWS
#undef NAME
#undef TARGET
