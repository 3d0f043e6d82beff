/* y[r][i] = value, for any type that tensors of the CPU have. */
#include "kernels/cpu/pieces.h"

/* One row is cut into pieces like any other work; rows are short, and shared out whole. */
#define FILL(type)                                                                                 \
  static void fill_##type(const ii_kctx *k, const ii_fill_args *a, type value) {                   \
    const int team = ii_team(k, a->rows * a->n);                                                   \
    type *y = a->y;                                                                                \
    _Pragma("omp parallel num_threads(team)") {                                                    \
      if (a->rows == 1) {                                                                          \
        _Pragma("omp for simd schedule(static)") for (int64_t i = 0; i < a->n; i++) y[i] = value;  \
      } else {                                                                                     \
        _Pragma("omp for schedule(static)") for (int64_t r = 0; r < a->rows;                       \
                                                 r++) for (int64_t i = 0; i < a->n; i++)           \
            y[r * a->y_stride + i] = value;                                                        \
      }                                                                                            \
    }                                                                                              \
  }
FILL(float)
FILL(double)
FILL(uint16_t)
FILL(int32_t)

int II_FN(fill)(ii_kctx *k, const ii_fill_args *a) {
  switch (a->y_dtype) {
  case II_F32:
    fill_float(k, a, (float)a->value);
    return 0;
  case II_F64:
    fill_double(k, a, a->value);
    return 0;
  case II_BF16:
    fill_uint16_t(k, a, ii_f32_to_bf16((float)a->value));
    return 0;
  case II_I32:
    fill_int32_t(k, a, (int32_t)a->value);
    return 0;
  default:
    return ii_kernel_error(k, "fill: the CPU engine has no tensors of this type; use f32, "
                              "f64, bf16 or i32");
  }
}
