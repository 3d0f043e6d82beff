/* Deformable convolution: the gradient of x, for any type, window and group.
 *   gx[p,d] = sum over outputs q, taps k of m a_c(q,k) gy[q,d] where corner c of the tap is pixel p
 *
 * Mapping: dcn_gx.h; one warp owns a tile of gx, of one image and one slice of up to 32 channels of
 * a group, in shared memory. It goes through the outputs near the tile, 32 at a time: lane i works
 * out tap k of output i, and those that touch the tile are listed in the order of the lanes. Then
 * the lanes, as channels, walk the list and add. Slices of 16 channels or fewer are given to two
 * teams of lanes, which own the even and the odd rows of the tile; of 8 or fewer to four, by rows
 * and columns; so every element has one owner, and the four corners of a tap are spread evenly. Far
 * taps follow in the order of the output tiles. The order of a sum depends on nothing else.
 *
 * Bytes: gx once, in its final type; gy and the offsets and modulations 2.25 times (tile 8 x 8,
 * halo 2, stride 1), of which all but the first come from the caches. 36 additions per element in
 * shared memory, 8 bytes each. Instructions and times: docs/kernels.md. Limits: as forward. */
#include "kernels/cuda/dcn_gx_sum.h"

namespace {

template <typename T, typename O>
__global__ void dcn_gx(const ii_dcn_shape<ii_real_of<T>> s, const ii_dcn_tiling p,
                       const ii_dcn_far far, int slices, int wide, const O *offset, const O *mask,
                       const T *gy, T *gx, bool accumulate) {
  typedef ii_real_of<T> R;
  II_SHARED(unsigned char, memory);
  unsigned b = blockIdx.x;
  const int slice = (int)(b % (unsigned)slices);
  b /= (unsigned)slices;
  const unsigned group = b / (unsigned)p.tiles;
  const int64_t C = (int64_t)s.G * s.D;
  ii_dcn_sum_work<O, T, R> w;
  w.t = ii_dcn_tile_of(s, p, group, (int)(b - group * (unsigned)p.tiles));
  w.wide = wide;
  w.left = s.D - slice * wide < wide ? s.D - slice * wide : wide;
  const int channel = w.t.g * s.D + slice * wide;
  w.offset = offset + w.t.n * s.Q * s.offset_row + w.t.g * s.offset_group;
  w.mask = mask + w.t.n * s.Q * s.mask_row + w.t.g * s.mask_group;
  w.gy = gy + w.t.n * s.Q * C + channel;
  w.list = reinterpret_cast<ii_dcn_listed<R> *>(memory);
  w.sum = reinterpret_cast<R *>(w.list + 32);
  for (int i = threadIdx.x; i < II_DCN_PIXELS * wide; i += 32) w.sum[i] = R(0);
  __syncwarp();

  ii_dcn_add_all(s, p, far, group, w);
  gx += w.t.n * s.pixels * s.x_row + channel;
  for (int i = threadIdx.x; i < II_DCN_PIXELS * wide; i += 32) {
    const int at = i / wide, d = i - at * wide, y = w.t.y + at / II_DCN_TILE,
              x = w.t.x + at % II_DCN_TILE;
    if (d >= w.left || y >= s.H || x >= s.W) continue;
    T *to = gx + ((int64_t)y * s.W + x) * s.x_row + d;
    *to = ii_down<T>(accumulate ? ii_up(*to) + w.sum[i] : w.sum[i]);
  }
}

template <typename T, typename O>
int run(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  typedef ii_real_of<T> R;
  ii_dcn_shape<R> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  const int wide = ii_dcn_lanes(s.D), slices = (int)ii_ceil_div(s.D, wide);
  const int64_t blocks = a->N * t.tiles * a->G * slices;
  if (blocks > INT_MAX) return ii_cuda_error(k, "dcn: too many pixels; use smaller batches");
  const size_t shared = 32 * sizeof(ii_dcn_listed<R>) + (size_t)(II_DCN_PIXELS * wide) * sizeof(R);
  II_LAUNCH(k, (dcn_gx<T, O>), (unsigned)blocks, 32, shared, s, t, far, slices, wide,
            (const O *)a->offset, (const O *)a->mask, (const T *)a->gy, (T *)a->gx, a->acc_gx);
  return 0;
}

template <typename T>
int run_om(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  II_DCN_WITH_OM(ii_real_of<T>, a->om_dtype, O, return (run<T, O>(k, a, t, far)));
}

} // namespace

int ii_cuda_dcn_gx(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                   const ii_dcn_far &far) {
  II_WITH_TYPE(k, a->x_dtype, T, return run_om<T>(k, a, t, far));
}
