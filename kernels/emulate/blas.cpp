/* Stand-in of the cuBLASLt functions the CUDA engine calls, behind NVIDIA's own header. It refuses
 * what the library refuses (attribute sizes, types that have no product, shapes that do not fit,
 * workspace too small) with the library's status, and reports what the library would answer with
 * wrong numbers or a broken GPU: operands outside device memory, pointers less aligned than the
 * algorithm was chosen for, an algorithm of another problem, a result that overlaps an operand.
 *
 * An algorithm is a description of the problem it was asked for, so that its use can be checked.
 * Some ask for workspace, which is then filled with NaN when they run.
 * II_EMU_BLAS_EPILOGUES=0 makes a library that has no algorithm with an epilogue. */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include "kernels/emulate/blas_product.h"
#include "kernels/emulate/emulate_internal.h"

struct cublasLtContext {
  uint32_t mark;
  int device;
};

namespace {

using ii_emu::blas_matrix;
using ii_emu::blas_problem;
using ii_emu::blas_type_size;

const uint32_t HANDLE_MARK = 0x4254414cu, OPERATION_MARK = 0x4254504fu, LAYOUT_MARK = 0x4c54414cu,
               PREFERENCE_MARK = 0x46545250u, ALGORITHM_MARK = 0x4f544c41u;
const size_t WORKSPACE_ALIGNMENT = 256, SPLIT_INNER = 1024;

/* ---- What is inside the opaque structures -----------------------------------------------------*/

struct operation {
  uint32_t mark;
  int32_t compute, scale, trans_a, trans_b, bias_type;
  uint32_t epilogue;
  const void *bias;
  int64_t bias_stride;
};
struct layout {
  uint32_t mark, type;
  int32_t batch;
  uint64_t rows, cols;
  int64_t ld, stride;
};
struct preference {
  uint32_t mark, reduction;
  uint32_t align_a, align_b, align_c, align_d;
  uint64_t workspace;
};
struct algorithm {
  uint32_t mark;
  uint32_t problem; /* hash of shapes, types and transposes */
  uint16_t align_a, align_b, align_c, align_d, align_bias;
  uint64_t workspace;
};

/* The structures are plain storage of the caller: they are read and written as bytes. */
template <typename T, typename O> T get(const O *o) {
  static_assert(sizeof(T) <= sizeof(o->data), "fits into NVIDIA's opaque structure");
  T v;
  memcpy(&v, o->data, sizeof v);
  return v;
}
template <typename T, typename O> void put(O *o, const T &v) {
  memcpy(o->data, &v, sizeof v);
}

struct attribute {
  int name;
  size_t offset, bytes;
};
#define FIELD(name, type, member)                                                                  \
  { name, offsetof(type, member), sizeof(type::member) }

const attribute OPERATION_ATTRIBUTES[] = {
    FIELD(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, operation, compute),
    FIELD(CUBLASLT_MATMUL_DESC_SCALE_TYPE, operation, scale),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSA, operation, trans_a),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSB, operation, trans_b),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, operation, epilogue),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_POINTER, operation, bias),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, operation, bias_stride),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, operation, bias_type)};
const attribute LAYOUT_ATTRIBUTES[] = {
    FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, layout, type),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, layout, rows),
    FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, layout, cols),
    FIELD(CUBLASLT_MATRIX_LAYOUT_LD, layout, ld),
    FIELD(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, layout, batch),
    FIELD(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, layout, stride)};
const attribute PREFERENCE_ATTRIBUTES[] = {
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, preference, workspace),
    FIELD(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, preference, reduction),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, preference, align_a),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, preference, align_b),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, preference, align_c),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, preference, align_d)};

/* Stores an attribute of exactly its size into the structure's bytes. */
template <size_t n>
cublasStatus_t set_attribute(const attribute (&table)[n], void *data, uint32_t mark, int name,
                             const void *value, size_t bytes) {
  uint32_t found;
  memcpy(&found, data, sizeof found);
  if (found != mark || !value) return CUBLAS_STATUS_INVALID_VALUE;
  for (const attribute &a : table)
    if (a.name == name) {
      if (a.bytes != bytes) return CUBLAS_STATUS_INVALID_VALUE;
      memcpy(static_cast<char *>(data) + a.offset, value, bytes);
      return CUBLAS_STATUS_SUCCESS;
    }
  ii_emu::note("cuBLASLt: attribute %d is unknown to the emulation", name);
  return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- Which problems there are -----------------------------------------------------------------*/

/* A product as the descriptors say it, before it has memory. */
struct request {
  operation op;
  layout a, b, c, d;
  int64_t m, n, k;
};

bool types_allowed(const request &r) {
  if (r.a.type != r.b.type || r.c.type != r.d.type) return false;
  if (r.op.compute == CUBLAS_COMPUTE_64F)
    return r.op.scale == CUDA_R_64F && r.a.type == CUDA_R_64F && r.d.type == CUDA_R_64F;
  if (r.op.compute != CUBLAS_COMPUTE_32F || r.op.scale != CUDA_R_32F) return false;
  if (r.a.type == CUDA_R_32F) return r.d.type == CUDA_R_32F;
  return (r.a.type == CUDA_R_16F || r.a.type == CUDA_R_16BF) &&
         (r.d.type == r.a.type || r.d.type == CUDA_R_32F);
}

bool layout_valid(const layout &l, int32_t batch) {
  return l.mark == LAYOUT_MARK && l.rows >= 1 && l.cols >= 1 && l.ld >= (int64_t)l.rows &&
         l.batch >= 1 && l.batch == batch && l.stride >= 0;
}

/* Reads the descriptors; says what the library would say to them. */
cublasStatus_t read_request(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, request *r) {
  if (!handle || handle->mark != HANDLE_MARK) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!op || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
  r->op = get<operation>(op);
  r->a = get<layout>(a);
  r->b = get<layout>(b);
  r->c = get<layout>(c);
  r->d = get<layout>(d);
  if (r->op.mark != OPERATION_MARK) return CUBLAS_STATUS_INVALID_VALUE;
  for (const layout *l : {&r->a, &r->b, &r->c, &r->d})
    if (!layout_valid(*l, r->d.batch)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool ta = r->op.trans_a == CUBLAS_OP_T, tb = r->op.trans_b == CUBLAS_OP_T;
  r->m = (int64_t)(ta ? r->a.cols : r->a.rows);
  r->k = (int64_t)(ta ? r->a.rows : r->a.cols);
  r->n = (int64_t)(tb ? r->b.rows : r->b.cols);
  const int64_t inner = (int64_t)(tb ? r->b.cols : r->b.rows);
  if (inner != r->k) return CUBLAS_STATUS_INVALID_VALUE;
  for (const layout *l : {&r->c, &r->d})
    if ((int64_t)l->rows != r->m || (int64_t)l->cols != r->n) return CUBLAS_STATUS_INVALID_VALUE;
  if (r->m > INT32_MAX || r->n > INT32_MAX || r->k > INT32_MAX || r->d.batch > 65535)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!types_allowed(*r)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (r->op.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
  const bool typed = r->op.bias_type == -1 || r->op.bias_type == (int32_t)r->d.type;
  return r->op.epilogue == CUBLASLT_EPILOGUE_BIAS && typed ? CUBLAS_STATUS_SUCCESS
                                                           : CUBLAS_STATUS_NOT_SUPPORTED;
}

uint32_t hash_request(const request &r) {
  const int64_t values[] = {r.m,          r.n,          r.k,          r.d.batch,
                            r.a.type,     r.d.type,     r.a.ld,       r.b.ld,
                            r.d.ld,       r.a.stride,   r.b.stride,   r.d.stride,
                            r.op.trans_a, r.op.trans_b, r.op.compute, (int64_t)r.op.epilogue};
  uint64_t h = 0;
  for (int64_t v : values) h = (h ^ (uint64_t)v) * 0x9e3779b97f4a7c15u ^ (h >> 29);
  return (uint32_t)(h >> 32);
}

/* What an algorithm reads at once: 16 bytes if the promised alignment, the leading dimension and
 * the distance of the matrices of a stack allow it. */
uint16_t access_bytes(const layout &l, uint32_t promised) {
  const uint64_t size = (uint64_t)blas_type_size((cudaDataType_t)l.type);
  uint64_t bits = promised | (uint64_t)l.ld * size | 16;
  if (l.batch > 1) bits |= (uint64_t)l.stride * size;
  return (uint16_t)(bits & (~bits + 1));
}

algorithm choose(const request &r, const preference &p) {
  algorithm x = {};
  x.mark = ALGORITHM_MARK;
  x.problem = hash_request(r);
  x.align_a = access_bytes(r.a, p.align_a);
  x.align_b = access_bytes(r.b, p.align_b);
  x.align_c = access_bytes(r.c, p.align_c);
  x.align_d = access_bytes(r.d, p.align_d);
  const uint64_t bias = (uint64_t)(uintptr_t)r.op.bias | 16;
  x.align_bias = (uint16_t)(bias & (~bias + 1));
  /* a long inner dimension is split; the parts meet in the workspace in the compute type */
  const uint64_t parts = 2 * (uint64_t)(r.m * r.n) * 4;
  const bool split = r.k >= (int64_t)SPLIT_INNER && parts <= p.workspace;
  if (split && (p.reduction & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) x.workspace = parts;
  return x;
}

/* ---- Running ----------------------------------------------------------------------------------*/

int64_t span_bytes(const layout &l) {
  return ((l.batch - 1) * l.stride + ((int64_t)l.cols - 1) * l.ld + (int64_t)l.rows) *
         blas_type_size((cudaDataType_t)l.type);
}

bool check_memory(const char *what, const void *p, int64_t bytes, unsigned align) {
  if (!ii_emu::in_device(p, (size_t)bytes)) {
    ii_emu::report(true, "matrix outside device memory",
                   "cublasLtMatmul: %s at %p, %lld bytes, is not inside one live allocation", what,
                   p, (long long)bytes);
    return false;
  }
  if ((uintptr_t)p % align != 0) {
    ii_emu::report(true, "misaligned matrix",
                   "cublasLtMatmul: %s at %p, but the algorithm was chosen for an alignment of %u "
                   "bytes",
                   what, p, align);
    return false;
  }
  return true;
}

bool overlap(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
  const uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
  return a_bytes && b_bytes && x < y + (uintptr_t)b_bytes && y < x + (uintptr_t)a_bytes;
}

struct operands {
  const void *a, *b, *c;
  void *d, *workspace;
};

bool check_operands(const request &r, const operands &o, const algorithm &x, bool reads_c) {
  const bool bias = r.op.epilogue == CUBLASLT_EPILOGUE_BIAS;
  const int64_t bias_bytes = r.m * blas_type_size((cudaDataType_t)r.d.type);
  if (!check_memory("A", o.a, span_bytes(r.a), x.align_a) ||
      !check_memory("B", o.b, span_bytes(r.b), x.align_b) ||
      !check_memory("D", o.d, span_bytes(r.d), x.align_d) ||
      (reads_c && !check_memory("C", o.c, span_bytes(r.c), x.align_c)) ||
      (bias && !check_memory("the bias", r.op.bias, bias_bytes, x.align_bias)) ||
      (x.workspace &&
       !check_memory("the workspace", o.workspace, (int64_t)x.workspace, WORKSPACE_ALIGNMENT)))
    return false;
  const struct {
    const char *name;
    const void *p;
    int64_t bytes;
    bool used, may_be_d;
  } all[] = {{"A", o.a, span_bytes(r.a), true, false},
             {"B", o.b, span_bytes(r.b), true, false},
             {"C", o.c, span_bytes(r.c), reads_c, o.c == o.d},
             {"D", o.d, span_bytes(r.d), true, true},
             {"the bias", r.op.bias, bias_bytes, bias, false}};
  for (const auto &e : all) {
    if (!e.used) continue;
    const bool on_d = !e.may_be_d && overlap(o.d, span_bytes(r.d), e.p, e.bytes);
    if (!on_d && !overlap(o.workspace, (int64_t)x.workspace, e.p, e.bytes)) continue;
    ii_emu::report(true, "overlapping matrices", "cublasLtMatmul: %s overlaps %s", e.name,
                   on_d ? "D" : "the workspace");
    return false;
  }
  return true;
}

blas_matrix matrix(const layout &l, const void *data) {
  return blas_matrix{(cudaDataType_t)l.type,     (int64_t)l.rows,         (int64_t)l.cols, l.ld,
                     l.batch > 1 ? l.stride : 0, const_cast<void *>(data)};
}

blas_problem problem_of(const request &r, const operands &o, double alpha, double beta) {
  blas_problem p = {};
  p.a = matrix(r.a, o.a);
  p.b = matrix(r.b, o.b);
  p.c = matrix(r.c, o.c);
  p.d = matrix(r.d, o.d);
  p.trans_a = r.op.trans_a == CUBLAS_OP_T;
  p.trans_b = r.op.trans_b == CUBLAS_OP_T;
  p.batch = r.d.batch;
  p.alpha = alpha;
  p.beta = beta;
  p.bias = r.op.epilogue == CUBLASLT_EPILOGUE_BIAS ? r.op.bias : NULL;
  return p;
}

/* Whether II_EMU_BLAS_REFUSES names this call: "ask" for an algorithm, or "run" it. */
bool refuses(const char *call) {
  const char *set = getenv("II_EMU_BLAS_REFUSES");
  return set && !strcmp(set, call);
}

double scalar(const request &r, const void *p) {
  return r.op.scale == CUDA_R_64F ? *static_cast<const double *>(p)
                                  : (double)*static_cast<const float *>(p);
}

} // namespace

/* ---- The library's functions ------------------------------------------------------------------*/

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
  if (ii_emu::get_settings().devices < 1) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext{HANDLE_MARK, ii_emu::current_device()};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (!handle || handle->mark != HANDLE_MARK) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->mark = 0;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) {
  return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
  case CUBLAS_STATUS_SUCCESS:
    return "success";
  case CUBLAS_STATUS_NOT_INITIALIZED:
    return "the library was not initialized";
  case CUBLAS_STATUS_ALLOC_FAILED:
    return "the resource allocation failed";
  case CUBLAS_STATUS_INVALID_VALUE:
    return "an unsupported value or parameter was passed to the function";
  case CUBLAS_STATUS_EXECUTION_FAILED:
    return "the GPU program failed to execute";
  case CUBLAS_STATUS_NOT_SUPPORTED:
    return "the functionality requested is not supported";
  default:
    return "another error";
  }
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof *desc) return CUBLAS_STATUS_ALLOC_FAILED;
  operation op = {};
  op.mark = OPERATION_MARK;
  op.compute = compute;
  op.scale = scale;
  op.trans_a = op.trans_b = CUBLAS_OP_N;
  op.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  op.bias_type = -1;
  put(desc, op);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  return set_attribute(OPERATION_ATTRIBUTES, desc->data, OPERATION_MARK, name, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t desc, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof *desc) return CUBLAS_STATUS_ALLOC_FAILED;
  layout l = {};
  l.mark = LAYOUT_MARK;
  l.type = type;
  l.batch = 1;
  l.rows = rows;
  l.cols = cols;
  l.ld = ld;
  put(desc, l);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t desc,
                                                cublasLtMatrixLayoutAttribute_t name,
                                                const void *value, size_t bytes) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  return set_attribute(LAYOUT_ATTRIBUTES, desc->data, LAYOUT_MARK, name, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t desc, size_t size) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  if (size < sizeof *desc) return CUBLAS_STATUS_ALLOC_FAILED;
  preference p = {};
  p.mark = PREFERENCE_MARK;
  p.reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
  p.align_a = p.align_b = p.align_c = p.align_d = 256;
  put(desc, p);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t desc,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes) {
  if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
  return set_attribute(PREFERENCE_ATTRIBUTES, desc->data, PREFERENCE_MARK, name, value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t pref, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *returned) {
  request r;
  if (wanted <= 0 || !results || !returned || !pref) return CUBLAS_STATUS_INVALID_VALUE;
  *returned = 0;
  const preference p = get<preference>(pref);
  if (p.mark != PREFERENCE_MARK) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = read_request(handle, op, a, b, c, d, &r);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (refuses("ask")) return CUBLAS_STATUS_NOT_SUPPORTED;
  const char *epilogues = getenv("II_EMU_BLAS_EPILOGUES");
  if (epilogues && atoi(epilogues) == 0 && r.op.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const algorithm x = choose(r, p);
  memset(results, 0, sizeof *results);
  put(&results->algo, x);
  results->workspaceSize = x.workspace;
  results->state = CUBLAS_STATUS_SUCCESS;
  results->wavesCount = 1;
  *returned = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t a, const void *B,
                              cublasLtMatrixLayout_t b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  request r;
  const cublasStatus_t status = read_request(handle, op, a, b, c, d, &r);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (!alpha || !beta || !algo) return CUBLAS_STATUS_INVALID_VALUE;
  const algorithm x = get<algorithm>(algo);
  if (x.mark != ALGORITHM_MARK || x.problem != hash_request(r)) {
    ii_emu::report(true, "algorithm of another problem",
                   "cublasLtMatmul: the algorithm was not chosen for this product (m %lld, n %lld, "
                   "k %lld)",
                   (long long)r.m, (long long)r.n, (long long)r.k);
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (workspace_bytes < x.workspace) return CUBLAS_STATUS_INVALID_VALUE;
  if (refuses("run")) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (ii_emu::stream_device(stream) != handle->device) {
    ii_emu::report(true, "wrong device",
                   "cublasLtMatmul: the handle belongs to GPU %d, the stream to GPU %d",
                   handle->device, ii_emu::stream_device(stream));
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const operands o = {A, B, C, D, workspace};
  const double scale = scalar(r, alpha), keep = scalar(r, beta);
  if (!check_operands(r, o, x, keep != 0)) return CUBLAS_STATUS_EXECUTION_FAILED;
  const blas_problem p = problem_of(r, o, scale, keep);
  const size_t poison = x.workspace;
  ii_emu::enqueue(stream, [p, workspace, poison] {
    if (poison) memset(workspace, 0xFF, poison);
    ii_emu::blas_multiply(p);
  });
  return CUBLAS_STATUS_SUCCESS;
}
