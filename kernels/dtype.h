/* Element types of tensors, and the conversions between them. */
#ifndef II_DTYPE_H
#define II_DTYPE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { II_F32 = 0, II_F64, II_BF16, II_I32, II_DTYPE_COUNT } ii_dtype;

static inline size_t ii_dtype_size(ii_dtype t) {
  static const uint8_t size[II_DTYPE_COUNT] = {4, 8, 2, 4};
  return size[t];
}

static inline const char *ii_dtype_name(ii_dtype t) {
  static const char *const name[II_DTYPE_COUNT] = {"f32", "f64", "bf16", "i32"};
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

#endif
