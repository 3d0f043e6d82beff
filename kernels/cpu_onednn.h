/* What the CPU engine gets from oneDNN (2.6 and later, and 3.x): dense convolution here, matrix
 * products through ii_cpu_gemm (kernels/cpu_engine.h). Primitives are created once per shape and
 * kept. */
#ifndef II_CPU_ONEDNN_H
#define II_CPU_ONEDNN_H
#include "kernels/cpu_engine.h"

typedef struct ii_onednn ii_onednn;

/* Creates the library state in *out. Returns 0, or nonzero with k->error. */
int ii_onednn_open(ii_kctx *k, ii_onednn **out);
/* Releases it and every primitive; NULL is allowed. */
void ii_onednn_close(ii_onednn *dnn);
/* The state that belongs to k. */
ii_onednn *ii_cpu_onednn(ii_kctx *k);

#endif
