/* A loop over many images by several threads, for the tools. */
#ifndef II_PARALLEL_H
#define II_PARALLEL_H
#include <stdbool.h>
#include <stdint.h>
#include "autograd/error.h"

/* The processors this process may use, at least 1: those of the calling thread's affinity mask, but
 * no more than the processor time that its control group grants it, rounded up. */
int ii_parallel_processors(void);

/* That grant in processors, from the files below root ("" for those of this machine): the least of
 * cpu.max (cgroup v2) or cpu.cfs_quota_us / cpu.cfs_period_us (v1) of the process's group in
 * <root>/proc/self/cgroup and of the groups around it. 0: no limit, or none that can be read. */
double ii_parallel_quota(const char *root);

typedef struct {
  int threads; /* > 0 */
  /* Does element i; `thread` is 0..threads-1. Elements are given out in ascending order. */
  void (*work)(void *context, int thread, int64_t i);
  /* Called about four times a second, and at the end, from the calling thread with the number of
   * finished elements; false stops the loop after the elements in work. May be NULL. */
  bool (*tick)(void *context, int64_t done);
  void *context;
} ii_parallel;

/* Does elements 0..n-1. The workers block all signals. Errors: II_ERR_IO (no thread could be
 * started), II_ERR_INTERRUPTED (tick said so). */
ii_status ii_parallel_run(const ii_parallel *p, int64_t n, ii_error *err);

#endif
