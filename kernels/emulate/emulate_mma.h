/* Products of matrices by a warp (namespace nvcuda::wmma of mma.h) for emulate.h: 16 x 16 x 16, of
 * 16-bit types with sums in fp32. Lane l owns row l/2 and columns 8*(l%2) ... +7 of an accumulator
 * and keeps the numbers of the factors that those need; on a GPU it is another, unspecified,
 * division, so a kernel may treat all elements of an accumulator alike and nothing else.
 * Sums are as inexact as on the least exact GPU we support, an A100: 8 exact products and the
 * accumulator are added at a time, each cut off, towards zero, one bit below the last one of the
 * largest of them, and so is their sum (Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of
 * NVIDIA tensor cores, 2021). Later GPUs add more at a time and keep more bits.
 * All lanes take part in every operation, which is checked; like a shuffle it orders no memory. */
#ifndef II_EMULATE_MMA_H
#define II_EMULATE_MMA_H

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void> struct fragment;
template <typename T, typename Layout> struct fragment<matrix_a, 16, 16, 16, T, Layout> {
  float own[16];
};
template <typename T, typename Layout> struct fragment<matrix_b, 16, 16, 16, T, Layout> {
  float own[16][8];
};
template <> struct fragment<accumulator, 16, 16, 16, float, void> {
  enum { num_elements = 8 };
  float x[8];
};
typedef fragment<accumulator, 16, 16, 16, float> ii_emu_sums;

static inline float ii_emu_widen(__half v) {
  return __half2float(v);
}
static inline float ii_emu_widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

/* All lanes are here, and the address and the distance of rows are what the hardware demands. */
template <typename T>
static inline void ii_emu_matrix(const T *p, unsigned ldm, const char *file, int line) {
  ii_emu_warp(II_EMU_WARP_BALLOT, 0xffffffffu, 0, 0, file, line);
  if (reinterpret_cast<uintptr_t>(p) % 32 || ldm * sizeof(T) % 16) ii_emu_trap(file, line);
}

template <typename T, typename Layout>
static inline void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, Layout> &a, const T *p,
                                    unsigned ldm, II_EMU_SITE) {
  ii_emu_matrix(p, ldm, II_EMU_HERE);
  const size_t row = (size_t)ii_emu_lane() / 2;
  ii_emu_fragment(p, 16 * sizeof *p, ldm * sizeof *p, false);
  for (size_t k = 0; k < 16; k++)
    a.own[k] =
        ii_emu_widen(std::is_same<Layout, row_major>() ? p[row * ldm + k] : p[k * ldm + row]);
  ii_emu_fragment_done();
}
template <typename T, typename Layout>
static inline void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, Layout> &b, const T *p,
                                    unsigned ldm, II_EMU_SITE) {
  ii_emu_matrix(p, ldm, II_EMU_HERE);
  ii_emu_fragment(p, 16 * sizeof *p, ldm * sizeof *p, false);
  for (size_t k = 0; k < 16; k++)
    for (size_t i = 0; i < 8; i++) {
      const size_t column = (size_t)ii_emu_lane() % 2 * 8 + i;
      b.own[k][i] = ii_emu_widen(std::is_same<Layout, row_major>() ? p[k * ldm + column]
                                                                   : p[column * ldm + k]);
    }
  ii_emu_fragment_done();
}
/* Biased exponent of a double. */
static inline int ii_emu_exponent(double v) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof v);
  return (int)(bits >> 52 & 0x7ff);
}
/* 2^e as a double, |e| < 1000. */
static inline double ii_emu_power(int e) {
  const uint64_t bits = (uint64_t)(e + 1023) << 52;
  double v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
/* c + a[0] b[0][i] + ... + a[7] b[7][i] as a tensor core adds them. */
static inline float ii_emu_tensor_sum(float c, const float *a, const float (*b)[8], int i) {
  double part[9] = {c}, sum = 0;
  int top = ii_emu_exponent(c);
  for (int k = 0; k < 8; k++) {
    part[k + 1] = (double)a[k] * (double)b[k][i];
    top = std::max(top, ii_emu_exponent(part[k + 1]));
  }
  if (top < 1023 - 400) return 0.0f; /* zeros */
  if (top > 1023 + 400) {            /* not finite */
    for (const double p : part) sum += p;
    return (float)sum;
  }
  const double one = ii_emu_power(top - 1023 - 24), many = ii_emu_power(24 + 1023 - top);
  for (const double p : part) sum += (double)(int64_t)(p * many);
  sum *= one;
  const float near = (float)sum;
  return fabs((double)near) > fabs(sum) ? nextafterf(near, 0.0f) : near;
}
static inline void fill_fragment(ii_emu_sums &c, float v) {
  for (int i = 0; i < 8; i++) c.x[i] = v;
}
template <typename T, typename La, typename Lb>
static inline void mma_sync(ii_emu_sums &d, const fragment<matrix_a, 16, 16, 16, T, La> &a,
                            const fragment<matrix_b, 16, 16, 16, T, Lb> &b, const ii_emu_sums &c,
                            II_EMU_SITE) {
  ii_emu_warp(II_EMU_WARP_BALLOT, 0xffffffffu, 0, 0, II_EMU_HERE);
  for (int i = 0; i < 8; i++) {
    float sum = c.x[i];
    for (int k = 0; k < 16; k += 8) sum = ii_emu_tensor_sum(sum, a.own + k, b.own + k, i);
    d.x[i] = sum;
  }
}
static inline void store_matrix_sync(float *p, const ii_emu_sums &c, unsigned ldm, layout_t layout,
                                     II_EMU_SITE) {
  ii_emu_matrix(p, ldm, II_EMU_HERE);
  const size_t row = (size_t)ii_emu_lane() / 2, first = (size_t)ii_emu_lane() % 2 * 8;
  ii_emu_fragment(p, 16 * sizeof *p, ldm * sizeof *p, true);
  for (size_t i = 0; i < 8; i++)
    p[layout == mem_row_major ? row * ldm + first + i : (first + i) * ldm + row] = c.x[i];
  ii_emu_fragment_done();
}

} // namespace wmma
} // namespace nvcuda

#endif
