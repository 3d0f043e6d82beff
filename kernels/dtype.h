/* Element types of tensors, and the conversions between them. */
#ifndef II_DTYPE_H
#define II_DTYPE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* II_F16: CUDA only. */
typedef enum { II_F32 = 0, II_F64, II_BF16, II_F16, II_I32, II_DTYPE_COUNT } ii_dtype;

static inline size_t ii_dtype_size(ii_dtype t) {
  static const uint8_t size[II_DTYPE_COUNT] = {4, 8, 2, 2, 4};
  return size[t];
}

static inline const char *ii_dtype_name(ii_dtype t) {
  static const char *const name[II_DTYPE_COUNT] = {"f32", "f64", "bf16", "f16", "i32"};
  return name[t];
}

/* The type that parameters, statistics and accumulators have beside activations of type t. */
static inline ii_dtype ii_dtype_real(ii_dtype t) {
  return t == II_F64 ? II_F64 : II_F32;
}

static inline float ii_bf16_to_f32(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

/* Round to nearest, ties to even; a NaN stays a (quiet) NaN. */
static inline uint16_t ii_f32_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded >> 16);
}

/* IEEE binary16, exactly. */
static inline float ii_f16_to_f32(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u;
  uint32_t u = sign | ((uint32_t)(h & 0x3ffu) << 13);
  float f;
  if (exponent == 31)
    u |= 0x7f800000u;
  else if (exponent)
    u |= (exponent + 112u) << 23;
  memcpy(&f, &u, 4);
  if (exponent == 0) { /* zero or subnormal: the fraction counts units of 2^-24 */
    f = (float)(h & 0x3ffu) * 0x1p-24f;
    return sign ? -f : f;
  }
  return f;
}

/* Round to nearest, ties to even; too large becomes infinite; a NaN stays a (quiet) NaN. */
static inline uint16_t ii_f32_to_f16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
  if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more */
  if (u < 0x38800000u) { /* subnormal: adding 0.5 puts the units of 2^-24 into the last bits */
    float a;
    memcpy(&a, &u, 4);
    a += 0.5f;
    memcpy(&u, &a, 4);
    return (uint16_t)(sign | (u - 0x3f000000u));
  }
  u += 0xfffu + ((u >> 13) & 1u);
  return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

#endif
