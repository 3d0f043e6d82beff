/* Dense convolution. 1x1 of stride 1 is a linear layer on pixels. fp32 and bf16 go to oneDNN;
 * double gathers the window of every output pixel of one image into a row ("columns") and
 * multiplies. */
#include <string.h>
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/pieces.h"

static bool is_pointwise(const ii_conv2d_args *a) {
  return a->kh == 1 && a->kw == 1 && a->stride == 1 && a->pad == 0;
}

static ii_linear_args as_linear(const ii_conv2d_args *a) {
  return (ii_linear_args){.real = a->real,
                          .x_dtype = a->x_dtype,
                          .rows = a->N * a->H * a->W,
                          .in = a->C,
                          .out = a->O,
                          .x = a->x,
                          .w = a->w,
                          .b = a->b,
                          .y = a->y,
                          .gy = a->gy,
                          .gx = a->gx,
                          .gw = a->gw,
                          .gb = a->gb,
                          .acc_gx = a->acc_gx,
                          .acc_gw = a->acc_gw,
                          .acc_gb = a->acc_gb};
}

/* Number of elements of the input and the weights, and of output pixels. */
static int64_t x_count(const ii_conv2d_args *a) {
  return a->N * a->H * a->W * a->C;
}
static int64_t w_count(const ii_conv2d_args *a) {
  return a->O * a->C * a->kh * a->kw;
}
static int64_t pixels(const ii_conv2d_args *a) {
  return a->N * a->Ho * a->Wo;
}

enum {
  SLOT_COLUMNS = 0,
  SLOT_WEIGHTS = 1,
  COLUMN_BYTES = 8 << 20 /* about so much is gathered before it is multiplied */
};

/* Elements of a window: the length of a columns row. */
static int64_t window(const ii_conv2d_args *a) {
  return (int64_t)a->kh * a->kw * a->C;
}

/* One row of a window: kw pixels from column w on (may lie outside) of an image row, or NULL. */
static void copy_row(const ii_conv2d_args *a, const char *row, int64_t w, char *dst) {
  size_t pixel = (size_t)a->C * ii_dtype_size(a->x_dtype);
  int64_t begin = w < 0 ? -w : 0, end = a->W - w < a->kw ? a->W - w : a->kw;
  if (!row || begin >= end) begin = end = a->kw;
  memset(dst, 0, (size_t)begin * pixel);
  if (begin < end)
    memcpy(dst + (size_t)begin * pixel, row + (w + begin) * (int64_t)pixel,
           (size_t)(end - begin) * pixel);
  memset(dst + (size_t)end * pixel, 0, (size_t)(a->kw - end) * pixel);
}

/* col[images*Ho*Wo, kh, kw, C] of consecutive images from x on; windows reach into zero padding. */
static void image_to_columns(ii_kctx *k, const ii_conv2d_args *a, int64_t images, const char *x,
                             char *col) {
  const size_t size = ii_dtype_size(a->x_dtype);
  const int64_t part = a->kw * a->C * (int64_t)size, line = a->W * a->C * (int64_t)size;
#pragma omp parallel for num_threads(ii_team(k, images * a->Ho * a->Wo * window(a)))               \
    schedule(static)
  for (int64_t row = 0; row < images * a->Ho; row++) {
    const char *image = x + row / a->Ho * a->H * line;
    int64_t h = row % a->Ho * a->stride - a->pad;
    char *dst = col + row * a->Wo * a->kh * part;
    for (int64_t w = -a->pad; w < a->Wo * a->stride - a->pad; w += a->stride)
      for (int i = 0; i < a->kh; i++, dst += part)
        copy_row(a, h + i >= 0 && h + i < a->H ? image + (h + i) * line : NULL, w, dst);
  }
}

/* Adds (acc_gw) or writes weights of the order O,kh,kw,C of the columns as the stored O,C,kh,kw. */
static void rows_to_weights(ii_kctx *k, const ii_conv2d_args *a, const real *rows, real *w) {
  int64_t taps = (int64_t)a->kh * a->kw;
#pragma omp parallel for num_threads(ii_team(k, w_count(a))) schedule(static)
  for (int64_t o = 0; o < a->O; o++)
    for (int64_t c = 0; c < a->C; c++)
      for (int64_t t = 0; t < taps; t++) {
        real v = rows[(o * taps + t) * a->C + c], *out = &w[(o * a->C + c) * taps + t];
        *out = a->acc_gw ? *out + v : v;
      }
}

/* Scratch for the columns of some images and for the weights as rows. */
static int get_scratch(ii_kctx *k, const ii_conv2d_args *a, int64_t images, void **col,
                       real **rows) {
  size_t column_count = (size_t)(images * a->Ho * a->Wo * window(a));
  *col = ii_cpu_scratch(k, SLOT_COLUMNS, column_count * ii_dtype_size(a->x_dtype));
  *rows = ii_cpu_scratch(k, SLOT_WEIGHTS, (size_t)w_count(a) * sizeof(real));
  return !*col || !*rows;
}

/* gw = gy^T columns, some images at a time. For every type: oneDNN's own kernels synchronise their
 * threads by spinning, which costs a time slice each when other threads want the processors, and
 * version 2.6 leaves garbage in the taps that meet only padding on processors with AMX. */
static int backward_weights(ii_kctx *k, const ii_conv2d_args *a) {
  const int64_t size = (int64_t)ii_dtype_size(a->x_dtype), outputs = a->Ho * a->Wo;
  int64_t together = COLUMN_BYTES / (outputs * window(a) * size);
  if (together < 1) together = 1;
  if (together > a->N) together = a->N;
  void *col;
  real *rows;
  if (get_scratch(k, a, together, &col, &rows)) return 1;
  for (int64_t n = 0; n < a->N; n += together) {
    int64_t images = a->N - n < together ? a->N - n : together;
    image_to_columns(k, a, images, (const char *)a->x + n * a->H * a->W * a->C * size, col);
    matrix_product p = {.ab_dtype = a->x_dtype,
                        .c_dtype = II_REAL_DTYPE,
                        .batch = 1,
                        .M = a->O,
                        .N = window(a),
                        .K = images * outputs,
                        .trans_a = true,
                        .accumulate = n > 0,
                        .alpha = 1,
                        .a = (const char *)a->gy + n * outputs * a->O * size,
                        .b = col,
                        .c = rows};
    if (multiply(k, &p)) return 1;
  }
  rows_to_weights(k, a, rows, a->gw);
  return 0;
}

#ifdef II_REAL_F64

/* The stored weights O,C,kh,kw in the order O,kh,kw,C of the columns. */
static void weights_to_rows(const ii_conv2d_args *a, const real *w, real *rows) {
  int64_t taps = (int64_t)a->kh * a->kw;
  for (int64_t o = 0; o < a->O; o++)
    for (int64_t c = 0; c < a->C; c++)
      for (int64_t t = 0; t < taps; t++)
        rows[(o * taps + t) * a->C + c] = w[(o * a->C + c) * taps + t];
}

/* Adds to one input pixel (h,w) what the columns that saw it hold. */
static void gather_pixel(const ii_conv2d_args *a, const real *col, int64_t h, int64_t w, real *gx) {
  for (int i = 0; i < a->kh; i++)
    for (int j = 0; j < a->kw; j++) {
      int64_t y = h + a->pad - i, x = w + a->pad - j;
      if (y < 0 || x < 0 || y % a->stride || x % a->stride) continue;
      y /= a->stride;
      x /= a->stride;
      if (y >= a->Ho || x >= a->Wo) continue;
      const real *src = col + ((y * a->Wo + x) * a->kh * a->kw + i * a->kw + j) * a->C;
      for (int64_t c = 0; c < a->C; c++) gx[c] += src[c];
    }
}

static void columns_to_image(ii_kctx *k, const ii_conv2d_args *a, const real *col, real *gx) {
#pragma omp parallel for num_threads(ii_team(k, a->H * a->W * window(a))) schedule(static)
  for (int64_t p = 0; p < a->H * a->W; p++) {
    real *out = gx + p * a->C;
    if (!a->acc_gx) memset(out, 0, (size_t)a->C * sizeof *out);
    gather_pixel(a, col, p / a->W, p % a->W, out);
  }
}

static int forward(ii_kctx *k, const ii_conv2d_args *a) {
  void *col;
  real *rows;
  if (get_scratch(k, a, 1, &col, &rows)) return 1;
  weights_to_rows(a, a->w, rows);
  matrix_product p = {.batch = 1,
                      .M = a->Ho * a->Wo,
                      .N = a->O,
                      .K = window(a),
                      .trans_b = true,
                      .alpha = 1,
                      .a = col,
                      .b = rows,
                      .bias = a->b};
  for (int64_t n = 0; n < a->N; n++) {
    image_to_columns(k, a, 1, (const char *)((const real *)a->x + n * a->H * a->W * a->C), col);
    p.c = (real *)a->y + n * p.M * a->O;
    if (multiply(k, &p)) return 1;
  }
  return 0;
}

static int backward_data(ii_kctx *k, const ii_conv2d_args *a) {
  void *col;
  real *rows;
  if (get_scratch(k, a, 1, &col, &rows)) return 1;
  weights_to_rows(a, a->w, rows);
  matrix_product p = {
      .batch = 1, .M = a->Ho * a->Wo, .N = window(a), .K = a->O, .alpha = 1, .b = rows, .c = col};
  for (int64_t n = 0; n < a->N; n++) {
    p.a = (const real *)a->gy + n * p.M * a->O;
    if (multiply(k, &p)) return 1;
    columns_to_image(k, a, col, (real *)a->gx + n * a->H * a->W * a->C);
  }
  return 0;
}

#else

static int forward(ii_kctx *k, const ii_conv2d_args *a) {
  return ii_onednn_conv2d_fwd(k, a);
}
static int backward_data(ii_kctx *k, const ii_conv2d_args *a) {
  return ii_onednn_conv2d_bwd_data(k, a);
}

#endif

/* No channel or no weight: every output pixel is the bias. A product over nothing says just that.
 */
static int forward_without_input(ii_kctx *k, const ii_conv2d_args *a) {
  return multiply(k, &(matrix_product){.ab_dtype = a->x_dtype,
                                       .c_dtype = a->x_dtype,
                                       .batch = 1,
                                       .M = pixels(a),
                                       .N = a->O,
                                       .alpha = 1,
                                       .bias = a->b,
                                       .c = a->y});
}

int II_FN(conv2d_fwd)(ii_kctx *k, const ii_conv2d_args *a) {
  if (is_pointwise(a)) {
    ii_linear_args l = as_linear(a);
    return II_FN(linear_fwd)(k, &l);
  }
  if (pixels(a) == 0 || a->O == 0) return 0;
  if (x_count(a) == 0 || w_count(a) == 0) return forward_without_input(k, a);
  return forward(k, a);
}

int II_FN(conv2d_bwd)(ii_kctx *k, const ii_conv2d_args *a) {
  if (is_pointwise(a)) {
    ii_linear_args l = as_linear(a);
    return II_FN(linear_bwd)(k, &l);
  }
  bool empty = pixels(a) == 0 || x_count(a) == 0 || w_count(a) == 0;
  if (empty) { /* all sums are over nothing */
    if (a->gx && !a->acc_gx) memset(a->gx, 0, (size_t)x_count(a) * ii_dtype_size(a->x_dtype));
    if (a->gw && !a->acc_gw) memset(a->gw, 0, (size_t)w_count(a) * sizeof(real));
  } else {
    if (a->gx && backward_data(k, a)) return 1;
    if (a->gw && backward_weights(k, a)) return 1;
  }
  if (!a->gb) return 0;
  return II_FN(bias_grad)(k, a->x_dtype, pixels(a), a->O, a->gy, a->gb, a->acc_gb);
}
