/* The stand-in of cuDNN: its convolutions, what it refuses as the library does, the engines that
 * the making of plans must pass over, and what it reports because the library would not notice. */
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
#include <cuda_runtime_api.h>
#include "emulated_death.h"
#include "kernels/cuda/conv_plan.h"

namespace {

const size_t BYTES = 4096;

/* 1 image of 3x3 with 1 channel, 1 output channel, window 2x2, no padding; fp32. */
ii_conv_problem small_problem() {
  ii_conv_problem p;
  p.direction = II_CONV_FWD;
  p.dtype = p.w_dtype = II_F32;
  p.accumulate = false;
  p.kh = p.kw = 2;
  p.stride_h = p.stride_w = 1;
  p.pad_h = p.pad_left = p.pad_right = 0;
  p.alignment = 16;
  p.N = p.C = p.O = 1;
  p.H = p.W = 3;
  p.Ho = p.Wo = 2;
  return p;
}

/* A handle, and memory for the three tensors and the workspace. */
struct bench {
  cudnnHandle_t handle;
  cudaStream_t stream;
  float *x, *w, *y;
  void *workspace;
  ii_conv_plan plan;
  char error[512];

  bench() {
    assert_int_equal(cudnnCreate(&handle), CUDNN_STATUS_SUCCESS);
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cudnnSetStream(handle, stream), CUDNN_STATUS_SUCCESS);
    for (float **p : {&x, &w, &y}) assert_int_equal(cudaMalloc((void **)p, BYTES), cudaSuccess);
    assert_int_equal(cudaMalloc(&workspace, BYTES), cudaSuccess);
    memset(&plan, 0, sizeof plan);
    error[0] = 0;
  }
  ~bench() {
    ii_conv_plan_free(&plan);
    cudaStreamSynchronize(stream);
    for (void *p : {(void *)x, (void *)w, (void *)y, workspace}) cudaFree(p);
    cudaStreamDestroy(stream);
    cudnnDestroy(handle);
  }
  int make(const ii_conv_problem &p) {
    ii_conv_plan_free(&plan);
    return ii_conv_plan_make(&p, handle, NULL, &plan, error, sizeof error);
  }
  cudnnStatus_t run() { return ii_conv_plan_run(&plan, handle, x, w, y, workspace); }
  void fill(float *p, std::initializer_list<float> v) {
    assert_int_equal(cudaMemcpy(p, v.begin(), v.size() * sizeof(float), cudaMemcpyHostToDevice),
                     cudaSuccess);
  }
  void expect(const float *p, std::initializer_list<float> v) {
    float got[16];
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(got, p, v.size() * sizeof(float), cudaMemcpyDeviceToHost),
                     cudaSuccess);
    for (size_t i = 0; i < v.size(); i++) assert_float_equal(got[i], v.begin()[i], 0);
  }
};

/* By hand; what is not added to is not read. */
void three_directions(void **) {
  bench b;
  ii_conv_problem p = small_problem();
  b.fill(b.x, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  b.fill(b.w, {1, 10, 100, 1000});
  b.fill(b.y, {NAN, NAN, NAN, NAN});
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.y, {5421, 6532, 8754, 9865}); /* no kernel turned round: a correlation */
  b.fill(b.y, {1, 2, 3, 4});
  b.fill(b.w, {NAN, NAN, NAN, NAN});
  p.direction = II_CONV_BWD_FILTER;
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.w, {1 + 4 + 12 + 20, 2 + 6 + 15 + 24, 4 + 10 + 21 + 32, 5 + 12 + 24 + 36});
  b.fill(b.w, {1, 10, 100, 1000});
  b.fill(b.x, {1, 1, 1, 1, 1, 1, 1, 1, 1});
  p.direction = II_CONV_BWD_DATA;
  p.accumulate = true;
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.x, {2, 13, 21, 104, 1235, 2041, 301, 3401, 4001});
}

/* By hand: steps and margins that differ down and across, and before and behind. */
void uneven_windows(void **) {
  bench b;
  ii_conv_problem p = small_problem();
  p.kh = 1, p.stride_h = 2, p.pad_left = 1;
  p.Wo = 3;
  b.fill(b.x, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  b.fill(b.w, {1, 10});
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.y, {10, 21, 32, 70, 87, 98});
  p.direction = II_CONV_BWD_FILTER;
  b.fill(b.y, {1, 2, 3, 4, 5, 6});
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.w, {2 * 1 + 3 * 2 + 5 * 7 + 6 * 8, 1 + 4 + 9 + 28 + 40 + 54});
  p.pad_left = 0, p.pad_right = 1; /* another plan */
  p.direction = II_CONV_FWD;
  b.fill(b.w, {1, 10});
  assert_int_equal(b.make(p), 0);
  assert_int_equal(b.run(), CUDNN_STATUS_SUCCESS);
  b.expect(b.y, {21, 32, 3, 87, 98, 9});
}

/* Of the engines that are proposed, only the last keeps the contract; it is the one with a small
 * workspace. */
void careful_choice(void **) {
  bench b;
  assert_int_equal(b.make(small_problem()), 0);
  assert_non_null(b.plan.plan);
  assert_int_equal(b.plan.workspace, 4096);
}

void no_plan(void **) {
  bench b;
  ii_conv_problem p = small_problem();
  p.direction = II_CONV_BWD_FILTER;
  p.dtype = II_BF16; /* with an fp32 gradient */
  assert_int_equal(b.make(p), 0);
  assert_null(b.plan.plan);
  p.w_dtype = II_BF16;
  assert_int_equal(b.make(p), 0);
  assert_non_null(b.plan.plan);
  setenv("II_EMU_DNN_PLANS", "0", 1);
  assert_int_equal(b.make(p), 0);
  unsetenv("II_EMU_DNN_PLANS");
  assert_null(b.plan.plan);
}

void wrong_shapes(void **) {
  bench b;
  ii_conv_problem p = small_problem();
  p.Wo = 3;
  assert_int_equal(b.make(p), 1);
  assert_non_null(strstr(b.error, "BAD_PARAM"));
  p = small_problem();
  p.stride_w = 0;
  assert_int_equal(b.make(p), 1);
  p = small_problem();
  p.N = 0;
  assert_int_equal(b.make(p), 1);
  p = small_problem();
  p.alignment = 2; /* less than an element */
  assert_int_equal(b.make(p), 1);
}

void attributes(void **) {
  cudnnBackendDescriptor_t t, g;
  const int64_t four[4] = {1, 1, 1, 1};
  const int32_t narrow = 1;
  assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &t), 0);
  assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, &g), 0);
  assert_int_equal(
      cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT32, 1, &narrow),
      CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
  assert_int_equal(
      cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 3, four),
      CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT);
  assert_int_equal(
      cudnnBackendSetAttribute(t, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, four),
      CUDNN_STATUS_NOT_SUPPORTED);
  assert_int_equal(
      cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, four), 0);
  assert_int_equal(cudnnBackendFinalize(t), CUDNN_STATUS_BAD_PARAM); /* the rest is missing */
  assert_int_equal(cudnnBackendSetAttribute(g, CUDNN_ATTR_OPERATIONGRAPH_OPS,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &t),
                   CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
  assert_int_equal(cudnnBackendDestroyDescriptor(g), 0);
  assert_int_equal(cudnnBackendDestroyDescriptor(t), 0);
  expect_report("destroyed twice", [&] { cudnnBackendDestroyDescriptor(t); });
}

void memory_reports(void **) {
  bench b;
  float host[64];
  assert_int_equal(b.make(small_problem()), 0);
  assert_int_equal(ii_conv_plan_run(&b.plan, b.handle, b.x, b.w, b.y, NULL),
                   CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
  expect_report("x, 36 bytes at",
                [&] { ii_conv_plan_run(&b.plan, b.handle, host, b.w, b.y, b.workspace); });
  expect_report("w at",
                [&] { ii_conv_plan_run(&b.plan, b.handle, b.x, b.w + 1, b.y, b.workspace); });
  expect_report("x overlaps y",
                [&] { ii_conv_plan_run(&b.plan, b.handle, b.x, b.w, b.x + 4, b.workspace); });
  expect_report("4096 bytes at", [&] {
    ii_conv_plan_run(&b.plan, b.handle, b.x, b.w, b.y, (char *)b.workspace + 16);
  });
  /* the last place where y fits */
  float *end = b.y + BYTES / sizeof(float);
  assert_int_equal(ii_conv_plan_run(&b.plan, b.handle, b.x, b.w, end - 4, b.workspace), 0);
  expect_report("y, 16 bytes at",
                [&] { ii_conv_plan_run(&b.plan, b.handle, b.x, b.w, end, b.workspace); });
}

void devices(void **) {
  bench b;
  cudaStream_t other;
  assert_int_equal(cudaSetDevice(1), cudaSuccess);
  assert_int_equal(cudaStreamCreate(&other), cudaSuccess);
  assert_int_equal(cudnnSetStream(b.handle, other), CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH);
  cudaStreamDestroy(other);
  assert_int_equal(cudaSetDevice(0), cudaSuccess);
}

} // namespace

int main() {
  setenv("II_EMU_DEVICES", "2", 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(three_directions), cmocka_unit_test(uneven_windows),
      cmocka_unit_test(careful_choice),   cmocka_unit_test(no_plan),
      cmocka_unit_test(wrong_shapes),     cmocka_unit_test(attributes),
      cmocka_unit_test(memory_reports),   cmocka_unit_test(devices)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
