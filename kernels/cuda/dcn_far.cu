/* Deformable convolution, gradient of x: the taps that are far (dcn_gx.h).
 *
 * Mapping: one warp per tile of 8 x 8 outputs and group; a lane has two outputs and works out where
 * their taps sample. Far ones are listed in the order (half of the tile, tap, output). The largest
 * distance is an integer maximum by atomics, which is the same in any order; it is issued by tiles
 * with far taps alone.
 * Bytes: offsets once (29 MB of 64 x 56 x 56 x 128, G = 4, in 16 bits), 20 per output tile and
 * group, and 8 per far tap.
 * Limits: as forward. */
#include "kernels/cuda/dcn_gx.h"

namespace {

/* Tap k of output (ho,wo): true, with its place, when a pixel it touches is in a tile that the
 * output is not near to. */
template <typename R>
__device__ __forceinline__ bool is_far(const ii_dcn_shape<R> &s, const ii_dcn_tiling &t, int ho,
                                       int wo, int k, R dx, R dy, ii_dcn_place<R> *p) {
  *p = ii_dcn_locate(s, s.kh, ho, wo, k, dx, dy);
  if (!ii_dcn_inside(p->at)) return false;
  const int home_y = ho * s.stride_h + s.first_h, home_x = wo * s.stride_w + s.first_w;
  bool near = true;
#pragma unroll
  for (int c = 0; c < 2; c++) {
    const int y = p->y0 + c, x = p->x0 + c;
    if (y >= 0 && y < s.H) near &= ii_dcn_near(home_y, y / II_DCN_TILE * II_DCN_TILE, t.halo_h);
    if (x >= 0 && x < s.W) near &= ii_dcn_near(home_x, x / II_DCN_TILE * II_DCN_TILE, t.halo_w);
  }
  return !near;
}

__device__ __forceinline__ int distance(int home, int pixel) {
  const int a = home < pixel ? pixel - home : home - pixel;
  const int b = home < pixel + 1 ? pixel + 1 - home : home - pixel - 1;
  return a > b ? a : b;
}

template <typename R, typename O>
__global__ void dcn_far(const ii_dcn_shape<R> s, const ii_dcn_tiling t, const O *offset,
                        const ii_dcn_far far) {
  const int lane = threadIdx.x;
  const unsigned group = blockIdx.x / (unsigned)t.sources, tile = blockIdx.x % (unsigned)t.sources;
  const unsigned n = group / (unsigned)s.G, g = group - n * (unsigned)s.G;
  const int Ho = s.Q / s.Wo;
  int4 box = make_int4(INT_MAX, 0, INT_MAX, 0); /* what this lane's far taps touch */
  int count = 0, reach = 0;
  for (int half = 0; half < 2; half++) {
    const int ho =
        (int)(tile / (unsigned)t.sources_w) * II_DCN_TILE + half * 4 + lane / II_DCN_TILE;
    const int wo = (int)(tile % (unsigned)t.sources_w) * II_DCN_TILE + lane % II_DCN_TILE;
    const bool alive = ho < Ho && wo < s.Wo;
    const int q = alive ? ho * s.Wo + wo : 0;
    const O *from = offset + ((int64_t)n * s.Q + q) * s.offset_row + g * s.offset_group;
    for (int k = 0; k < s.K; k++) {
      ii_dcn_place<R> p;
      const R dx = ii_up(from[2 * k]), dy = ii_up(from[2 * k + 1]);
      const bool mine = alive && is_far(s, t, ho, wo, k, dx, dy, &p);
      const unsigned all = __ballot_sync(II_FULL_MASK, mine);
      if (mine) {
        const int at = count + __popc(all & ((1u << lane) - 1u));
        far.taps[(int64_t)blockIdx.x * t.list + at] =
            ii_dcn_pack_far(p.y0, p.x0, k * II_DCN_PIXELS + half * 32 + lane);
        box.x = box.x < p.y0 ? box.x : p.y0;
        box.y = box.y > p.y0 + 2 ? box.y : p.y0 + 2;
        box.z = box.z < p.x0 ? box.z : p.x0;
        box.w = box.w > p.x0 + 2 ? box.w : p.x0 + 2;
        const int v = distance(ho * s.stride_h + s.first_h, p.y0);
        const int h = distance(wo * s.stride_w + s.first_w, p.x0);
        reach = max(reach, max(v, h));
      }
      count += __popc(all);
    }
  }
  if (count > 0) {
    box.x = __reduce_min_sync(II_FULL_MASK, box.x);
    box.y = __reduce_max_sync(II_FULL_MASK, box.y);
    box.z = __reduce_min_sync(II_FULL_MASK, box.z);
    box.w = __reduce_max_sync(II_FULL_MASK, box.w);
    reach = __reduce_max_sync(II_FULL_MASK, reach);
    if (lane == 0) atomicMax(far.reach + group, reach);
  }
  if (lane == 0) {
    far.box[blockIdx.x] = box;
    far.count[blockIdx.x] = count;
  }
}

template <typename R>
int find(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  ii_dcn_shape<R> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  const int64_t blocks = a->N * a->G * t.sources;
  if (blocks > INT_MAX) return ii_cuda_error(k, "dcn: too many pixels; use smaller batches");
  II_DCN_WITH_OM(R, a->om_dtype, O, {
    II_LAUNCH(k, (dcn_far<R, O>), (unsigned)blocks, 32, 0, s, t, (const O *)a->offset, far);
    return 0;
  });
}

} // namespace

int ii_cuda_dcn_find_far(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, void *memory,
                         ii_dcn_far *far) {
  const int64_t groups = a->N * a->G, all = groups * t.sources;
  far->taps = (ii_dcn_far_tap *)memory;
  far->box = (int4 *)(far->taps + all * t.list);
  far->count = (int *)(far->box + all);
  far->reach = far->count + all;
  II_CUDA_TRY(k, cudaMemsetAsync(far->reach, 0, (size_t)groups * sizeof(int), ii_cuda_stream(k)));
  return a->real == II_F64 ? find<double>(k, a, t, *far) : find<float>(k, a, t, *far);
}
