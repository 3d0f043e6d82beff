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

/* For simdlen: gcc takes 256-bit vectors, even where wider ones exist, unless told. */
enum { II_LANES = 64 / sizeof(real) };

#define II_KERNEL(name, args) int II_FN(name)(ii_kctx * k, const args *a);
#include "kernels/kernels.def"
#undef II_KERNEL

/* gcc converts to and from 16 bits in halves of a vector; these loops are written out. */
#if defined(__AVX512F__) && !defined(II_REAL_F64)
#define II_AVX512
#include <immintrin.h>

/* 16 floats, rounded as in ii_row_out. */
static inline __m256i ii_bf16_round(__m512i v) {
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(v, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(0x7fff)), odd);
  __m512 f = _mm512_castsi512_ps(v);
  __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, nan, v, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}
#endif

/* Rows and pieces of activations are worked on as `real`. A tensor stored as `real` is used in
 * place; bf16 goes through a small buffer of the caller that stays in the first-level cache. */

static inline float ii_bf16_value(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } v = {(uint32_t)h << 16};
  return v.f;
}

/* The n elements at p[i...]: in place, or converted into buf. */
static inline const real *ii_row_in(ii_dtype t, const void *p, int64_t i, int64_t n, real *buf) {
  if (t == II_REAL_DTYPE) return (const real *)p + i;
  const uint16_t *h = (const uint16_t *)p + i;
  int64_t first = 0;
#ifdef II_AVX512
  for (; first + 16 <= n; first += 16) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(h + first)));
    _mm512_storeu_si512(buf + first, _mm512_slli_epi32(wide, 16));
  }
#endif
#pragma omp simd
  for (int64_t j = first; j < n; j++) buf[j] = ii_bf16_value(h[j]);
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
  int64_t first = 0;
#ifdef II_AVX512
  for (; first + 16 <= n; first += 16)
    _mm256_storeu_si256((void *)(h + first), ii_bf16_round(_mm512_loadu_si512(buf + first)));
#endif
#pragma omp simd
  for (int64_t j = first; j < n; j++) {
    union {
      float f;
      uint32_t u;
    } v = {(float)buf[j]};
    uint32_t rounded = (v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16;
    h[j] = (uint16_t)((v.u & 0x7fffffffu) > 0x7f800000u ? (v.u >> 16) | 0x40u : rounded);
  }
}

#endif
