#include "data/stages.h"
#include <time.h>

static double read_clock(clockid_t which) {
  struct timespec t;
  clock_gettime(which, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *ii_stage_name(ii_stage stage) {
  static const char *const names[II_STAGE_COUNT] = {"read",      "decode", "resize", "augment",
                                                    "normalise", "other",  "wait"};
  return names[stage];
}

void ii_stopwatch_start(ii_stopwatch *w) {
  w->cpu = read_clock(CLOCK_THREAD_CPUTIME_ID);
  w->wall = read_clock(CLOCK_MONOTONIC);
}

void ii_stopwatch_lap(ii_stopwatch *w, ii_stage stage) {
  const double cpu = w->cpu, wall = w->wall;
  ii_stopwatch_start(w);
  w->times.cpu[stage] += w->cpu - cpu;
  w->times.wall[stage] += w->wall - wall;
}

static void combine(ii_stage_times *sum, const ii_stage_times *x, int sign) {
  for (int i = 0; i < II_STAGE_COUNT; i++) {
    sum->cpu[i] += sign * x->cpu[i];
    sum->wall[i] += sign * x->wall[i];
  }
  sum->images += sign * x->images;
  sum->bytes += sign * x->bytes;
}

void ii_stage_times_add(ii_stage_times *sum, const ii_stage_times *x) {
  combine(sum, x, 1);
}
void ii_stage_times_subtract(ii_stage_times *sum, const ii_stage_times *x) {
  combine(sum, x, -1);
}

double ii_stage_times_cpu(const ii_stage_times *t) {
  double sum = 0;
  for (int i = 0; i < II_STAGE_COUNT; i++) sum += t->cpu[i];
  return sum;
}
