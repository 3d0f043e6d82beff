/* State of the CPU engine behind ii_kctx.engine: scratch memory, tables and oneDNN. */
#ifndef II_CPU_ENGINE_H
#define II_CPU_ENGINE_H
#include "kernels/kernels.h"

#define II_SCRATCH_SLOTS 8

/* Opens the CPU engine: k->device, k->threads (0 asks for all processors this process may use, or
 * OMP_THREAD_LIMIT if that is fewer) and k->engine are set. Returns 0, or nonzero with k->error:
 * more threads than OMP_THREAD_LIMIT allows, or no memory. */
int ii_cpu_engine_open(ii_kctx *k, int threads);
/* Releases everything that ii_cpu_engine_open and the kernels allocated. */
void ii_cpu_engine_close(ii_kctx *k);
/* Bytes of scratch memory and tables the engine holds for its kernels, for memory reports. */
int64_t ii_cpu_engine_scratch_bytes(const ii_kctx *k);

/* Scratch memory of at least `bytes`, 64-byte aligned, uninitialised, valid until the same slot is
 * asked for again. Grows and stays, so a warmed-up step allocates nothing. NULL (k->error set) when
 * memory is exhausted. Call outside parallel regions. */
void *ii_cpu_scratch(ii_kctx *k, int slot, size_t bytes);

/* Memory of `bytes` for the tables of GELU, 64-byte aligned, kept until the engine is closed: the
 * first call allocates it and calls fill(memory). NULL (k->error set) when memory is exhausted.
 * Call outside parallel regions. */
const void *ii_cpu_gelu_table(ii_kctx *k, size_t bytes, void (*fill)(void *memory));

/* Whether this engine multiplies bf16 matrices on AMX (kernels/cpu_amx.h). */
bool ii_cpu_amx(const ii_kctx *k);

/* Stores one printf-style sentence in k->error; returns 1. */
int ii_kernel_error(ii_kctx *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* c[M,N] = a[M,K] b[K,N] (+ bias[N]) (+ c), fp32 or bf16, through oneDNN; used by linear and bmm.
 * trans_a: a is stored [K,M]; trans_b: b is stored [N,K]. stacked: a, b and c are contiguous stacks
 * of `batch` matrices, be it one: it is multiplied just as in a larger stack, bit for bit. Without
 * it batch is 1.
 * ab_dtype, c_dtype: II_F32 or II_BF16 (c may be II_F32 with bf16 operands). bias is fp32 or NULL.
 * alpha scales the product (not the bias). accumulate: c += instead of c =. */
typedef struct {
  ii_dtype ab_dtype, c_dtype;
  int64_t batch, M, N, K;
  bool stacked, trans_a, trans_b, accumulate;
  float alpha;
  const void *a, *b;
  const float *bias;
  void *c;
} ii_gemm_args;
int ii_cpu_gemm(ii_kctx *k, const ii_gemm_args *g);

#endif
