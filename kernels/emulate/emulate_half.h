/* The functions of cuda_fp16.h and cuda_bf16.h that NVIDIA offers to device code alone, for
 * emulate.h: computed in float (fma in double, which holds the product exactly) and rounded once.
 */
#ifndef II_EMULATE_HALF_H
#define II_EMULATE_HALF_H

static inline __half ii_emu_round(double v, __half) {
  return __double2half(v);
}
static inline __nv_bfloat16 ii_emu_round(double v, __nv_bfloat16) {
  return __double2bfloat16(v);
}
static inline double ii_emu_wide(__half v) {
  return (double)__half2float(v);
}
static inline double ii_emu_wide(__nv_bfloat16 v) {
  return (double)__bfloat162float(v);
}

#define II_EMU_UNARY(T, T2, name, name2, expression)                                               \
  static inline T name(T v) {                                                                      \
    const double x = ii_emu_wide(v);                                                               \
    return ii_emu_round(expression, v);                                                            \
  }                                                                                                \
  static inline T2 name2(T2 v) {                                                                   \
    return T2(name(v.x), name(v.y));                                                               \
  }
#define II_EMU_FUNCTIONS(T, T2)                                                                    \
  II_EMU_UNARY(T, T2, hexp, h2exp, exp(x))                                                         \
  II_EMU_UNARY(T, T2, hexp2, h2exp2, exp2(x))                                                      \
  II_EMU_UNARY(T, T2, hexp10, h2exp10, exp10(x))                                                   \
  II_EMU_UNARY(T, T2, hlog, h2log, log(x))                                                         \
  II_EMU_UNARY(T, T2, hlog2, h2log2, log2(x))                                                      \
  II_EMU_UNARY(T, T2, hlog10, h2log10, log10(x))                                                   \
  II_EMU_UNARY(T, T2, hsqrt, h2sqrt, sqrt(x))                                                      \
  II_EMU_UNARY(T, T2, hrsqrt, h2rsqrt, 1.0 / sqrt(x))                                              \
  II_EMU_UNARY(T, T2, hrcp, h2rcp, 1.0 / x)                                                        \
  II_EMU_UNARY(T, T2, hsin, h2sin, sin(x))                                                         \
  II_EMU_UNARY(T, T2, hcos, h2cos, cos(x))                                                         \
  II_EMU_UNARY(T, T2, htanh, h2tanh, tanh(x))                                                      \
  II_EMU_UNARY(T, T2, hfloor, h2floor, floor(x))                                                   \
  II_EMU_UNARY(T, T2, hceil, h2ceil, ceil(x))                                                      \
  II_EMU_UNARY(T, T2, htrunc, h2trunc, trunc(x))                                                   \
  II_EMU_UNARY(T, T2, hrint, h2rint, rint(x))                                                      \
  static inline T __hfma(T a, T b, T c) {                                                          \
    return ii_emu_round(fma(ii_emu_wide(a), ii_emu_wide(b), ii_emu_wide(c)), a);                   \
  }                                                                                                \
  static inline T __hfma_sat(T a, T b, T c) {                                                      \
    const double v = fma(ii_emu_wide(a), ii_emu_wide(b), ii_emu_wide(c));                          \
    return ii_emu_round(v > 0 ? (v < 1 ? v : 1.0) : 0.0, a);                                       \
  }                                                                                                \
  static inline T __hfma_relu(T a, T b, T c) {                                                     \
    const double v = fma(ii_emu_wide(a), ii_emu_wide(b), ii_emu_wide(c));                          \
    return ii_emu_round(v > 0 || v != v ? v : 0.0, a);                                             \
  }                                                                                                \
  static inline T2 __hfma2(T2 a, T2 b, T2 c) {                                                     \
    return T2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));                                       \
  }                                                                                                \
  static inline T2 __hfma2_sat(T2 a, T2 b, T2 c) {                                                 \
    return T2(__hfma_sat(a.x, b.x, c.x), __hfma_sat(a.y, b.y, c.y));                               \
  }                                                                                                \
  static inline T2 __hfma2_relu(T2 a, T2 b, T2 c) {                                                \
    return T2(__hfma_relu(a.x, b.x, c.x), __hfma_relu(a.y, b.y, c.y));                             \
  }
II_EMU_FUNCTIONS(__half, __half2)
II_EMU_FUNCTIONS(__nv_bfloat16, __nv_bfloat162)
#undef II_EMU_FUNCTIONS
#undef II_EMU_UNARY

static inline int __half2int_rn(__half v) {
  return __float2int_rn(__half2float(v));
}
static inline int __half2int_ru(__half v) {
  return __float2int_ru(__half2float(v));
}
static inline int __half2int_rd(__half v) {
  return __float2int_rd(__half2float(v));
}
static inline int __bfloat162int_rn(__nv_bfloat16 v) {
  return __float2int_rn(__bfloat162float(v));
}

#endif
