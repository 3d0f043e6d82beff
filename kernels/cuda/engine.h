/* State of the CUDA engine behind ii_kctx.engine, for the .cu files alone. */
#ifndef II_CUDA_ENGINE_H
#define II_CUDA_ENGINE_H
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cudnn.h>
#include "kernels/cuda/device_calls.h"

#define II_CUDA_SLOTS 8

struct ii_conv_plans;   /* conv2d.cu: plans by geometry */
struct ii_matmul_plans; /* gemm.cu: algorithms by shape */

typedef struct {
  int device;
  cudaStream_t stream; /* all kernels and library calls */
  cudaStream_t copies; /* uploads beside them */
  cudaDeviceProp prop;
  cublasLtHandle_t blas;
  cudnnHandle_t dnn; /* opened by conv2d.cu at its first call */
  struct ii_conv_plans *conv_plans;
  struct ii_matmul_plans *matmul_plans;
  int64_t products_refused; /* shapes for which cuBLASLt had no algorithm, so far */
  void *scratch[II_CUDA_SLOTS];
  size_t scratch_bytes[II_CUDA_SLOTS];
  int64_t scratch_moves;   /* how often a slot got other memory */
  bool recording;          /* between ii_graph_begin and ii_graph_end */
  bool check_each;         /* II_CUDA_SYNC=1: wait after every launch, so that an error names it */
  const char *last_kernel; /* newest launch, for errors that come later */
  const char *last_file;
  int last_line;
} ii_cuda_engine;

static inline ii_cuda_engine *ii_cuda(const ii_kctx *k) {
  return (ii_cuda_engine *)k->engine;
}
/* The stream for kernels. Also makes the engine's GPU the thread's current one, which launches and
 * library calls go by; a failure of that surfaces at the launch. */
static inline cudaStream_t ii_cuda_stream(const ii_kctx *k) {
  cudaSetDevice(ii_cuda(k)->device);
  return ii_cuda(k)->stream;
}
static inline int ii_cuda_sm_count(const ii_kctx *k) {
  return ii_cuda(k)->prop.multiProcessorCount;
}

/* Scratch memory of at least `bytes`, 256-byte aligned, uninitialised, valid for the work of the
 * present call; the same slot returns the same memory, in stream order. Grows and stays, so a
 * warmed-up step allocates nothing. NULL (k->error set) when memory is exhausted. */
void *ii_cuda_scratch(ii_kctx *k, int slot, size_t bytes);
/* The slots, so that two uses in one call do not meet. */
enum {
  II_SLOT_WORKSPACE = 0, /* cuBLASLt and cuDNN */
  II_SLOT_REDUCE,        /* partial sums of two-stage reductions */
  II_SLOT_A,             /* operands of another layout or type */
  II_SLOT_B,
  II_SLOT_C,
  II_SLOT_DCN,
  II_SLOT_BIAS /* gemm.cu: biases in the type of the product */
};

/* After a launch: 0, or 1 with the error in k->error. */
int ii_cuda_launched(ii_kctx *k, const char *kernel, const char *file, int line);
/* Store a sentence in k->error; return 1. */
int ii_cuda_failed(ii_kctx *k, const char *call, const char *file, int line, int error);
int ii_cuda_error(ii_kctx *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Freed when the engine closes; each in the file that fills it. */
void ii_conv_plans_free(ii_cuda_engine *e);
void ii_matmul_plans_free(ii_cuda_engine *e);

/* out[n] (+)= column sums of x[rows,n] of type x_dtype, in type real; two stages, deterministic.
 * column_sums.cu. Uses II_SLOT_REDUCE. */
int ii_cuda_column_sums(ii_kctx *k, ii_dtype real, ii_dtype x_dtype, int64_t rows, int64_t n,
                        const void *x, void *out, bool accumulate);

/* c[M,N] = a[M,K] b[K,N] as ii_gemm_args of the CPU engine says it, on the GPU, through cuBLASLt;
 * gemm.cu. II_F64, II_F32 (true fp32 unless the engine allows TF32), II_F16 and II_BF16 operands;
 * c of the operands' type or II_F32. bias[N] of type real or NULL; alpha scales the product. */
typedef struct {
  ii_dtype ab_dtype, c_dtype;
  int64_t batch, M, N, K;
  bool trans_a, trans_b, accumulate;
  double alpha;
  const void *a, *b, *bias;
  void *c;
} ii_cuda_gemm_args;
int ii_cuda_gemm(ii_kctx *k, const ii_cuda_gemm_args *g);
/* The same by a plain kernel, for what cuBLASLt refuses: sizes above 0, 65535 matrices at most;
 * gemm_direct.cu. */
int ii_cuda_gemm_direct(ii_kctx *k, const ii_cuda_gemm_args *g);

#endif
