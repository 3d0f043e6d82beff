/* Deformable convolution backward on the matrix units: what its kernels share. A warp has 32
 * outputs of one group at a time, a lane one of them; windows of 3 x 3. */
#ifndef II_DCN_MMA_H
#define II_DCN_MMA_H
#include <mma.h>
#include "kernels/cuda/dcn_gx.h"

enum { II_DCN_ROWS = 32, II_DCN_TAPS = 9 };
/* Shared memory that a block may ask for on every GPU since 8.0: bytes on 8.6, 8.9 and 12.0. */
enum { II_DCN_MOST_SHARED = 99 * 1024 };

/* Offsets and modulations of an output and group in shared memory: 4-byte words, the offsets of tap
 * k from element 2k, the modulations from word ii_dcn_om_front on. An odd number of words, so that
 * the rows of different lanes lie on different banks. */
template <typename O> constexpr int ii_dcn_om_front = 18 * (int)sizeof(O) / 4;
template <typename O> constexpr int ii_dcn_om_used = ii_dcn_om_front<O> + (sizeof(O) == 4 ? 9 : 5);
template <typename O> constexpr int ii_dcn_om_words = ii_dcn_om_used<O> | 1;

/* Elements from a row of 16-bit channels to the next in shared memory: 16 bytes more than a row, so
 * that 8 rows lie on different banks. */
template <int N> constexpr int ii_dcn_pitch = N + 8;

/* What this lane moves when a warp copies offsets and modulations: rows row, row + at_once, ... of
 * the warp's 32, of them word `word`, which holds element `first` and, in 16 bits, `second` of the
 * offsets or modulations; the same element twice where there is none for the second half. Elements
 * are moved one by one: those of v4 begin at odd places in every other group. */
template <typename O> struct ii_dcn_om_lane {
  static constexpr int at_once = ii_dcn_om_used<O> <= 16 ? 2 : 1, each = sizeof(O) == 4 ? 1 : 2;
  int row, word, first, second;
  bool used, modulation;
};
template <typename O> __device__ __forceinline__ ii_dcn_om_lane<O> ii_dcn_om_lane_of() {
  constexpr int each = ii_dcn_om_lane<O>::each, wide = 32 / ii_dcn_om_lane<O>::at_once;
  const int lane = threadIdx.x % 32;
  ii_dcn_om_lane<O> l;
  l.row = lane / wide;
  l.used = lane % wide < ii_dcn_om_used<O>;
  l.word = l.used ? lane % wide : 0;
  l.modulation = l.word >= ii_dcn_om_front<O>;
  const int n = l.modulation ? II_DCN_TAPS : 2 * II_DCN_TAPS;
  l.first = each * (l.word - (l.modulation ? ii_dcn_om_front<O> : 0));
  l.second = l.first + each - 1 < n ? l.first + each - 1 : l.first;
  return l;
}

/* Offsets and modulations of the lanes' outputs q to om[II_DCN_ROWS][ii_dcn_om_words]. offset,
 * mask: of the group in output 0 of the image. */
template <typename O>
__device__ __forceinline__ void ii_dcn_stage_om(const ii_dcn_shape<float> &s, const O *offset,
                                                const O *mask, int q, uint32_t *om) {
  typedef ii_dcn_om_lane<O> lane_type;
  const lane_type l = ii_dcn_om_lane_of<O>();
  const O *from = l.modulation ? mask : offset;
  const int64_t apart = l.modulation ? s.mask_row : s.offset_row;
  const O *first = from + l.first, *second = from + l.second;
  uint32_t *to = om + l.row * ii_dcn_om_words<O> + l.word;
#pragma unroll 8
  for (int r = 0; r < II_DCN_ROWS; r += lane_type::at_once) {
    const int64_t at = __shfl_sync(II_FULL_MASK, q, r + l.row) * apart;
    ii_vec<O, lane_type::each> v;
    v.v[0] = first[at];
    if constexpr (lane_type::each == 2) v.v[1] = second[at];
    if (l.used) *reinterpret_cast<ii_vec<O, lane_type::each> *>(to) = v;
    to += lane_type::at_once * ii_dcn_om_words<O>;
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
