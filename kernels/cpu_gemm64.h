/* Matrix products in double precision, which oneDNN does not have. They serve the fp64 numeric
 * checks, so they are simple and fast enough rather than fastest. */
#ifndef II_CPU_GEMM64_H
#define II_CPU_GEMM64_H
#include "kernels/cpu_engine.h"

/* c[M,N] = alpha a[M,K] b[K,N] (+ bias[N]) (+ c), for each of `batch` contiguous triples. trans_a:
 * a is stored [K,M]; trans_b: b is stored [N,K]. bias may be NULL. accumulate: c += instead of c =.
 * The result does not depend on the number of threads. */
typedef struct {
  int64_t batch, M, N, K;
  bool trans_a, trans_b, accumulate;
  double alpha;
  const double *a, *b, *bias;
  double *c;
} ii_gemm64_args;
/* Uses II_SLOT_LIBRARY. Returns 0, or nonzero with k->error. */
int ii_cpu_gemm64(ii_kctx *k, const ii_gemm64_args *g);

#endif
