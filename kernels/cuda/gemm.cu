/* Matrix products through cuBLASLt: c[M,N] (+)= alpha op(a) op(b) + bias, one matrix or a stack.
 *
 * Layout: cuBLASLt is used column-major, where the same memory reads as the transpose. So the
 * library computes c^T = op(b)^T op(a)^T: its A is our b, its B our a, its D[N,M] our c; a matrix
 * stored [rows,cols] is a cols x rows matrix of leading dimension cols. The bias of our columns is
 * then a bias of D's rows, as CUBLASLT_EPILOGUE_BIAS wants it.
 *
 * Types: 16-bit and fp32 operands accumulate in fp32 (CUBLAS_COMPUTE_32F), doubles in double.
 * Partial sums of a split K may be stored in the compute type alone, never in a 16-bit output type.
 * fp32 products are true fp32: TF32 is not used (CUBLAS_COMPUTE_32F_FAST_TF32 would be the place).
 * cuBLASLt takes a bias of the type of c and nothing else (cublasLt.h,
 * CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE), so the fp32 bias of a 16-bit c is rounded into scratch by a
 * kernel of N elements first, as autocast does. Where the library has no algorithm with the bias
 * epilogue, the bias is added by a pass over c afterwards; where it has none at all, or refuses to
 * run the one it named, gemm_direct.cu computes the product.
 *
 * Not used: the GELU epilogues, which are the tanh form (the models' GELU is the exact erf form),
 * and BGRADB, which overwrites its output in the type of c, while gradients of biases are fp32 and
 * accumulate (column_sums.cu).
 *
 * Algorithms are asked for once per shape, types and pointer alignment, and kept in a hash table;
 * it is emptied at MAX_PLANS, which only networks with ever new image sizes reach. Alignment counts
 * up to ALIGNED: were more of it told, the algorithm, and so the last bits, would depend on where
 * the pool has placed a tensor. The workspace is the algorithm's own need, WORKSPACE at most.
 *
 * Bytes moved: the library's; bias rounding N*(4+2); the separate bias pass reads and writes c.
 * Limits: M, N and K below 2^31 each. K = 0 leaves c = bias (or adds it). */
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/gpu.h"

namespace {

enum {
  MAX_PLANS = 4096,
  CANDIDATES = 8,   /* algorithms asked for; the first usable one is taken */
  ALIGNED = 64,     /* what every tensor has (II_POOL_ALIGN), wherever the pool has placed it */
  BIAS_ALIGNED = 16 /* what the bias epilogue may read at once */
};
const size_t WORKSPACE = (size_t)32 << 20;
const int64_t MAX_BATCH = 32768; /* matrices per call of the library */

/* What the choice of an algorithm depends on; align_bias is 0 without a bias. Compared as bytes. */
struct matmul_key {
  int64_t batch, M, N, K;
  int32_t ab_dtype, c_dtype, trans_a, trans_b;
  uint32_t align_a, align_b, align_c, align_bias;
};
static_assert(sizeof(matmul_key) == 64, "no padding, which would be compared too");

struct matmul_plan {
  matmul_key key;
  cublasLtMatmulDescOpaque_t op;
  cublasLtMatrixLayoutOpaque_t a, b, c; /* ours, as the library sees them */
  cublasLtMatmulAlgo_t algo;
  size_t workspace;
  bool fused_bias;
  bool direct; /* the library has no algorithm */
};

} // namespace

/* Open addressing; plans stay where they are, because descriptors might point into themselves. */
struct ii_matmul_plans {
  size_t capacity, count;
  matmul_plan **slot;
};

namespace {

int blas_failed(ii_kctx *k, const char *call, int line, cublasStatus_t status,
                const matmul_key *s) {
  return ii_cuda_error(k,
                       "%s failed on GPU %d: %s (gemm.cu:%d; product of [%lld,%lld] and "
                       "[%lld,%lld], stack of %lld, %s to %s)",
                       call, ii_cuda(k)->device, cublasLtGetStatusString(status), line,
                       (long long)s->M, (long long)s->K, (long long)s->K, (long long)s->N,
                       (long long)s->batch, ii_dtype_name((ii_dtype)s->ab_dtype),
                       ii_dtype_name((ii_dtype)s->c_dtype));
}

#define BLAS_TRY(k, key, call)                                                                     \
  do {                                                                                             \
    const cublasStatus_t s_ = (call);                                                              \
    if (s_ != CUBLAS_STATUS_SUCCESS) return blas_failed(k, #call, __LINE__, s_, key);              \
  } while (0)

/* ---- Kernels ----------------------------------------------------------------------------------*/

/* y[n] = b[n] in the type of the output. */
template <typename T>
__global__ void __launch_bounds__(256) round_bias(int64_t n, const ii_real_of<T> *b, T *y) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = ii_down<T>(b[i]);
}

/* c[rows,n] = (accumulate ? c : 0) + b[n] (b may be NULL). One thread per column, blocks of rows in
 * grid.y. Scalar: it runs for empty sums, and where the library cannot add the bias. */
template <typename T>
__global__ void __launch_bounds__(256)
    add_bias(int64_t rows, int64_t n, const ii_real_of<T> *b, T *c, bool accumulate) {
  typedef ii_real_of<T> R;
  const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= n) return;
  const R bias = b ? b[j] : R(0);
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    T *out = c + r * n + j;
    *out = ii_down<T>(accumulate ? ii_up(*out) + bias : bias);
  }
}

template <typename T> int round_bias_to(ii_kctx *k, int64_t n, const void *b, void *y) {
  II_LAUNCH(k, (round_bias<T>), (unsigned)ii_ceil_div(n, 256), 256, 0, n, (const ii_real_of<T> *)b,
            (T *)y);
  return 0;
}

template <typename T>
int add_bias_to(ii_kctx *k, int64_t rows, int64_t n, const void *b, void *c, bool accumulate) {
  const dim3 grid((unsigned)ii_ceil_div(n, 256), (unsigned)(rows < 1024 ? rows : 1024));
  II_LAUNCH(k, (add_bias<T>), grid, 256, 0, rows, n, (const ii_real_of<T> *)b, (T *)c, accumulate);
  return 0;
}

int bias_pass(ii_kctx *k, const ii_cuda_gemm_args *g, bool accumulate) {
  II_WITH_TYPE(k, g->c_dtype, T,
               return add_bias_to<T>(k, g->batch * g->M, g->N, g->bias, g->c, accumulate));
  return 0;
}

/* ---- Plans ------------------------------------------------------------------------------------*/

cudaDataType_t data_type(int32_t t) {
  return t == II_F64    ? CUDA_R_64F
         : t == II_F16  ? CUDA_R_16F
         : t == II_BF16 ? CUDA_R_16BF
                        : CUDA_R_32F;
}

/* The largest power of two up to ALIGNED that divides the address of each matrix of a stack. */
uint32_t alignment(const void *p, int64_t stack_stride, ii_dtype t) {
  const uint64_t bits =
      (uint64_t)(uintptr_t)p | ((uint64_t)stack_stride * ii_dtype_size(t)) | ALIGNED;
  return (uint32_t)(bits & (~bits + 1));
}

/* A matrix stored [rows,cols] by rows, and the stack of them. */
int describe_matrix(ii_kctx *k, const matmul_key *s, cublasLtMatrixLayoutOpaque_t *m, int32_t dtype,
                    int64_t rows, int64_t cols) {
  BLAS_TRY(k, s,
           cublasLtMatrixLayoutInit(m, data_type(dtype), (uint64_t)cols, (uint64_t)rows, cols));
  const int32_t batch = (int32_t)s->batch;
  const int64_t stride = rows * cols;
  BLAS_TRY(k, s,
           cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                            sizeof batch));
  BLAS_TRY(k, s,
           cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                            sizeof stride));
  return 0;
}

int describe_operation(ii_kctx *k, matmul_plan *p, const void *bias) {
  const matmul_key *s = &p->key;
  const bool wide = s->ab_dtype == II_F64;
  BLAS_TRY(k, s,
           cublasLtMatmulDescInit(&p->op, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                  wide ? CUDA_R_64F : CUDA_R_32F));
  const int32_t trans_a = s->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int32_t trans_b = s->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  BLAS_TRY(k, s,
           cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_TRANSA, &trans_b,
                                          sizeof trans_b));
  BLAS_TRY(k, s,
           cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_TRANSB, &trans_a,
                                          sizeof trans_a));
  p->fused_bias = bias != NULL;
  if (!bias) return 0;
  const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  BLAS_TRY(k, s,
           cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                          sizeof epilogue));
  BLAS_TRY(k, s,
           cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                          sizeof bias));
  return 0;
}

int set_preference(ii_kctx *k, const matmul_key *s, cublasLtMatmulPreferenceOpaque_t *pref) {
  const uint64_t workspace = WORKSPACE;
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  BLAS_TRY(k, s, cublasLtMatmulPreferenceInit(pref));
  BLAS_TRY(k, s,
           cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &workspace, sizeof workspace));
  BLAS_TRY(k, s,
           cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                &reduction, sizeof reduction));
  const struct {
    cublasLtMatmulPreferenceAttributes_t attribute;
    uint32_t bytes;
  } aligned[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s->align_b},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s->align_a},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s->align_c},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s->align_c}};
  for (const auto &a : aligned)
    BLAS_TRY(k, s,
             cublasLtMatmulPreferenceSetAttribute(pref, a.attribute, &a.bytes, sizeof a.bytes));
  return 0;
}

/* What the library answers when it cannot do a product. */
bool refused(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

/* Asks for an algorithm; *found says whether there is one. */
int ask(ii_kctx *k, matmul_plan *p, cublasLtMatmulPreferenceOpaque_t *pref, bool *found) {
  cublasLtMatmulHeuristicResult_t result[CANDIDATES];
  int n = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      ii_cuda(k)->blas, &p->op, &p->b, &p->a, &p->c, &p->c, pref, CANDIDATES, result, &n);
  *found = false;
  if (refused(status)) return 0;
  BLAS_TRY(k, &p->key, status);
  for (int i = 0; i < n && !*found; i++) {
    if (result[i].state != CUBLAS_STATUS_SUCCESS) continue;
    p->algo = result[i].algo;
    p->workspace = result[i].workspaceSize;
    *found = true;
  }
  return 0;
}

void give_up(ii_kctx *k, matmul_plan *p) {
  p->direct = true;
  ii_cuda(k)->products_refused++;
}

int make_plan(ii_kctx *k, matmul_plan *p, const void *bias) {
  const matmul_key *s = &p->key;
  cublasLtMatmulPreferenceOpaque_t pref;
  bool found = false;
  if (describe_operation(k, p, bias) || set_preference(k, s, &pref)) return 1;
  if (describe_matrix(k, s, &p->a, s->ab_dtype, s->trans_a ? s->K : s->M,
                      s->trans_a ? s->M : s->K) ||
      describe_matrix(k, s, &p->b, s->ab_dtype, s->trans_b ? s->N : s->K,
                      s->trans_b ? s->K : s->N) ||
      describe_matrix(k, s, &p->c, s->c_dtype, s->M, s->N))
    return 1;
  if (ask(k, p, &pref, &found)) return 1;
  if (!found && bias && (describe_operation(k, p, NULL) || ask(k, p, &pref, &found))) return 1;
  if (!found) give_up(k, p);
  return 0;
}

size_t hash_key(const matmul_key *s) {
  const unsigned char *byte = (const unsigned char *)s;
  uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *s; i++) h = (h ^ byte[i]) * 0x100000001b3u;
  return (size_t)(h ^ (h >> 32));
}

/* The place of the key: its plan, or the free slot for it. The table is never full. */
matmul_plan **find_slot(ii_matmul_plans *t, const matmul_key *s) {
  size_t i = hash_key(s) % t->capacity;
  while (t->slot[i] && memcmp(&t->slot[i]->key, s, sizeof *s) != 0) i = (i + 1) % t->capacity;
  return &t->slot[i];
}

int open_table(ii_kctx *k) {
  ii_cuda_engine *e = ii_cuda(k);
  if (e->matmul_plans && e->matmul_plans->count < MAX_PLANS) return 0;
  ii_matmul_plans_free(e);
  ii_matmul_plans *t = (ii_matmul_plans *)calloc(1, sizeof *t);
  if (t) t->slot = (matmul_plan **)calloc(2 * MAX_PLANS, sizeof *t->slot);
  if (!t || !t->slot) {
    free(t);
    return ii_cuda_error(k, "out of host memory for the plans of matrix products");
  }
  t->capacity = 2 * MAX_PLANS;
  e->matmul_plans = t;
  return 0;
}

int plan_for(ii_kctx *k, const matmul_key *s, const void *bias, matmul_plan **plan) {
  if (open_table(k)) return 1;
  ii_matmul_plans *t = ii_cuda(k)->matmul_plans;
  matmul_plan **slot = find_slot(t, s);
  *plan = *slot;
  if (*plan) return 0;
  matmul_plan *p = (matmul_plan *)calloc(1, sizeof *p);
  if (!p) return ii_cuda_error(k, "out of host memory for the plans of matrix products");
  p->key = *s;
  if (make_plan(k, p, bias)) {
    free(p);
    return 1;
  }
  t->count++;
  *slot = *plan = p;
  return 0;
}

/* ---- The product ------------------------------------------------------------------------------*/

matmul_key key_of(const ii_cuda_gemm_args *g, const void *bias) {
  matmul_key s = {};
  s.batch = g->batch;
  s.M = g->M;
  s.N = g->N;
  s.K = g->K;
  s.ab_dtype = g->ab_dtype;
  s.c_dtype = g->c_dtype;
  s.trans_a = g->trans_a;
  s.trans_b = g->trans_b;
  const bool stack = g->batch > 1;
  s.align_a = alignment(g->a, stack ? g->M * g->K : 0, g->ab_dtype);
  s.align_b = alignment(g->b, stack ? g->K * g->N : 0, g->ab_dtype);
  s.align_c = alignment(g->c, stack ? g->M * g->N : 0, g->c_dtype);
  s.align_bias = bias ? alignment(bias, 0, g->c_dtype) : 0;
  return s;
}

/* The bias as the epilogue reads it: of the type of c and aligned. */
int bias_for_epilogue(ii_kctx *k, const ii_cuda_gemm_args *g, const void **bias) {
  *bias = g->bias;
  const bool real = g->c_dtype == ii_dtype_real(g->c_dtype);
  if (!g->bias || (real && (uintptr_t)g->bias % BIAS_ALIGNED == 0)) return 0;
  void *rounded = ii_cuda_scratch(k, II_SLOT_BIAS, (size_t)g->N * ii_dtype_size(g->c_dtype));
  if (!rounded) return 1;
  *bias = rounded;
  II_WITH_TYPE(k, g->c_dtype, T, return round_bias_to<T>(k, g->N, g->bias, rounded));
  return 0;
}

int multiply(ii_kctx *k, const ii_cuda_gemm_args *g) {
  const void *bias;
  const cudaStream_t stream = ii_cuda_stream(k); /* selects the GPU: algorithms are asked for it */
  if (bias_for_epilogue(k, g, &bias)) return 1;
  const matmul_key s = key_of(g, bias);
  matmul_plan *p;
  if (plan_for(k, &s, bias, &p)) return 1;
  if (p->direct) return ii_cuda_gemm_direct(k, g);
  if (p->fused_bias)
    BLAS_TRY(k, &s,
             cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                            sizeof bias));
  void *workspace = NULL;
  if (p->workspace && !(workspace = ii_cuda_scratch(k, II_SLOT_WORKSPACE, p->workspace))) return 1;
  const double alpha64 = g->alpha, beta64 = g->accumulate;
  const float alpha32 = (float)g->alpha, beta32 = g->accumulate;
  const bool wide = g->ab_dtype == II_F64;
  const void *alpha = wide ? (const void *)&alpha64 : &alpha32;
  const void *beta = wide ? (const void *)&beta64 : &beta32;
  const cublasStatus_t status =
      cublasLtMatmul(ii_cuda(k)->blas, &p->op, alpha, g->b, &p->b, g->a, &p->a, beta, g->c, &p->c,
                     g->c, &p->c, &p->algo, workspace, p->workspace, stream);
  if (refused(status)) { /* nothing has been queued */
    give_up(k, p);
    return ii_cuda_gemm_direct(k, g);
  }
  BLAS_TRY(k, &s, status);
  if (ii_cuda_launched(k, "cublasLtMatmul", __FILE__, __LINE__)) return 1;
  return g->bias && !p->fused_bias ? bias_pass(k, g, true) : 0;
}

bool types_allowed(const ii_cuda_gemm_args *g) {
  switch (g->ab_dtype) {
  case II_F64:
    return g->c_dtype == II_F64;
  case II_F32:
    return g->c_dtype == II_F32;
  case II_F16:
  case II_BF16:
    return g->c_dtype == g->ab_dtype || g->c_dtype == II_F32;
  default:
    return false;
  }
}

} // namespace

void ii_matmul_plans_free(ii_cuda_engine *e) {
  ii_matmul_plans *t = e->matmul_plans;
  if (!t) return;
  for (size_t i = 0; i < t->capacity; i++) free(t->slot[i]);
  free(t->slot);
  free(t);
  e->matmul_plans = NULL;
}

int ii_cuda_gemm(ii_kctx *k, const ii_cuda_gemm_args *g) {
  if (g->batch <= 0 || g->M <= 0 || g->N <= 0) return 0;
  if (!types_allowed(g))
    return ii_cuda_error(k, "matrix product: no product of %s with a result of %s",
                         ii_dtype_name(g->ab_dtype), ii_dtype_name(g->c_dtype));
  if (g->M > INT32_MAX || g->N > INT32_MAX || g->K > INT32_MAX)
    return ii_cuda_error(k,
                         "matrix product of [%lld,%lld] and [%lld,%lld]: cuBLAS takes sizes below "
                         "2^31 only; use a smaller batch",
                         (long long)g->M, (long long)g->K, (long long)g->K, (long long)g->N);
  if (g->K <= 0) return g->accumulate && !g->bias ? 0 : bias_pass(k, g, g->accumulate);
  for (int64_t first = 0; first < g->batch; first += MAX_BATCH) {
    ii_cuda_gemm_args part = *g;
    const size_t ab = ii_dtype_size(g->ab_dtype), c = ii_dtype_size(g->c_dtype);
    part.batch = g->batch - first < MAX_BATCH ? g->batch - first : MAX_BATCH;
    part.a = (const char *)g->a + (size_t)(first * g->M * g->K) * ab;
    part.b = (const char *)g->b + (size_t)(first * g->K * g->N) * ab;
    part.c = (char *)g->c + (size_t)(first * g->M * g->N) * c;
    if (multiply(k, &part)) return 1;
  }
  return 0;
}
