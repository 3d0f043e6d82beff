/* Deformable convolution backward on the matrix units: what its kernels share. A warp has 32
 * outputs of one group at a time, a lane one of them; windows of 3 x 3. */
#ifndef II_DCN_MMA_H
#define II_DCN_MMA_H
#include <mma.h>
#include "kernels/cuda/dcn_gx.h"

enum { II_DCN_ROWS = 32, II_DCN_TAPS = 9 };

/* 4-byte words that n neighbouring elements of O take, wherever the first one lies. */
template <typename O, int n> constexpr int ii_dcn_words = sizeof(O) == 4 ? n : n / 2 + 1;
template <typename O>
constexpr int ii_dcn_om_words = ii_dcn_words<O, 2 * II_DCN_TAPS> + ii_dcn_words<O, II_DCN_TAPS>;

/* Elements from a row of 16-bit channels to the next in shared memory: 16 bytes more than a row, so
 * that 8 rows lie on different banks. */
template <int N> constexpr int ii_dcn_pitch = N + 8;

/* Word j of those that hold the n elements at p; element i is then element i + skew of the words,
 * skew = ii_dcn_skew(p). Reads nothing that is not among them. */
template <typename O> __device__ __forceinline__ int ii_dcn_skew(const O *p) {
  return sizeof(O) == 4 ? 0 : (int)(reinterpret_cast<uintptr_t>(p) / 2 % 2);
}
template <typename O>
__device__ __forceinline__ void ii_dcn_copy_word(const O *p, int n, int j, uint32_t *to) {
  if constexpr (sizeof(O) == 4) {
    memcpy(to + j, p + j, 4);
  } else {
    const int first = 2 * j - ii_dcn_skew(p);
    if (first >= 0 && first + 1 < n)
      to[j] = *reinterpret_cast<const uint32_t *>(p + first);
    else if (first == n - 1)
      reinterpret_cast<O *>(to + j)[0] = p[first];
    else if (first == -1)
      reinterpret_cast<O *>(to + j)[1] = p[0];
  }
}

/* Offsets and modulations of the lanes' outputs q to om[II_DCN_ROWS][ii_dcn_om_words] in shared
 * memory, the modulations from word ii_dcn_words<O, 18> of a row on. offset, mask: of the group in
 * output 0 of the image. */
template <typename O>
__device__ __forceinline__ void ii_dcn_stage_om(const ii_dcn_shape<float> &s, const O *offset,
                                                const O *mask, int q, uint32_t *om) {
  constexpr int words = ii_dcn_om_words<O>, front = ii_dcn_words<O, 2 * II_DCN_TAPS>;
  constexpr int at_once = words <= 16 ? 2 : 1; /* rows */
  const int lane = threadIdx.x % 32, row = lane / (32 / at_once), j = lane % (32 / at_once);
#pragma unroll 16
  for (int r = 0; r < II_DCN_ROWS; r += at_once) {
    const int64_t from = __shfl_sync(II_FULL_MASK, q, r + row);
    uint32_t *to = om + (r + row) * words;
    if (j < front)
      ii_dcn_copy_word(offset + from * s.offset_row, 2 * II_DCN_TAPS, j, to);
    else if (j < words)
      ii_dcn_copy_word(mask + from * s.mask_row, II_DCN_TAPS, j - front, to + front);
  }
}

/* floor(v) for |v| < 2^22, and as an integer: what is added leaves no bits for a fraction. */
__device__ __forceinline__ float ii_dcn_floor_of(float v, int *integer) {
  const float big = 12582912.0f; /* 1.5 * 2^23 */
  const float sum = __fadd_rd(v, big);
  *integer = __float_as_int(sum) - __float_as_int(big);
  return sum - big;
}
/* Where tap k, of an output whose window is centred on (y, x), samples; false when outside. Taps
 * are numbered by columns. */
typedef struct {
  float lx, ly;
  int x, y; /* top left corner, from -1 on */
} ii_dcn_sample;
typedef struct {
  float base_x, base_y, step_x, step_y, W, H;
} ii_dcn_grid;

static __device__ __forceinline__ ii_dcn_grid ii_dcn_grid_of(const ii_dcn_shape<float> &s, int ho,
                                                             int wo) {
  ii_dcn_grid g;
  g.base_x = float(wo * s.stride_w + s.first_w) - s.shift_w;
  g.base_y = float(ho * s.stride_h + s.first_h) - s.shift_h;
  g.step_x = float(s.dil_w);
  g.step_y = float(s.dil_h);
  g.W = float(s.W);
  g.H = float(s.H);
  return g;
}
/* column, row: k / 3 and k % 3, times the steps. */
static __device__ __forceinline__ bool ii_dcn_sample_of(const ii_dcn_grid &g, float scale,
                                                        float column, float row, float dx, float dy,
                                                        ii_dcn_sample *p) {
  const float x = (column + dx) * scale + g.base_x;
  const float y = (row + dy) * scale + g.base_y;
  if (!(y > -1.0f && x > -1.0f && y < g.H && x < g.W)) return false; /* NaN too */
  p->lx = x - ii_dcn_floor_of(x, &p->x);
  p->ly = y - ii_dcn_floor_of(y, &p->y);
  return true;
}

#endif
