/* A convolutional network in float32: its layers, one after another, on some pictures; threads share a batch. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CONVOLUTION, WINOGRAD, MAXIMUM, SUM };
enum { LINEAR, RELU, GELU };

/* Values between layers, [pictures, rows, columns, channels], rows and columns with a border of zeros; `across` is the
   length of a row with its border, `size` that of a picture in floats. */
typedef struct {
    long pictures, side, channels, border, across, size;
    float *data;
} Map;

/* `block` is how many tiles or pixels are computed at a time. */
typedef struct {
    int kind, activation, source, target, residual;
    long kernel, stride, pad, block;
    const float *weights, *shift;
} Layer;

static inline float *pixel(const Map *map, long picture, long y, long x) {
    return map->data + picture * map->size + ((y + map->border) * map->across + x + map->border) * map->channels;
}

#define WIDTH 4
#define ROWS ROWS_4
#define NAME(name) name##_4
#define TARGET
#include "layers.h"

#if defined(__x86_64__)
#define WIDTH 8
#define ROWS ROWS_8
#define NAME(name) name##_8
#define TARGET __attribute__((target("avx2,fma")))
#include "layers.h"

#define WIDTH 16
#define ROWS ROWS_16
#define NAME(name) name##_16
#define TARGET __attribute__((target("avx512f")))
#include "layers.h"
#endif

static void compute(int width, const Layer *layer, const Map *maps, long pictures, float *scratch) {
#if defined(__x86_64__)
    if (width == 16)
        compute_16(layer, maps, pictures, scratch);
    else if (width == 8)
        compute_8(layer, maps, pictures, scratch);
    else
#endif
        compute_4(layer, maps, pictures, scratch);
}

/* Layers, up to the one of this number, that are computed one after another for so many pictures at a time. */
typedef struct {
    long end, pictures;
} Group;

/* What all threads share: the first map is the pictures, three channels; the last layer's target holds the answers. A
   thread computes `most` pictures at a time. Maps for fewer are used in one group only. */
typedef struct {
    int width, layers, maps, groups;
    Layer *layer;
    Map *map;
    Group *group;
    float scale[3], shift[3];
    long outputs, scratch, most;
} Program;

/* The maps of one thread, and the same from some picture on. */
typedef struct {
    Map *maps, *moved;
    float *scratch;
} Space;

static void close_space(const Program *program, Space *space) {
    for (int number = 0; space->maps && number < program->maps; number++)
        free(space->maps[number].data);
    free(space->maps);
    free(space->moved);
    free(space->scratch);
}

/* Zeros, at the beginning of a line of the cache; NULL if there is not enough memory. */
static float *zeros(long count) {
    void *found;
    if (posix_memalign(&found, 64, count * sizeof(float)))
        return NULL;
    return memset(found, 0, count * sizeof(float));
}

/* 0 if there is not enough memory. */
static int open_space(const Program *program, Space *space) {
    space->scratch = zeros(program->scratch);
    space->maps = calloc(program->maps, sizeof(Map));
    space->moved = calloc(program->maps, sizeof(Map));
    int whole = space->scratch && space->maps && space->moved;
    for (int number = 0; whole && number < program->maps; number++) {
        space->maps[number] = program->map[number];
        space->maps[number].data = zeros(program->map[number].pictures * program->map[number].size);
        whole = space->maps[number].data != NULL;
    }
    return whole;
}

/* The layers of a group, for `count` pictures from the first one on. */
static void compute_group(const Program *program, const Space *space, int start, long end, long first, long count) {
    for (int number = 0; number < program->maps; number++) {
        const Map *map = space->maps + number;
        space->moved[number] = *map;
        if (map->pictures == program->most)
            space->moved[number].data += first * map->size;
    }
    for (int number = start; number < end; number++)
        compute(program->width, program->layer + number, space->moved, count, space->scratch);
}

/* Answers [pictures, outputs] to pixels [pictures, 3, side, side]. */
static void answer(const Program *program, const Space *space, const uint8_t *pixels, long pictures, float *answers) {
    const Map *first = space->maps, *last = space->maps + program->layer[program->layers - 1].target;
    long area = first->side * first->side;
    for (long picture = 0; picture < pictures; picture++)
        for (long place = 0; place < area; place++) {
            float *target = pixel(first, picture, place / first->side, place % first->side);
            for (int channel = 0; channel < 3; channel++)
                target[channel] = pixels[(3 * picture + channel) * area + place] * program->scale[channel] + program->shift[channel];
        }
    for (int number = 0, start = 0; number < program->groups; start = program->group[number++].end) {
        const Group *group = program->group + number;
        for (long done = 0; done < pictures; done += group->pictures) {
            long count = pictures - done < group->pictures ? pictures - done : group->pictures;
            compute_group(program, space, start, group->end, done, count);
        }
    }
    for (long picture = 0; picture < pictures; picture++)
        memcpy(answers + picture * program->outputs, pixel(last, picture, 0, 0), program->outputs * sizeof(float));
}

/* One batch, and the threads that compute it: who calls, and helpers who wait for the next one in between. */
typedef struct {
    const Program *program;
    Space *spaces;
    pthread_t *threads;
    int helpers, started, ending, inside;
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    unsigned long batch; /* its number; 0 while there is none that helpers may enter */
    unsigned long last;
    const uint8_t *pixels;
    float *answers;
    long part, total, next;
} Team;

/* Compute parts of the batch until none is left. */
static void take_part(Team *team, const Space *space) {
    const Program *program = team->program;
    long side = program->map[0].side, first;
    while ((first = __atomic_fetch_add(&team->next, team->part, __ATOMIC_RELAXED)) < team->total) {
        long count = team->total - first < team->part ? team->total - first : team->part;
        answer(program, space, team->pixels + first * 3 * side * side, count, team->answers + first * program->outputs);
    }
}

static void *help(void *given) {
    Team *team = given;
    unsigned long seen = 0;
    pthread_mutex_lock(&team->lock);
    const Space *space = team->spaces + ++team->started;
    while (!team->ending) {
        if (!team->batch || team->batch == seen) {
            pthread_cond_wait(&team->begun, &team->lock);
            continue;
        }
        seen = team->batch;
        team->inside++;
        pthread_mutex_unlock(&team->lock);
        take_part(team, space);
        pthread_mutex_lock(&team->lock);
        if (!--team->inside)
            pthread_cond_signal(&team->done);
    }
    pthread_mutex_unlock(&team->lock);
    return NULL;
}

static void close_team(Team *team) {
    pthread_mutex_lock(&team->lock);
    team->ending = 1;
    pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    for (int number = 0; number < team->helpers; number++)
        pthread_join(team->threads[number], NULL);
    for (int number = 0; team->spaces && number <= team->helpers; number++)
        close_space(team->program, team->spaces + number);
    free(team->spaces);
    free(team->threads);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->begun);
    pthread_cond_destroy(&team->done);
    free(team);
}

/* NULL if there is not enough memory, or no thread can be started. */
static Team *open_team(const Program *program, int threads) {
    Team *team = calloc(1, sizeof(Team));
    if (!team)
        return NULL;
    team->program = program;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->begun, NULL);
    pthread_cond_init(&team->done, NULL);
    team->spaces = calloc(threads, sizeof(Space));
    team->threads = calloc(threads, sizeof(pthread_t));
    int whole = team->spaces && team->threads;
    for (int number = 0; whole && number < threads; number++) {
        whole = open_space(program, team->spaces + number);
        if (whole && number) {
            whole = !pthread_create(team->threads + team->helpers, NULL, help, team);
            team->helpers += whole;
        }
    }
    if (whole)
        return team;
    close_team(team);
    return NULL;
}

static void compute_batch(Team *team, const uint8_t *pixels, long total, float *answers) {
    long share = (total + team->helpers) / (team->helpers + 1);
    pthread_mutex_lock(&team->lock);
    team->pixels = pixels;
    team->answers = answers;
    team->total = total;
    team->part = share < team->program->most ? share : team->program->most;
    team->next = 0;
    if (team->part < total) {
        team->batch = ++team->last;
        pthread_cond_broadcast(&team->begun);
    }
    pthread_mutex_unlock(&team->lock);
    take_part(team, team->spaces);
    pthread_mutex_lock(&team->lock);
    team->batch = 0; /* who has not begun by now need not */
    while (team->inside)
        pthread_cond_wait(&team->done, &team->lock);
    pthread_mutex_unlock(&team->lock);
}
