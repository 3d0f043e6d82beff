/* Inside the CPU engine. Every file of this folder is compiled twice: with `real` = float, where
 * activations may also be stored as bf16, and with `real` = double, where all is double.
 * A kernel is `int II_FN(name)(ii_kctx *k, const ii_<op>_args *a)`. */
#ifndef II_CPU_H
#define II_CPU_H
#include "kernels/cpu_engine.h"
#include "kernels/kernels.h"

#ifdef II_REAL_F64
typedef double real;
#define II_FN(name)   ii_cpu_##name##_f64
#define II_REAL_DTYPE II_F64
#define R(x)          x
#else
typedef float real;
#define II_FN(name)   ii_cpu_##name##_f32
#define II_REAL_DTYPE II_F32
#define R(x)          x##f /* a literal of type real */
#endif

#define II_KERNEL(name, args) int II_FN(name)(ii_kctx * k, const args *a);
#include "kernels/kernels.def"
#undef II_KERNEL

/* Rows and pieces of activations are worked on as `real`. A tensor stored as `real` is used in
 * place; bf16 goes through a small buffer of the caller that stays in the first-level cache. */

/* The n elements at p[i...]: in place, or converted into buf. */
static inline const real *ii_row_in(ii_dtype t, const void *p, int64_t i, int64_t n, real *buf) {
  if (t == II_REAL_DTYPE) return (const real *)p + i;
  const uint16_t *h = (const uint16_t *)p + i;
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    union {
      uint32_t u;
      float f;
    } v = {(uint32_t)h[j] << 16};
    buf[j] = v.f;
  }
  return buf;
}

/* Where to compute n results for p[i...]: in place, or buf (then call ii_row_out). */
static inline real *ii_row_target(ii_dtype t, void *p, int64_t i, real *buf) {
  return t == II_REAL_DTYPE ? (real *)p + i : buf;
}

/* Stores n results that were computed in what ii_row_target returned. */
static inline void ii_row_out(ii_dtype t, void *p, int64_t i, int64_t n, const real *buf) {
  if (t == II_REAL_DTYPE) return;
  uint16_t *h = (uint16_t *)p + i;
#pragma omp simd
  for (int64_t j = 0; j < n; j++) {
    union {
      float f;
      uint32_t u;
    } v = {(float)buf[j]};
    uint32_t rounded = (v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16;
    h[j] = (uint16_t)((v.u & 0x7fffffffu) > 0x7f800000u ? (v.u >> 16) | 0x40u : rounded);
  }
}

#endif
