/* Where the time of preparing images goes: of one thread, by stage, as processor time and as
 * elapsed time. A lap reads two clocks (about half a microsecond); without a stopwatch (NULL) it
 * costs a comparison. */
#ifndef II_STAGES_H
#define II_STAGES_H
#include <stdint.h>

typedef enum {
  II_STAGE_READ,    /* the file's bytes */
  II_STAGE_DECODE,  /* the part of the picture that is needed */
  II_STAGE_RESIZE,  /* crop, resize, flip */
  II_STAGE_AUGMENT, /* RandAugment or colour jitter */
  II_STAGE_WRITE,   /* normalise, write into the batch */
  II_STAGE_OTHER,   /* locks, the order of the epoch, files that cannot be used */
  II_STAGE_WAIT,    /* there is no room: the consumer has yet to take a batch */
  II_STAGE_COUNT
} ii_stage;

typedef struct {
  double cpu[II_STAGE_COUNT], wall[II_STAGE_COUNT]; /* seconds */
  int64_t images, bytes;                            /* finished; read */
} ii_stage_times;

/* To be used by the thread that is measured alone. */
typedef struct {
  ii_stage_times times;
  double cpu, wall; /* the clocks at the last lap */
} ii_stopwatch;

/* "read", "decode", ... */
const char *ii_stage_name(ii_stage stage);

/* Sets the clocks; what has been measured stays. */
void ii_stopwatch_start(ii_stopwatch *watch);

/* Adds what has passed since the last call to a stage. */
void ii_stopwatch_lap(ii_stopwatch *watch, ii_stage stage);

/* The same; nothing when watch is NULL. */
static inline void ii_lap(ii_stopwatch *watch, ii_stage stage) {
  if (watch) ii_stopwatch_lap(watch, stage);
}

/* sum += x, or sum -= x. */
void ii_stage_times_add(ii_stage_times *sum, const ii_stage_times *x);
void ii_stage_times_subtract(ii_stage_times *sum, const ii_stage_times *x);

/* Processor time of all stages, seconds. */
double ii_stage_times_cpu(const ii_stage_times *times);

#endif
