/* What cublasLt*SetAttribute accept, which needs no GPU: the same statuses from NVIDIA's library
 * and from its stand-in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}
#include <cublasLt.h>

namespace {

const int64_t VALUE[2] = {1, 0};
const cublasStatus_t YES = CUBLAS_STATUS_SUCCESS, NO = CUBLAS_STATUS_INVALID_VALUE;

void operations(void **) {
  cublasLtMatmulDescOpaque_t op;
  assert_int_equal(cublasLtMatmulDescInit_internal(&op, 8, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                   CUBLAS_STATUS_ALLOC_FAILED);
  assert_int_equal(cublasLtMatmulDescInit(&op, CUBLAS_COMPUTE_64F, CUDA_R_64F), YES);
  const struct {
    cublasLtMatmulDescAttributes_t name;
    size_t bytes;
  } attributes[] = {{CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, 4},
                    {CUBLASLT_MATMUL_DESC_SCALE_TYPE, 4},
                    {CUBLASLT_MATMUL_DESC_TRANSA, 4},
                    {CUBLASLT_MATMUL_DESC_TRANSB, 4},
                    {CUBLASLT_MATMUL_DESC_EPILOGUE, 4},
                    {CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8},
                    {CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, 8},
                    {CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, 4}};
  for (const auto &a : attributes)
    for (size_t bytes : {2, 4, 8, 16})
      assert_int_equal(cublasLtMatmulDescSetAttribute(&op, a.name, VALUE, bytes),
                       bytes == a.bytes ? YES : NO);
  assert_int_equal(cublasLtMatmulDescSetAttribute(&op, CUBLASLT_MATMUL_DESC_TRANSA, NULL, 4), NO);
  const auto unknown = static_cast<cublasLtMatmulDescAttributes_t>(63);
  assert_int_equal(cublasLtMatmulDescSetAttribute(&op, unknown, VALUE, 4), NO);
}

void layouts(void **) {
  cublasLtMatrixLayoutOpaque_t m;
  assert_int_equal(cublasLtMatrixLayoutInit_internal(&m, 8, CUDA_R_32F, 3, 4, 3),
                   CUBLAS_STATUS_ALLOC_FAILED);
  assert_int_equal(cublasLtMatrixLayoutInit(&m, CUDA_R_16BF, 3, 4, 3), YES);
  const struct {
    cublasLtMatrixLayoutAttribute_t name;
    size_t bytes;
  } attributes[] = {
      {CUBLASLT_MATRIX_LAYOUT_TYPE, 4},        {CUBLASLT_MATRIX_LAYOUT_ROWS, 8},
      {CUBLASLT_MATRIX_LAYOUT_COLS, 8},        {CUBLASLT_MATRIX_LAYOUT_LD, 8},
      {CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 4}, {CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, 8}};
  for (const auto &a : attributes)
    for (size_t bytes : {2, 4, 8, 16})
      assert_int_equal(cublasLtMatrixLayoutSetAttribute(&m, a.name, VALUE, bytes),
                       bytes == a.bytes ? YES : NO);
}

void preferences(void **) {
  cublasLtMatmulPreferenceOpaque_t p;
  assert_int_equal(cublasLtMatmulPreferenceInit_internal(&p, 8), CUBLAS_STATUS_ALLOC_FAILED);
  assert_int_equal(cublasLtMatmulPreferenceInit(&p), YES);
  const struct {
    cublasLtMatmulPreferenceAttributes_t name;
    size_t bytes;
  } attributes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 8},
                    {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 4},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 4},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 4},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 4},
                    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 4}};
  for (const auto &a : attributes)
    for (size_t bytes : {2, 4, 8, 16})
      assert_int_equal(cublasLtMatmulPreferenceSetAttribute(&p, a.name, VALUE, bytes),
                       bytes == a.bytes ? YES : NO);
}

} // namespace

int main() {
  const struct CMUnitTest tests[] = {cmocka_unit_test(operations), cmocka_unit_test(layouts),
                                     cmocka_unit_test(preferences)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
