/* Gradients of weights in bf16 on processors with AMX (Intel's tiles of 16 x 32 bf16), where both
 * operands of the product have to be rearranged and reading them is what takes the time: there this
 * is quicker than the library. The order of every sum follows from the sizes of the product alone,
 * so results do not depend on the number of threads. */
#ifndef II_CPU_AMX_H
#define II_CPU_AMX_H
#include "kernels/cpu_engine.h"

/* Whether this build knows AMX and the system lets this process use it (it has to be asked). */
bool ii_amx_available(void);

/* Whether ii_amx_gemm computes such a product: c = a^T b (or c +=) in fp32 from bf16 operands, at
 * least 32 terms, no bias, batch 1, alpha 1; other sizes at least 1. */
bool ii_amx_serves(const ii_gemm_args *g);

/* A product that is served, as ii_cpu_gemm; uses II_SLOT_LIBRARY. */
int ii_amx_gemm(ii_kctx *k, const ii_gemm_args *g);

#endif
