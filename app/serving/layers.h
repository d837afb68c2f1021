/* The layers of a convolutional network in float32, for vectors of WIDTH floats. Included once for each WIDTH, as
   `vectors.h` is. */

#include "../../training/vectors.h"

typedef int32_t NAME(integers) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
#define INTEGERS NAME(integers)
#define CHOOSE(condition, one, other) \
    ((VECTOR)(((INTEGERS)(condition) & (INTEGERS)(one)) | (~(INTEGERS)(condition) & (INTEGERS)(other))))

/* e to the power of x, which is not positive: 2 to a whole power, times the Taylor series of the rest. */
INLINE VECTOR NAME(exponential)(VECTOR x) {
    VECTOR none = {0}, least = none - 87;
    x = CHOOSE(x < least, least, x);
    INTEGERS whole = __builtin_convertvector(x * 1.44269504f - 0.5f, INTEGERS);
    VECTOR times = __builtin_convertvector(whole, VECTOR), rest = x - times * 0.693359375f + times * 2.12194440e-4f;
    VECTOR sum = 1.98412698e-4f * rest + 1.38888889e-3f;
    sum = sum * rest + 8.33333333e-3f;
    sum = sum * rest + 4.16666667e-2f;
    sum = sum * rest + 1.66666667e-1f;
    sum = sum * rest + 0.5f;
    sum = sum * rest * rest + rest + 1;
    return (VECTOR)((INTEGERS)sum + (whole << 23));
}

/* x times the normal distribution function of x. The error function is Abramowitz and Stegun's 7.1.26. */
INLINE VECTOR NAME(gelu)(VECTOR x) {
    VECTOR none = {0}, size = CHOOSE(x < none, -x, x) * 0.707106781f, t = 1 / (1 + 0.3275911f * size);
    VECTOR sum = 1.061405429f * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = (sum * t + 0.254829592f) * t;
    VECTOR half = 0.5f * sum * NAME(exponential)(-size * size); /* of what lies beyond x, on its side */
    return x * CHOOSE(x < none, half, 1 - half);
}

INLINE VECTOR NAME(activated)(VECTOR x, int activation) {
    VECTOR none = {0};
    if (activation == RELU)
        return CHOOSE(x > none, x, none);
    return activation == GELU ? NAME(gelu)(x) : x;
}

/* What becomes of a sum on its way to the target. */
INLINE void NAME(finish)(const Layer *layer, VECTOR sum, long channel, const float *residual, float *target) {
    sum += LOAD(layer->shift + channel);
    if (residual)
        sum += LOAD(residual + channel);
    STORE(target + channel) = NAME(activated)(sum, layer->activation);
}

/* A 3x3 convolution in tiles of 4x4 pixels: transformed, multiplied in each of 36 places, transformed back. */
static TARGET void NAME(winograd)(const Layer *layer, const Map *source, const Map *target, const Map *residual,
                                  long pictures, float *scratch) {
    long inputs = source->channels, outputs = target->channels;
    long across = (target->side + 3) / 4, each = across * across, total = pictures * each;
    long in_step = layer->block * inputs + LINE, out_step = layer->block * outputs + LINE;
    float *transformed = scratch, *products = scratch + 36 * in_step;
    for (long first = 0; first < total; first += layer->block) {
        long count = total - first < layer->block ? total - first : layer->block;
        for (long tile = 0; tile < count; tile++) {
            long place = (first + tile) % each, y = place / across * 4, x = place % across * 4;
            const float *from = pixel(source, (first + tile) / each, y - 1, x - 1);
            for (long channel = 0; channel < inputs; channel += WIDTH)
                NAME(tile_in)(from + channel, source->across * inputs, inputs, transformed + tile * inputs + channel,
                              in_step);
        }
        for (long place = 0; place < 36; place++)
            NAME(product)(count, inputs, outputs, transformed + place * in_step, inputs, 1,
                          layer->weights + place * inputs * outputs, products + place * out_step, 0);
        for (long tile = 0; tile < count; tile++) {
            long picture = (first + tile) / each, place = (first + tile) % each;
            long y = place / across * 4, x = place % across * 4;
            for (long channel = 0; channel < outputs; channel += WIDTH) {
                VECTOR values[4][4];
                NAME(tile_out)(products + tile * outputs + channel, out_step, values);
                for (long row = 0; row < 4 && y + row < target->side; row++)
                    for (long column = 0; column < 4 && x + column < target->side; column++)
                        NAME(finish)(layer, values[row][column], channel,
                                     residual ? pixel(residual, picture, y + row, x + column) : NULL,
                                     pixel(target, picture, y + row, x + column));
            }
        }
    }
}

/* Any other convolution: what each pixel of the target sees is copied together and multiplied. */
static TARGET void NAME(convolution)(const Layer *layer, const Map *source, const Map *target, const Map *residual,
                                     long pictures, float *scratch) {
    long run = layer->kernel * source->channels, depth = layer->kernel * run, outputs = target->channels;
    long each = target->side * target->side, total = pictures * each;
    float *products = scratch + layer->block * depth;
    for (long first = 0; first < total; first += layer->block) {
        long count = total - first < layer->block ? total - first : layer->block;
        for (long row = 0; row < count; row++) {
            long place = (first + row) % each;
            long y = place / target->side * layer->stride - layer->pad, x = place % target->side * layer->stride - layer->pad;
            for (long line = 0; line < layer->kernel; line++)
                memcpy(scratch + row * depth + line * run, pixel(source, (first + row) / each, y + line, x),
                       run * sizeof(float));
        }
        NAME(product)(count, depth, outputs, scratch, depth, 1, layer->weights, products, 0);
        for (long row = 0; row < count; row++) {
            long picture = (first + row) / each, place = (first + row) % each;
            long y = place / target->side, x = place % target->side;
            for (long channel = 0; channel < outputs; channel += WIDTH)
                NAME(finish)(layer, LOAD(products + row * outputs + channel), channel,
                             residual ? pixel(residual, picture, y, x) : NULL, pixel(target, picture, y, x));
        }
    }
}

/* The largest or the sum of the pixels in a window, scaled and shifted: pooling, normalisation, or both. */
static TARGET void NAME(pooling)(const Layer *layer, const Map *source, const Map *target, const Map *residual,
                                 long pictures, float *scratch) {
    long side = target->side;
    for (long place = 0; place < pictures * side * side; place++) {
        long picture = place / (side * side), y = place / side % side, x = place % side;
        long top = y * layer->stride - layer->pad, left = x * layer->stride - layer->pad;
        for (long channel = 0; channel < target->channels; channel += WIDTH) {
            VECTOR none = {0}, found = none;
            if (layer->kind == MAXIMUM)
                found = none - INFINITY;
            for (long row = top < 0 ? 0 : top; row < top + layer->kernel && row < source->side; row++)
                for (long column = left < 0 ? 0 : left; column < left + layer->kernel && column < source->side; column++) {
                    VECTOR value = LOAD(pixel(source, picture, row, column) + channel);
                    if (layer->kind == MAXIMUM)
                        found = CHOOSE(value > found, value, found);
                    else
                        found += value;
                }
            NAME(finish)(layer, found * LOAD(layer->weights + channel), channel,
                         residual ? pixel(residual, picture, y, x) : NULL, pixel(target, picture, y, x));
        }
    }
}

static void NAME(compute)(const Layer *layer, const Map *maps, long pictures, float *scratch) {
    const Map *source = maps + layer->source, *target = maps + layer->target;
    const Map *residual = layer->residual < 0 ? NULL : maps + layer->residual;
    if (layer->kind == WINOGRAD)
        NAME(winograd)(layer, source, target, residual, pictures, scratch);
    else if (layer->kind == CONVOLUTION)
        NAME(convolution)(layer, source, target, residual, pictures, scratch);
    else
        NAME(pooling)(layer, source, target, residual, pictures, scratch);
}

#undef INTEGERS
#undef CHOOSE
#undef WIDTH
#undef ROWS
#undef NAME
#undef TARGET
