/* Pixel shuffle: channel blocks of r*r become r x r pixels. */
#include "kernels/cpu/pieces.h"

static real load(ii_dtype t, const void *p, int64_t i) {
  return t == II_REAL_DTYPE ? ((const real *)p)[i] : (real)ii_bf16_to_f32(((const uint16_t *)p)[i]);
}

static void store(ii_dtype t, void *p, int64_t i, real v) {
  if (t == II_REAL_DTYPE)
    ((real *)p)[i] = v;
  else
    ((uint16_t *)p)[i] = ii_f32_to_bf16((float)v);
}

static int64_t y_count(const ii_pixel_shuffle_args *a) {
  return a->N * a->H * a->W * a->r * a->r * a->C;
}

/* Places of one element: of channel c of output pixel (row, col), row counted over all images. */
static int64_t y_index(const ii_pixel_shuffle_args *a, int64_t row, int64_t col, int64_t c) {
  return (row * a->W * a->r + col) * a->C + c;
}

static int64_t x_index(const ii_pixel_shuffle_args *a, int64_t row, int64_t col, int64_t c) {
  int64_t pixel = row / a->r * a->W + col / a->r, part = row % a->r * a->r + col % a->r;
  return (pixel * a->C + c) * a->r * a->r + part;
}

int II_FN(pixel_shuffle_fwd)(ii_kctx *k, const ii_pixel_shuffle_args *a) {
#pragma omp parallel for num_threads(ii_team(k, y_count(a))) schedule(static)
  for (int64_t row = 0; row < a->N * a->H * a->r; row++)
    for (int64_t col = 0; col < a->W * a->r; col++)
      for (int64_t c = 0; c < a->C; c++)
        store(a->x_dtype, a->y, y_index(a, row, col, c),
              load(a->x_dtype, a->x, x_index(a, row, col, c)));
  return 0;
}

/* Every input element has one output element, so the rows of y write disjoint parts of gx. */
int II_FN(pixel_shuffle_bwd)(ii_kctx *k, const ii_pixel_shuffle_args *a) {
  if (!a->gx) return 0;
#pragma omp parallel for num_threads(ii_team(k, y_count(a))) schedule(static)
  for (int64_t row = 0; row < a->N * a->H * a->r; row++)
    for (int64_t col = 0; col < a->W * a->r; col++)
      for (int64_t c = 0; c < a->C; c++) {
        int64_t i = x_index(a, row, col, c);
        real g = load(a->x_dtype, a->gy, y_index(a, row, col, c));
        store(a->x_dtype, a->gx, i, a->acc_gx ? load(a->x_dtype, a->gx, i) + g : g);
      }
  return 0;
}
