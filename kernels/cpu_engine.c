/* Life of the CPU engine: threads, scratch memory, the error sentence, and the oneDNN state. */
#include <omp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cpu_amx.h"
#include "kernels/cpu_engine.h"
#include "kernels/cpu_onednn.h"

enum { SCRATCH_ALIGN = 64 };

typedef struct {
  void *scratch[II_SCRATCH_SLOTS];
  size_t bytes[II_SCRATCH_SLOTS];
  void *gelu_table;
  size_t gelu_bytes;
  ii_onednn *dnn;
  bool amx;
} cpu_engine;

int ii_kernel_error(ii_kctx *k, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vsnprintf(k->error, sizeof k->error, fmt, args);
  va_end(args);
  return 1;
}

/* Processors that the scheduler lets this process use: containers and batch systems often allow
 * fewer than the machine has. No more than OpenMP may start threads. */
static int allowed_processors(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = omp_get_num_procs();
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) n = CPU_COUNT(&set);
  if (n > omp_get_thread_limit()) n = omp_get_thread_limit();
  return n > 0 ? n : 1;
}

int ii_cpu_engine_open(ii_kctx *k, int threads) {
  k->device = II_CPU;
  if (threads < 0) return ii_kernel_error(k, "cpu engine: %d threads asked for", threads);
  if (threads > omp_get_thread_limit()) /* oneDNN computes nonsense in smaller teams */
    return ii_kernel_error(k, "cpu engine: %d threads asked for, but OMP_THREAD_LIMIT allows %d",
                           threads, omp_get_thread_limit());
  k->threads = threads > 0 ? threads : allowed_processors();
  cpu_engine *e = calloc(1, sizeof *e);
  if (!e) return ii_kernel_error(k, "cpu engine: out of memory");
  k->engine = e;
  e->amx = ii_amx_available();
  omp_set_dynamic(0); /* fewer threads than asked for would change the order of sums */
  omp_set_num_threads(k->threads);
  if (ii_onednn_open(k, &e->dnn) != 0) {
    free(e);
    k->engine = NULL;
    return 1;
  }
  return 0;
}

void ii_cpu_engine_close(ii_kctx *k) {
  cpu_engine *e = k->engine;
  if (!e) return;
  ii_onednn_close(e->dnn);
  for (int i = 0; i < II_SCRATCH_SLOTS; i++) free(e->scratch[i]);
  free(e->gelu_table);
  free(e);
  k->engine = NULL;
}

bool ii_cpu_amx(const ii_kctx *k) {
  return ((const cpu_engine *)k->engine)->amx;
}

ii_onednn *ii_cpu_onednn(ii_kctx *k) {
  return ((cpu_engine *)k->engine)->dnn;
}

int64_t ii_cpu_engine_scratch_bytes(const ii_kctx *k) {
  const cpu_engine *e = k->engine;
  int64_t total = e ? (int64_t)e->gelu_bytes : 0;
  for (int i = 0; e && i < II_SCRATCH_SLOTS; i++) total += (int64_t)e->bytes[i];
  return total;
}

void *ii_cpu_scratch(ii_kctx *k, int slot, size_t bytes) {
  cpu_engine *e = k->engine;
  if (slot < 0 || slot >= II_SCRATCH_SLOTS) {
    ii_kernel_error(k, "cpu engine: scratch slot %d does not exist", slot);
    return NULL;
  }
  if (e->scratch[slot] && e->bytes[slot] >= bytes) return e->scratch[slot];
  size_t size = (bytes + SCRATCH_ALIGN) / SCRATCH_ALIGN * SCRATCH_ALIGN;
  free(e->scratch[slot]); /* the old contents are not promised, so no copy as realloc would make */
  e->scratch[slot] = size > bytes ? aligned_alloc(SCRATCH_ALIGN, size) : NULL;
  e->bytes[slot] = e->scratch[slot] ? size : 0;
  if (!e->scratch[slot])
    ii_kernel_error(k, "cpu engine: out of memory asking for %zu bytes of scratch", bytes);
  return e->scratch[slot];
}

const void *ii_cpu_gelu_table(ii_kctx *k, size_t bytes, void (*fill)(void *memory)) {
  cpu_engine *e = k->engine;
  if (e->gelu_table) return e->gelu_table;
  e->gelu_bytes = (bytes + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
  e->gelu_table = aligned_alloc(SCRATCH_ALIGN, e->gelu_bytes);
  if (!e->gelu_table) {
    e->gelu_bytes = 0;
    ii_kernel_error(k, "cpu engine: out of memory asking for %zu bytes of tables", bytes);
    return NULL;
  }
  fill(e->gelu_table);
  return e->gelu_table;
}
