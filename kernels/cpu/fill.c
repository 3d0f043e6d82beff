/* y[i] = value, for any type that tensors of the CPU have. */
#include "kernels/cpu/pieces.h"

#define FILL(type, v)                                                                              \
  do {                                                                                             \
    type value = (v), *y = a->y;                                                                   \
    _Pragma(                                                                                       \
        "omp parallel for simd schedule(static) num_threads(ii_team(k, a->n))") for (int64_t i =   \
                                                                                         0;        \
                                                                                     i < a->n;     \
                                                                                     i++) y[i] =   \
        value;                                                                                     \
    return 0;                                                                                      \
  } while (0)

int II_FN(fill)(ii_kctx *k, const ii_fill_args *a) {
  switch (a->y_dtype) {
  case II_F32:
    FILL(float, (float)a->value);
  case II_F64:
    FILL(double, a->value);
  case II_BF16:
    FILL(uint16_t, ii_f32_to_bf16((float)a->value));
  case II_I32:
    FILL(int32_t, (int32_t)a->value);
  default:
    return ii_kernel_error(k, "fill: the CPU engine has no tensors of this type; use f32, "
                              "f64, bf16 or i32");
  }
}
