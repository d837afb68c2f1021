/* Products of matrices in float32 and Winograd's tiles, for vectors of WIDTH floats. Included once for each WIDTH, with

   ROWS    rows of a product that are computed together,
   NAME    gives every function a name of its own,
   TARGET  the instructions that may be used, as an attribute of a function. */

#include "widths.h"

typedef float NAME(vector) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#ifndef VECTOR
#define VECTOR NAME(vector)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LOAD(place) (*(const VECTOR *)(place))
#define STORE(place) (*(VECTOR *)(place))
#endif

/* Some rows of a product, for a strip of right [depth, columns * WIDTH]. */
INLINE void NAME(tile)(const int rows, const int columns, long depth, const float *restrict left, long down, long along,
                       const float *restrict right, float *restrict result, long step, int added) {
    VECTOR sums[ROWS][2] = {0};
    for (long at = 0; at < depth; at++) {
        VECTOR factors[2], none = {0};
#pragma GCC unroll 2
        for (int column = 0; column < columns; column++)
            factors[column] = LOAD(right + (at * columns + column) * WIDTH);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            VECTOR factor = left[row * down + at * along] - none; /* the same in all places */
#pragma GCC unroll 2
            for (int column = 0; column < columns; column++)
                sums[row][column] += factor * factors[column];
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int column = 0; column < columns; column++) {
            float *place = result + row * step + column * WIDTH;
            if (added)
                sums[row][column] += LOAD(place);
            STORE(place) = sums[row][column];
        }
}

#define CASE(number) \
    case number: \
        NAME(tile)(number, columns, depth, left, down, along, right, result, step, added); \
        break;

INLINE void NAME(strip)(long rows, const int columns, long depth, const float *left, long down, long along,
                        const float *right, float *result, long step, int added) {
    for (; rows >= ROWS; rows -= ROWS, left += ROWS * down, result += ROWS * step)
        NAME(tile)(ROWS, columns, depth, left, down, along, right, result, step, added);
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if WIDTH == 16
        CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#endif
    }
}

#undef CASE

/* left [rows, depth], whose neighbours lie `down` and `along` floats apart, by right [depth, outputs], which lies in
   strips of two vectors, and one if a vector is left; `added` to the result or put in its place. */
static TARGET void NAME(product)(long rows, long depth, long outputs, const float *left, long down, long along,
                                 const float *right, float *result, int added) {
    long column = 0;
    for (; column + 2 * WIDTH <= outputs; column += 2 * WIDTH)
        NAME(strip)(rows, 2, depth, left, down, along, right + column * depth, result + column, outputs, added);
    if (column < outputs)
        NAME(strip)(rows, 1, depth, left, down, along, right + column * depth, result + column, outputs, added);
}

/* Winograd's F(4x4, 3x3): the matrices B^T and A^T of Lavin and Gray (2016, arXiv:1509.09308), by one axis. */
INLINE void NAME(transform)(const VECTOR *from, VECTOR *to, int step) {
    VECTOR a = from[4] - 4 * from[2], b = from[3] - 4 * from[1], c = from[4] - from[2], d = 2 * (from[3] - from[1]);
    to[0] = 4 * from[0] - 5 * from[2] + from[4];
    to[step] = a + b;
    to[2 * step] = a - b;
    to[3 * step] = c + d;
    to[4 * step] = c - d;
    to[5 * step] = 4 * from[1] - 5 * from[3] + from[5];
}

INLINE void NAME(collect)(const VECTOR *from, VECTOR *to, int step) {
    VECTOR a = from[1] + from[2], b = from[1] - from[2], c = from[3] + from[4], d = from[3] - from[4];
    to[0] = from[0] + a + c;
    to[step] = b + 2 * d;
    to[2 * step] = a + 4 * c;
    to[3 * step] = b + 8 * d + from[5];
}

INLINE void NAME(tile_in)(const float *from, long row, long column, float *to, long step) {
    VECTOR half[6][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; x++) {
        VECTOR line[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; y++)
            line[y] = LOAD(from + y * row + x * column);
        NAME(transform)(line, &half[0][x], 6);
    }
#pragma GCC unroll 6
    for (int y = 0; y < 6; y++) {
        VECTOR line[6];
        NAME(transform)(half[y], line, 1);
#pragma GCC unroll 6
        for (int x = 0; x < 6; x++)
            STORE(to + (6 * y + x) * step) = line[x];
    }
}

INLINE void NAME(tile_out)(const float *from, long step, VECTOR to[4][4]) {
    VECTOR half[4][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; x++) {
        VECTOR line[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; y++)
            line[y] = LOAD(from + (6 * y + x) * step);
        NAME(collect)(line, &half[0][x], 6);
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; y++)
        NAME(collect)(half[y], to[y], 1);
}

/* The gradient of what `collect` and `tile_out` sum: A, from a tile of 4x4 pixels to 6x6 places. */
INLINE void NAME(spread)(const VECTOR *from, VECTOR *to, int step) {
    VECTOR a = from[0] + from[2], b = from[1] + from[3], c = from[0] + 4 * from[2], d = 2 * from[1] + 8 * from[3];
    to[0] = from[0];
    to[step] = a + b;
    to[2 * step] = a - b;
    to[3 * step] = c + d;
    to[4 * step] = c - d;
    to[5 * step] = from[3];
}

INLINE void NAME(tile_back)(const float *from, long row, long column, float *to, long step) {
    VECTOR half[6][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++) {
        VECTOR line[4];
#pragma GCC unroll 4
        for (int y = 0; y < 4; y++)
            line[y] = LOAD(from + y * row + x * column);
        NAME(spread)(line, &half[0][x], 4);
    }
#pragma GCC unroll 6
    for (int y = 0; y < 6; y++) {
        VECTOR line[6];
        NAME(spread)(half[y], line, 1);
#pragma GCC unroll 6
        for (int x = 0; x < 6; x++)
            STORE(to + (6 * y + x) * step) = line[x];
    }
}
