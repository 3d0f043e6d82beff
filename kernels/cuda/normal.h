/* The normal distribution and the logistic function in kernels: GELU, SiLU, sigmoid and their
 * slopes. The float versions are as exact as the CPU engine's (kernels/cpu/fast_math.h, whose fit
 * of Mills' ratio they share); no cancellation on either side, NaN passes through, infinities go to
 * the limits. Double: the library's functions. */
#ifndef II_NORMAL_H
#define II_NORMAL_H
#include "kernels/cuda/gpu.h"

/* exp(-a^2/2), 0 <= a <= 12.9: the exponent's rounding errors, which a^2 would multiply, are kept
 * and put right after the power of two. */
static __device__ __forceinline__ float ii_exp_half_square(float a) {
  const float half_log2e = 0.721347511f; /* log2(e)/2 less 9.63e-9 */
  const float p = a * a, p_low = fmaf(a, a, -p);
  const float t = p * -half_log2e;
  float low = fmaf(p, -half_log2e, -t);
  low = fmaf(p_low, -half_log2e, fmaf(p, -9.62981495e-9f, low));
  const float e = exp2f(t);
  return fmaf(e, low * 0.693147181f, e);
}

/* Returns a = |x|, at most 12.9 (the tails beyond weigh nothing); *phi, the density at a; *q =
 * Phi(-a) = exp(-a^2/2) M(a), with Mills' ratio M as a quotient of positive terms. */
static __device__ __forceinline__ float ii_normal_tail(float x, float *q, float *phi) {
  float a = fabsf(x);
  a = 12.9f < a ? 12.9f : a; /* not fminf, which would drop a NaN */
  const float e = ii_exp_half_square(a);
  float m = 0.0039855511f;
  m = fmaf(m, a, 0.0397489364f);
  m = fmaf(m, a, 0.180605459f);
  m = fmaf(m, a, 0.434733369f);
  m = fmaf(m, a, 0.500000002f);
  float d = 0.00999014246f;
  d = fmaf(d, a, 0.0996435536f);
  d = fmaf(d, a, 0.46252963f);
  d = fmaf(d, a, 1.19156113f);
  d = fmaf(d, a, 1.66735164f);
  d = fmaf(d, a, 1.0f);
  *q = e * __fdividef(m, d);
  *phi = e * 0.398942280f;
  return a;
}
static __device__ __forceinline__ double ii_normal_tail(double x, double *q, double *phi) {
  double a = fabs(x);
  a = 37.0 < a ? 37.0 : a;
  *q = 0.5 * erfc(a * 0.70710678118654752440);
  *phi = 0.39894228040143267794 * exp(-0.5 * a * a);
  return a;
}

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|). */
template <typename R> __device__ __forceinline__ R ii_gelu(R x) {
  R q, phi;
  const R a = ii_normal_tail(x, &q, &phi);
  return (x > R(0) ? x : R(0)) - a * q;
}

/* Its derivative, Phi(x) + x phi(x). */
template <typename R> __device__ __forceinline__ R ii_gelu_slope(R x) {
  R q, phi;
  const R a = ii_normal_tail(x, &q, &phi), d = q - a * phi;
  return x < R(0) ? d : R(1) - d;
}

/* 1/(1 + exp(-x)), with relative precision on both sides. */
static __device__ __forceinline__ float ii_sigmoid(float x) {
  const float e = expf(-fabsf(x)), d = __fdividef(1.0f, 1.0f + e);
  return x < 0.0f ? e * d : d;
}
static __device__ __forceinline__ double ii_sigmoid(double x) {
  const double e = exp(-fabs(x)), d = 1.0 / (1.0 + e);
  return x < 0.0 ? e * d : d;
}

#endif
