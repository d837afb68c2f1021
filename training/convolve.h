/* 3x3 convolutions of stride 1, a pixel of zeros around the picture, in float32, by Winograd's F(4x4, 3x3): maps to maps,
   and the gradient of the weights. Maps are [pictures, height, width, channels]. */

#include <dlfcn.h>
#include <string.h>

#include "widths.h"

typedef struct {
    long height, width, down, across; /* in pixels; in tiles */
} Shape;

/* What all threads share. There are `tiles`, `block` of which are computed at a time, and `items` for threads to take: blocks
   of a convolution, or slices of all tiles, each of which has a result of its own, if there is a `gradient`. */
typedef struct {
    Shape shape;
    long inputs, outputs, tiles, block, items, next, entered, scratch_step;
    const float *x, *weights, *gradient;
    float *result, *scratch;
    int width;
} Pass;

/* Some pixels of a map, which lie `row` floats below each other. */
typedef struct {
    const float *from;
    float *to;
    long row, rows, columns;
} Window;

static inline long least(long one, long other) { return one < other ? one : other; }

/* The `side` x `side` pixels of a tile, `around` more than its own on the left and above; copied if some of them lie
   outside the map, where all is 0. */
static Window cut(const Shape *shape, const float *map, long channels, long tile, long around, long side, float *copy) {
    long each = shape->down * shape->across, place = tile % each;
    long top = place / shape->across * 4 - around, left = place % shape->across * 4 - around, row = shape->width * channels;
    const float *from = map + (tile / each * shape->height + top) * row + left * channels;
    if (top >= 0 && left >= 0 && top + side <= shape->height && left + side <= shape->width)
        return (Window){.from = from, .row = row};
    long begin = left < 0 ? -left : 0, end = least(side, shape->width - left);
    memset(copy, 0, side * side * channels * sizeof(float));
    for (long y = top < 0 ? -top : 0; y < least(side, shape->height - top); y++)
        memcpy(copy + (y * side + begin) * channels, from + y * row + begin * channels, (end - begin) * channels * sizeof(float));
    return (Window){.from = copy, .row = side * channels};
}

static Window target(const Shape *shape, float *map, long channels, long tile) {
    long each = shape->down * shape->across, place = tile % each;
    long top = place / shape->across * 4, left = place % shape->across * 4;
    return (Window){
        .to = map + ((tile / each * shape->height + top) * shape->width + left) * channels,
        .row = shape->width * channels,
        .rows = least(4, shape->height - top),
        .columns = least(4, shape->width - left),
    };
}

#if defined(__x86_64__)
#define WIDTH 8
#define ROWS ROWS_8
#define NAME(name) name##_8
#define TARGET __attribute__((target("avx2,fma")))
#include "passes.h"

#define WIDTH 16
#define ROWS ROWS_16
#define NAME(name) name##_16
#define TARGET __attribute__((target("avx512f,fma")))
#include "passes.h"
#endif

/* What GCC calls for OpenMP's `parallel`, of the library that torch has loaded: its threads wait for work by turning in a
   circle, and would take the processors from any others. NULL where there is none, as on macOS. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static Parallel parallel(void) { return (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel"); }

static void take_part(void *given) {
#if defined(__x86_64__)
    Pass *pass = given;
    float *scratch = pass->scratch + __atomic_fetch_add(&pass->entered, 1, __ATOMIC_RELAXED) * pass->scratch_step;
    void (*weigh)(const Pass *, long, float *) = pass->width == 16 ? weigh_16 : weigh_8;
    void (*convolve)(const Pass *, long, float *) = pass->width == 16 ? convolve_16 : convolve_8;
    for (long item; (item = __atomic_fetch_add(&pass->next, 1, __ATOMIC_RELAXED)) < pass->items;)
        (pass->gradient ? weigh : convolve)(pass, item, scratch);
#endif
}

static void run(Pass *pass, int threads) { parallel()(take_part, pass, threads, 0); }
