/* The stand-in of cuBLASLt: its products, what it refuses as the library does, and what it reports
 * because the library would not notice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>
extern "C" {
#include <cmocka.h>
}
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include "emulated_death.h"

namespace {

const size_t MEGABYTE = 1 << 20;

/* D[m,n] = A[m,k] B[k,n] by columns, in device memory; everything a test may change. */
struct problem {
  cublasLtHandle_t handle;
  cudaStream_t stream;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F, ab = CUDA_R_32F, cd = CUDA_R_32F;
  uint64_t m = 3, n = 2, k = 4;
  int64_t lda = 0; /* 0: as many as rows */
  int32_t batch_a = 1, batch_d = 1, bias_type = -1;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT, align = 4;
  const void *bias = NULL;
  cublasLtMatmulDescOpaque_t op;
  cublasLtMatrixLayoutOpaque_t a, b, d;
  cublasLtMatmulPreferenceOpaque_t pref;
  cublasLtMatmulHeuristicResult_t result;
  float *A, *B, *D;
  void *workspace;

  problem() {
    assert_int_equal(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    for (float **p : {&A, &B, &D}) assert_int_equal(cudaMalloc((void **)p, MEGABYTE), cudaSuccess);
    assert_int_equal(cudaMalloc(&workspace, MEGABYTE), cudaSuccess);
  }
  ~problem() {
    cudaStreamSynchronize(stream);
    for (void *p : {(void *)A, (void *)B, (void *)D, workspace}) cudaFree(p);
    cudaStreamDestroy(stream);
    cublasLtDestroy(handle);
  }

  cublasStatus_t choose() {
    int found = 0;
    const uint64_t bytes = MEGABYTE;
    cublasLtMatmulDescInit(&op, compute, scale);
    cublasLtMatrixLayoutInit(&a, ab, m, k, lda ? lda : (int64_t)m);
    cublasLtMatrixLayoutInit(&b, ab, k, n, (int64_t)k);
    cublasLtMatrixLayoutInit(&d, cd, m, n, (int64_t)m);
    cublasLtMatrixLayoutSetAttribute(&a, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_a, 4);
    cublasLtMatrixLayoutSetAttribute(&b, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_d, 4);
    cublasLtMatrixLayoutSetAttribute(&d, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_d, 4);
    cublasLtMatmulDescSetAttribute(&op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, 4);
    cublasLtMatmulDescSetAttribute(&op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    cublasLtMatmulDescSetAttribute(&op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, 4);
    cublasLtMatmulPreferenceInit(&pref);
    cublasLtMatmulPreferenceSetAttribute(&pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                         sizeof bytes);
    for (auto name :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      cublasLtMatmulPreferenceSetAttribute(&pref, name, &align, 4);
    return cublasLtMatmulAlgoGetHeuristic(handle, &op, &a, &b, &d, &d, &pref, 1, &result, &found);
  }
  cublasStatus_t run(float alpha, float beta, const void *from_a, void *to_d) {
    return cublasLtMatmul(handle, &op, &alpha, from_a, &a, B, &b, &beta, to_d, &d, to_d, &d,
                          &result.algo, workspace, result.workspaceSize, stream);
  }
  void fill(float *p, const float *v, size_t count) {
    assert_int_equal(cudaMemcpy(p, v, count * sizeof *v, cudaMemcpyHostToDevice), cudaSuccess);
  }
};

/* [1 2; 3 4] [5 6; 7 8] = [19 22; 43 50]. The factors of the result are read at the call, and a
 * result that is not added to is not read. */
void small_product(void **) {
  problem p;
  p.m = p.n = p.k = 2;
  const float a[] = {1, 3, 2, 4}, b[] = {5, 7, 6, 8}, bias[] = {100, 200};
  const float unset[] = {NAN, NAN, NAN, NAN};
  float d[4];
  float *device_bias;
  assert_int_equal(cudaMalloc((void **)&device_bias, sizeof bias), cudaSuccess);
  p.fill(p.A, a, 4);
  p.fill(p.B, b, 4);
  p.fill(p.D, unset, 4);
  p.fill(device_bias, bias, 2);
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  float alpha = 1, beta = 0;
  assert_int_equal(cublasLtMatmul(p.handle, &p.op, &alpha, p.A, &p.a, p.B, &p.b, &beta, p.D, &p.d,
                                  p.D, &p.d, &p.result.algo, NULL, 0, p.stream),
                   CUBLAS_STATUS_SUCCESS);
  alpha = beta = 1000; /* too late to matter */
  p.epilogue = CUBLASLT_EPILOGUE_BIAS;
  p.bias = device_bias;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  assert_int_equal(p.run(2, 3, p.A, p.D), CUBLAS_STATUS_SUCCESS);
  assert_int_equal(cudaStreamSynchronize(p.stream), cudaSuccess);
  assert_int_equal(cudaMemcpy(d, p.D, sizeof d, cudaMemcpyDeviceToHost), cudaSuccess);
  const float want[] = {5 * 19 + 100, 5 * 43 + 200, 5 * 22 + 100, 5 * 50 + 200};
  for (int i = 0; i < 4; i++) assert_float_equal(d[i], want[i], 0);
  cudaFree(device_bias);
}

/* Which attributes there are is compared with NVIDIA's library in test_cuda_blas_descriptors.cpp;
 * that a descriptor has been initialised is noticed here alone. */
void uninitialised_descriptors(void **) {
  const int32_t value = 1;
  cublasLtMatmulDescOpaque_t op = {};
  cublasLtMatrixLayoutOpaque_t layout = {};
  assert_int_equal(cublasLtMatmulDescSetAttribute(&op, CUBLASLT_MATMUL_DESC_TRANSA, &value, 4),
                   CUBLAS_STATUS_INVALID_VALUE);
  assert_int_equal(
      cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &value, 4),
      CUBLAS_STATUS_INVALID_VALUE);
}

/* The rows of NVIDIA's table that concern real floating point types; every other one is refused. */
void type_table(void **) {
  const cudaDataType_t types[] = {CUDA_R_16F, CUDA_R_16BF, CUDA_R_32F, CUDA_R_64F, CUDA_R_8I};
  const cublasComputeType_t computes[] = {CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_32F,
                                          CUBLAS_COMPUTE_64F};
  problem p;
  int allowed = 0;
  for (auto compute : computes)
    for (auto scale : types)
      for (auto ab : types)
        for (auto cd : types) {
          p.compute = compute;
          p.scale = scale;
          p.ab = ab;
          p.cd = cd;
          const bool narrow = ab == CUDA_R_16F || ab == CUDA_R_16BF;
          const bool in_float = compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F &&
                                ((narrow && (cd == ab || cd == CUDA_R_32F)) ||
                                 (ab == CUDA_R_32F && cd == CUDA_R_32F));
          const bool in_double = compute == CUBLAS_COMPUTE_64F && scale == CUDA_R_64F &&
                                 ab == CUDA_R_64F && cd == CUDA_R_64F;
          allowed += in_float || in_double;
          assert_int_equal(p.choose(), in_float || in_double ? CUBLAS_STATUS_SUCCESS
                                                             : CUBLAS_STATUS_NOT_SUPPORTED);
        }
  assert_int_equal(allowed, 6);
}

void bias_types(void **) {
  problem p;
  p.ab = p.cd = CUDA_R_16BF;
  p.epilogue = CUBLASLT_EPILOGUE_BIAS;
  p.bias = p.workspace;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  p.bias_type = CUDA_R_16BF;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  p.bias_type = CUDA_R_32F;
  assert_int_equal(p.choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  p.cd = CUDA_R_32F;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  p.epilogue = CUBLASLT_EPILOGUE_GELU_BIAS;
  assert_int_equal(p.choose(), CUBLAS_STATUS_NOT_SUPPORTED);
}

void shapes(void **) {
  problem p;
  p.lda = 2;
  assert_int_equal(p.choose(), CUBLAS_STATUS_INVALID_VALUE);
  p.lda = 0;
  p.batch_a = 2;
  assert_int_equal(p.choose(), CUBLAS_STATUS_INVALID_VALUE);
  p.batch_a = p.batch_d = 65536;
  assert_int_equal(p.choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  p.batch_a = p.batch_d = 1;
  p.k = 0;
  assert_int_equal(p.choose(), CUBLAS_STATUS_INVALID_VALUE);
  p.k = 4;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  const int32_t transposed = CUBLAS_OP_T; /* then A is 4 x 3, and the sizes differ */
  int found;
  cublasLtMatmulDescSetAttribute(&p.op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, 4);
  assert_int_equal(cublasLtMatmulAlgoGetHeuristic(p.handle, &p.op, &p.a, &p.b, &p.d, &p.d, &p.pref,
                                                  1, &p.result, &found),
                   CUBLAS_STATUS_INVALID_VALUE);
}

/* An algorithm that asked for workspace gets it, or there is no product. */
void workspace(void **) {
  problem p;
  float alpha = 1, beta = 0;
  p.m = p.n = 8;
  p.k = 2048;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  assert_true(p.result.workspaceSize > 0);
  assert_int_equal(cublasLtMatmul(p.handle, &p.op, &alpha, p.A, &p.a, p.B, &p.b, &beta, p.D, &p.d,
                                  p.D, &p.d, &p.result.algo, p.workspace,
                                  p.result.workspaceSize - 1, p.stream),
                   CUBLAS_STATUS_INVALID_VALUE);
  assert_int_equal(p.run(1, 0, p.A, p.D), CUBLAS_STATUS_SUCCESS);
  expect_report("D overlaps the workspace", [&] { p.run(1, 0, p.A, p.workspace); });
}

void memory_reports(void **) {
  problem p;
  float host[64];
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  expect_report("A at ", [&] { p.run(1, 0, host, p.D); });
  char *end = (char *)p.D + MEGABYTE;
  assert_int_equal(p.run(1, 0, p.A, end - 24), CUBLAS_STATUS_SUCCESS);
  expect_report("D at ", [&] { p.run(1, 0, p.A, end - 20); });
  expect_report("A overlaps D", [&] { p.run(1, 0, p.A, (char *)p.A + 16); });
  p.epilogue = CUBLASLT_EPILOGUE_BIAS;
  p.bias = host;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  expect_report("the bias at ", [&] { p.run(1, 0, p.A, p.D); });
}

/* Algorithms are for the alignment and the problem they were asked for. */
void algorithm_reports(void **) {
  problem p;
  p.m = p.k = 8;
  p.align = 16;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  assert_int_equal(p.run(1, 0, p.A + 4, p.D), CUBLAS_STATUS_SUCCESS);
  expect_report("chosen for an alignment of 16 bytes", [&] { p.run(1, 0, p.A + 1, p.D); });
  p.align = 4;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  assert_int_equal(p.run(1, 0, p.A + 1, p.D), CUBLAS_STATUS_SUCCESS);
  const cublasLtMatmulHeuristicResult_t other = p.result;
  p.n = 3;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  p.result = other;
  expect_report("was not chosen for this product", [&] { p.run(1, 0, p.A, p.D); });
}

void devices(void **) {
  problem p;
  assert_int_equal(p.choose(), CUBLAS_STATUS_SUCCESS);
  assert_int_equal(cudaSetDevice(1), cudaSuccess);
  cudaStream_t own = p.stream;
  assert_int_equal(cudaStreamCreate(&p.stream), cudaSuccess);
  expect_report("the handle belongs to GPU 0, the stream to GPU 1", [&] { p.run(1, 0, p.A, p.D); });
  cudaStreamDestroy(p.stream);
  p.stream = own;
  assert_int_equal(cudaSetDevice(0), cudaSuccess);
}

} // namespace

int main() {
  setenv("II_EMU_DEVICES", "2", 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(small_product),  cmocka_unit_test(uninitialised_descriptors),
      cmocka_unit_test(type_table),     cmocka_unit_test(bias_types),
      cmocka_unit_test(shapes),         cmocka_unit_test(workspace),
      cmocka_unit_test(memory_reports), cmocka_unit_test(algorithm_reports),
      cmocka_unit_test(devices)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
