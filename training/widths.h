/* How long vectors are, and what follows from that. */

#ifndef WIDTHS
#define WIDTHS

/* Rows of a product that are computed together, with two vectors each: there are 16 registers, and 32 of the longest. */
enum { ROWS_4 = 6, ROWS_8 = 6, ROWS_16 = 12 };
enum { LINE = 16 }; /* Places that lie a multiple of 4 kB apart would push each other out of the cache. */

/* Floats in the longest vectors that this processor computes with. */
static int widest(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 8;
#endif
    return 4;
}

#endif
