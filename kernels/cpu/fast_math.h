/* exp, the normal distribution and the logistic function for inner loops. The float versions are
 * branch-free polynomials, so that loops over them vectorise; the double versions are libm's.
 * All pass NaN through. The coefficients are our own minimax fits (weighted least squares, Lawson's
 * iteration; Mills' ratio against double). Measured errors, relative unless said, against double
 * over a dense sample of all floats: exp 8.5e-8; sigmoid 2.0e-7; gelu 4.0e-7 for x > -5, 5.0e-7 for
 * x > -12, and at most 1.4e-7 |x|; slope of gelu 1.4e-7 absolute, 6.4e-7 relative for -12 < x < -1.
 */
#ifndef II_FAST_MATH_H
#define II_FAST_MATH_H
#include <tgmath.h>
#include "kernels/cpu/cpu.h"

#define II_FAST static inline __attribute__((always_inline))

#define II_INV_SQRT_2PI R(0.39894228040143267794)

#ifdef II_REAL_F64

II_FAST real ii_exp(real x) {
  return exp(x);
}

/* See below. */
II_FAST real ii_normal_tail(real x, real *q, real *phi) {
  real a = fabs(x);
  a = R(37.0) < a ? R(37.0) : a;
  *phi = II_INV_SQRT_2PI * exp(-0.5 * a * a);
  *q = 0.5 * erfc(a * 0.70710678118654752440);
  return a;
}

#else

/* exp(x + low) for -87.3 <= x <= 88, |low| < 0.1: 2^n exp(r) with r in +-ln(2)/2 and
 * exp(r) = 1 + r + r^2 Q(r). */
II_FAST float ii_exp_sum(float x, float low) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: the bits of a sum with it end in the integer */
  union {
    float f;
    uint32_t u;
  } n = {x * 1.44269504f + magic}, scale;
  float k = n.f - magic;
  float r = x - k * 0.693359375f; /* exact: the constant has 10 bits */
  r = r + k * 2.12194440e-4f + low;
  float q = 1.3809034e-3f;
  q = q * r + 8.3714050e-3f;
  q = q * r + 4.1668657e-2f;
  q = q * r + 1.6666497e-1f;
  q = q * r + 4.9999990e-1f;
  scale.u = (n.u << 23) + 0x3f800000u;
  return (q * (r * r) + r + 1.0f) * scale.f;
}

/* exp(x), x <= 88. Below -87.3, where results would be denormal, 0. */
II_FAST float ii_exp(float x) {
  float e = ii_exp_sum(-87.3f > x ? -87.3f : x, 0.0f);
  return x < -87.3f ? 0.0f : e;
}

/* exp(-a^2/2), 0 <= a <= 12.9, with relative precision: the square is formed in two parts, because
 * rounding it would cost a^2/2 ulp. With fused multiply-adds 2^n 2^f, n + f = -a^2 log2(e)/2, where
 * the products are exact. */
II_FAST float ii_exp_half_square(float a) {
#ifdef __FP_FAST_FMAF
  const float magic = 12582912.0f, log2e_2 = 0.721347511f; /* log2(e)/2, and 9.6e-9 less */
  float p = a * a, low = fmaf(a, a, -p);
  union {
    float f;
    uint32_t u;
  } n = {fmaf(p, -log2e_2, magic)}, e;
  float f = fmaf(p, -log2e_2, magic - n.f);
  f += fmaf(low, -log2e_2, p * -9.62981495e-9f);
  float f2 = f * f, top = 1.53533622e-4f * f2 + (1.33988747e-3f * f + 9.61843736e-3f);
  e.f = (top * f2 + (5.55033247e-2f * f + 2.40226479e-1f)) * f2 + (6.93147203e-1f * f + 1.0f);
  e.u += n.u << 23;
  return e.f;
#else
  union {
    float f;
    uint32_t u;
  } s = {a};
  s.u = (s.u + 0x800u) & 0xfffff000u; /* 12 bits: its square is exact */
  return ii_exp_sum(-0.5f * (s.f * s.f), -0.5f * ((a + s.f) * (a - s.f)));
#endif
}

/* Returns a = |x|, at most 12.9 (the tails beyond weigh nothing, and denormal numbers are slow);
 * phi(a), the normal density, and q = Phi(-a), the lower tail, both with relative precision.
 * q = exp(-a^2/2) M(a), with Mills' ratio M as a quotient of polynomials whose coefficients are all
 * positive: rounding errors do not grow. All is written for short chains of dependent operations,
 * which bind these loops more than their number does. */
II_FAST float ii_normal_tail(float x, float *q, float *phi) {
  float a = fabsf(x);
  a = 12.9f < a ? 12.9f : a;
  float e = ii_exp_half_square(a);
  float m = 0.0039855511f;
  m = m * a + 0.0397489364f;
  m = m * a + 0.180605459f;
  m = m * a + 0.434733369f;
  m = m * a + 0.500000002f;
  float d = 0.00999014246f;
  d = d * a + 0.0996435536f;
  d = d * a + 0.46252963f;
  d = d * a + 1.19156113f;
  d = d * a + 1.66735164f;
  d = d * a + 1.0f;
  *q = e * (m / d);
  *phi = e * II_INV_SQRT_2PI;
  return a;
}

#endif

/* 1/(1 + exp(-x)), relative precision on both sides. */
II_FAST real ii_sigmoid(real x) {
  real e = ii_exp(-fabs(x)), d = R(1.0) / (R(1.0) + e);
  return x < R(0.0) ? e * d : d;
}

/* GELU: x Phi(x) = max(x, 0) - |x| Phi(-|x|), which cancels nowhere. */
II_FAST real ii_gelu(real x) {
  real q, phi, a = ii_normal_tail(x, &q, &phi);
  return (x > R(0.0) ? x : R(0.0)) - a * q;
}

/* Its derivative, Phi(x) + x phi(x). */
II_FAST real ii_gelu_slope(real x) {
  real q, phi, a = ii_normal_tail(x, &q, &phi);
  real d = q - a * phi;
  return x < R(0.0) ? d : R(1.0) - d;
}

#endif
