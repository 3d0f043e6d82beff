/* Random erasing: rectangles of noise, drawn by counter. */
#include <tgmath.h>
#include "kernels/cpu/pieces.h"

/* The four normal numbers of one block. */
static void normals(const ii_erase_rect *r, int64_t block, real z[4]) {
  const uint32_t ctr[4] = {(uint32_t)block, r->part, r->noise.tail[0], r->noise.tail[1]};
  uint32_t w[4];
  ii_philox_block(r->noise.key, ctr, w);
  for (int i = 0; i < 4; i += 2) {
    const real u = (real)((w[i] >> 8) + 1) * R(0x1p-24), v = (real)(w[i + 1] >> 8) * R(0x1p-24);
    const real radius = sqrt(R(-2.0) * log(u)), angle = R(6.28318530717958647692) * v;
    z[i] = radius * cos(angle), z[i + 1] = radius * sin(angle);
  }
}

static void erase_rect(const ii_erase_args *a, const ii_erase_rect *r) {
  const int64_t width = r->width * a->C;
  real z[4] = {0, 0, 0, 0};
  for (int64_t row = 0; row < r->height; row++) {
    real *x = (real *)a->x + ((r->image * a->H + r->top + row) * a->W + r->left) * a->C;
    for (int64_t i = 0; i < width; i++) {
      const int64_t e = a->mode == II_ERASE_RAND ? i % a->C : row * width + i;
      /* the elements of a block follow each other, across rows too */
      if (a->mode != II_ERASE_CONST && e % 4 == 0) normals(r, e / 4, z);
      x[i] = z[e % 4];
    }
  }
}

int II_FN(erase)(ii_kctx *k, const ii_erase_args *a) {
  const int64_t count = *a->count;
  if (count > a->most)
    return ii_kernel_error(k, "erase: %lld rectangles, but room for %lld", (long long)count,
                           (long long)a->most);
  for (int64_t i = 0; i < count; i++)
    if (!ii_erase_inside(a->N, a->H, a->W, &a->rects[i]))
      return ii_kernel_error(k, "erase: rectangle %lld is not inside the images of the batch",
                             (long long)i);
  for (int64_t i = 0; i < count; i++) erase_rect(a, &a->rects[i]);
  return 0;
}
