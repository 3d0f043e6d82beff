/* Products of matrices by a warp in the CUDA emulation against plain loops, for test_emulator.cu.
 */
#include <mma.h>
#include <stdio.h>
#include <string.h>
#include "test_emulator.h"

namespace {

namespace wmma = nvcuda::wmma;

int failures;

enum { LDA = 40, LDB = 24, LDC = 20, COUNT = 16 * LDA };

/* c += a b, all in memory; the result is doubled. */
template <typename T, typename La, typename Lb>
__global__ void product(const T *a, const T *b, float *c, bool by_rows) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, La> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, Lb> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 1.0f);
  wmma::load_matrix_sync(fa, a, LDA);
  wmma::load_matrix_sync(fb, b, LDB);
  wmma::mma_sync(sum, fa, fb, sum);
  for (int i = 0; i < sum.num_elements; i++) sum.x[i] *= 2.0f;
  wmma::store_matrix_sync(c, sum, LDC, by_rows ? wmma::mem_row_major : wmma::mem_col_major);
}

template <typename T> T narrow(float v);
template <> __half narrow(float v) {
  return __float2half_rn(v);
}
template <> __nv_bfloat16 narrow(float v) {
  return __float2bfloat16_rn(v);
}

template <typename T, typename La, typename Lb> void check(bool a_rows, bool b_rows, bool c_rows) {
  T a[COUNT], b[COUNT], *da, *db;
  float va[COUNT], vb[COUNT], c[COUNT], *dc;
  for (int i = 0; i < COUNT; i++) {
    va[i] = (float)(i * 7 % 31 - 15);
    vb[i] = (float)(i * 5 % 29 - 14);
    a[i] = narrow<T>(va[i]);
    b[i] = narrow<T>(vb[i]);
  }
  cudaMalloc(&da, sizeof a);
  cudaMalloc(&db, sizeof b);
  cudaMalloc(&dc, sizeof c);
  cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice);
  cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice);
  II_EMU_LAUNCH((product<T, La, Lb>), 1, 32, 0, 0, da, db, dc, c_rows);
  cudaMemcpy(c, dc, sizeof c, cudaMemcpyDeviceToHost);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) {
      float want = 1.0f;
      for (int k = 0; k < 16; k++)
        want += va[a_rows ? i * LDA + k : k * LDA + i] * vb[b_rows ? k * LDB + j : j * LDB + k];
      EXPECT(c[c_rows ? i * LDC + j : j * LDC + i] == 2.0f * want);
    }
  cudaFree(da);
  cudaFree(db);
  cudaFree(dc);
}

/* 1 + 16 v with v below the bits that a tensor core keeps beside 1, and just within them; 1 + 14 v
 * with v below those beside the 2^12 that the other two products add. In exact sums, rounded to
 * fp32, no v would be lost. */
void check_cut_off(void) {
  static const struct {
    float v, pair, want;
  } cases[] = {{0x1.fp-25f, 0, 1}, {0x1p-24f, 0, 1 + 0x1p-20f}, {0x1p-14f, 64, 1 + 0x1p12f}};
  for (const auto &one : cases) {
    __half a[COUNT] = {}, b[COUNT] = {}, *da, *db;
    float c[COUNT], *dc;
    for (int k = 0; k < 16; k++) {
      const bool pair = one.pair != 0 && k < 2;
      a[k] = __float2half_rn(pair ? one.pair : one.v * 0x1p12f);
      b[k * LDB] = __float2half_rn(pair ? one.pair / 2 : 0x1p-12f);
    }
    cudaMalloc(&da, sizeof a);
    cudaMalloc(&db, sizeof b);
    cudaMalloc(&dc, sizeof c);
    cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice);
    cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice);
    II_EMU_LAUNCH((product<__half, wmma::row_major, wmma::row_major>), 1, 32, 0, 0, da, db, dc,
                  true);
    cudaMemcpy(c, dc, sizeof c, cudaMemcpyDeviceToHost);
    EXPECT(c[0] == 2.0f * one.want);
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
  }
}

} // namespace

int matrix_products(void) {
  check_cut_off();
  check<__half, wmma::row_major, wmma::row_major>(true, true, true);
  check<__half, wmma::col_major, wmma::row_major>(false, true, true);
  check<__nv_bfloat16, wmma::row_major, wmma::col_major>(true, false, false);
  check<__nv_bfloat16, wmma::col_major, wmma::col_major>(false, false, true);
  return failures;
}
