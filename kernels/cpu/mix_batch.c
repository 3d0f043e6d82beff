/* Mixup, CutMix and their soft targets. */
#include "kernels/cpu/pieces.h"

/* Products and sums are rounded one by one, as in the official code and on every engine. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

static void mix_pair(real *restrict a, real *restrict b, int64_t n, real lam, real rest) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t i = 0; i < n; i++) {
    const real x = a[i], y = b[i];
    a[i] = lam * x + rest * y;
    b[i] = lam * y + rest * x;
  }
}

static void swap_run(real *restrict a, real *restrict b, int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t i = 0; i < n; i++) {
    const real x = a[i];
    a[i] = b[i];
    b[i] = x;
  }
}

int II_FN(mix_batch)(ii_kctx *k, const ii_mix_batch_args *a) {
  const ii_mixture *m = a->mix;
  const bool box = m->mode == II_MIX_BOX;
  const int64_t line = a->W * a->C, first = box ? m->y0 : 0, lines = box ? m->y1 - m->y0 : a->H;
  const real lam = (real)m->lam, rest = (real)m->rest;
  if (lines <= 0 || m->mode == II_MIX_NONE) return 0;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->N *lines *line))
  for (int64_t row = 0; row < a->N / 2 * lines; row++) {
    const int64_t n = row / lines, y = first + row % lines;
    real *here = (real *)a->x + (n * a->H + y) * line;
    real *there = (real *)a->x + ((a->N - 1 - n) * a->H + y) * line;
    if (box)
      swap_run(here + m->x0 * a->C, there + m->x0 * a->C, (m->x1 - m->x0) * a->C);
    else
      mix_pair(here, there, line, lam, rest);
  }
  return 0;
}

int II_FN(mix_targets)(ii_kctx *k, const ii_mix_targets_args *a) {
  const double off_value = a->smoothing / (double)(a->C > 0 ? a->C : 1);
  const real off = (real)off_value, on = (real)(1.0 - a->smoothing + off_value);
  const real lam = (real)a->mix->lam, rest = (real)a->mix->rest;
  for (int64_t n = 0; n < a->N; n++) {
    const int32_t mine = a->labels[n], other = a->labels[a->N - 1 - n];
    if (mine < 0 || mine >= a->C)
      return ii_kernel_error(k, "mix_targets: label %d of sample %lld is not one of %lld classes",
                             mine, (long long)n, (long long)a->C);
    real *t = (real *)a->targets + n * a->C;
    for (int64_t c = 0; c < a->C; c++)
      t[c] = lam * (c == mine ? on : off) + rest * (c == other ? on : off);
  }
  return 0;
}
