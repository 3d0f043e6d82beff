#include "kernels/buffers.h"

typedef struct {
  ii_buf *b;
  int n;
} list;

static ii_buf *put(list *l, ii_buf_role role, const void *const *at, ii_dtype t, int64_t n) {
  static ii_buf none;
  if (!*at) return &none;
  ii_buf *b = &l->b[l->n++];
  *b = (ii_buf){.at = (void **)(uintptr_t)at, .role = role, .dtype = t, .n = n};
  return b;
}

#define IN(field, type, count)    put(l, II_BUF_IN, (const void *const *)&a->field, type, count)
#define OUT(field, type, count)   put(l, II_BUF_OUT, (const void *const *)&a->field, type, count)
#define STATE(field, type, count) put(l, II_BUF_STATE, (const void *const *)&a->field, type, count)
#define UNREAD(field)             put(l, II_BUF_UNREAD, (const void *const *)&a->field, II_F32, 0)
#define GRAD(field, type, count)                                                                   \
  (put(l, II_BUF_GRAD, (const void *const *)&a->field, type, count)->acc = &a->acc_##field)

static void linear(list *l, ii_linear_args *a, bool bwd) {
  ii_dtype t = a->x_dtype;
  int64_t nx = a->rows * a->in, ny = a->rows * a->out, nw = a->in * a->out;
  IN(x, t, nx);
  IN(w, t, nw);
  if (!bwd) {
    IN(b, a->real, a->out);
    OUT(y, t, ny);
    return;
  }
  UNREAD(b);
  UNREAD(y);
  IN(gy, t, ny);
  GRAD(gx, t, nx);
  GRAD(gw, a->real, nw);
  GRAD(gb, a->real, a->out);
}

static void conv2d(list *l, ii_conv2d_args *a, bool bwd) {
  ii_dtype t = a->x_dtype;
  int64_t nx = a->N * a->H * a->W * a->C, ny = a->N * a->Ho * a->Wo * a->O;
  int64_t nw = a->O * a->C * a->kh * a->kw;
  IN(x, t, nx);
  IN(w, t, nw);
  if (!bwd) {
    IN(b, a->real, a->O);
    OUT(y, t, ny);
    return;
  }
  UNREAD(b);
  UNREAD(y);
  IN(gy, t, ny);
  GRAD(gx, t, nx);
  GRAD(gw, a->real, nw);
  GRAD(gb, a->real, a->O);
}

static void dwconv2d(list *l, ii_dwconv2d_args *a, bool bwd) {
  ii_dtype t = a->x_dtype;
  int64_t n = a->N * a->H * a->W * a->C, nw = a->C * a->k * a->k;
  IN(x, t, n);
  IN(w, a->real, nw);
  if (!bwd) {
    IN(b, a->real, a->C);
    OUT(y, t, n);
    return;
  }
  UNREAD(b);
  UNREAD(y);
  IN(gy, t, n);
  GRAD(gx, t, n);
  GRAD(gw, a->real, nw);
  GRAD(gb, a->real, a->C);
}

static void layer_norm(list *l, ii_layer_norm_args *a, bool bwd) {
  int64_t n = a->rows * a->C;
  bool after = a->place == II_NORM_AFTER_BRANCH;
  if (after && !bwd)
    UNREAD(x);
  else
    IN(x, a->x_dtype, n);
  IN(gamma, a->real, a->C);
  IN(scale, a->real, a->C);
  if (a->keep_rows > 0) IN(keep, a->real, a->rows / a->keep_rows);
  if (!bwd) {
    IN(beta, a->real, a->C);
    IN(skip, after ? a->x_dtype : a->y_dtype, n);
    IN(f, a->y_dtype, n);
    OUT(sum, a->x_dtype, n);
    OUT(y, a->y_dtype, n);
    OUT(mean, a->real, a->rows);
    OUT(rstd, a->real, a->rows);
    return;
  }
  if (a->act == II_ACT_NONE && !a->gscale)
    UNREAD(beta);
  else
    IN(beta, a->real, a->C);
  UNREAD(skip);
  UNREAD(f);
  UNREAD(sum);
  UNREAD(y);
  IN(mean, a->real, a->rows);
  IN(rstd, a->real, a->rows);
  IN(gy, a->y_dtype, n);
  IN(gsum, a->x_dtype, n);
  GRAD(gx, a->x_dtype, n);
  GRAD(gf, a->y_dtype, n);
  GRAD(ggamma, a->real, a->C);
  GRAD(gbeta, a->real, a->C);
  GRAD(gscale, a->real, a->C);
}

static void batch_norm(list *l, ii_batch_norm_args *a, bool bwd) {
  int64_t n = a->rows * a->C;
  IN(x, a->x_dtype, n);
  IN(gamma, a->real, a->C);
  if (!bwd) {
    ii_buf_role running = a->training ? II_BUF_STATE : II_BUF_IN;
    IN(beta, a->real, a->C);
    put(l, running, (const void *const *)&a->running_mean, a->real, a->C);
    put(l, running, (const void *const *)&a->running_var, a->real, a->C);
    OUT(y, a->y_dtype, n);
    OUT(mean, a->real, a->C);
    OUT(rstd, a->real, a->C);
    return;
  }
  UNREAD(beta);
  UNREAD(running_mean);
  UNREAD(running_var);
  UNREAD(y);
  IN(mean, a->real, a->C);
  IN(rstd, a->real, a->C);
  IN(gy, a->y_dtype, n);
  GRAD(gx, a->x_dtype, n);
  GRAD(ggamma, a->real, a->C);
  GRAD(gbeta, a->real, a->C);
}

/* from_y: the backward reads the output instead of the input */
static void eltwise(list *l, ii_eltwise_args *a, bool bwd, bool from_y) {
  const bool in_place = a->gx && a->gx == a->gy;
  if (!bwd) {
    IN(x, a->x_dtype, a->n);
    OUT(y, a->y_dtype, a->n);
    return;
  }
  if (from_y) {
    UNREAD(x);
    IN(y, a->y_dtype, a->n);
  } else {
    IN(x, a->x_dtype, a->n);
    UNREAD(y);
  }
  if (in_place) {
    STATE(gy, a->y_dtype, a->n);
    put(l, II_BUF_INSIDE, (const void *const *)&a->gx, a->x_dtype, 0);
  } else {
    IN(gy, a->y_dtype, a->n);
    GRAD(gx, a->x_dtype, a->n);
  }
  GRAD(gb, a->real, a->C);
}

static void softmax(list *l, ii_softmax_args *a, bool bwd) {
  int64_t n = a->rows * a->n;
  if (!bwd) {
    IN(x, a->x_dtype, n);
    OUT(y, a->y_dtype, n);
    return;
  }
  UNREAD(x);
  IN(y, a->y_dtype, n);
  IN(gy, a->y_dtype, n);
  GRAD(gx, a->x_dtype, n);
}

/* Where things lie together is told by the strides: offsets and modulations whose rows are equally
 * long are one matrix, v4's by group, v3's behind each other; so are they and the values when those
 * are not alone in their rows. */
static void dcn(list *l, ii_dcn_args *a, bool bwd) {
  int64_t nx = a->N * a->H * a->W * a->x_row, rows = a->N * a->Ho * a->Wo;
  int64_t taps = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  bool packed = a->offset_group == 3 * taps;
  bool joint = a->offset_row == a->mask_row, all = a->x_row > a->C && a->x_row == a->offset_row;
  int64_t to_mask = packed ? 2 * taps : 2 * taps * a->G;
  int64_t used = packed || !joint ? a->offset_group * a->G : 3 * taps * a->G;
  IN(x, a->x_dtype, nx);
  if (all)
    put(l, II_BUF_INSIDE, &a->offset, a->om_dtype, a->C);
  else
    IN(offset, a->om_dtype, rows * a->offset_row);
  if (joint)
    put(l, II_BUF_INSIDE, &a->mask, a->om_dtype, to_mask);
  else
    IN(mask, a->om_dtype, rows * a->mask_row);
  if (!bwd) {
    OUT(y, a->x_dtype, rows * a->C);
    return;
  }
  UNREAD(y);
  IN(gy, a->x_dtype, rows * a->C);
  ii_buf *g = put(l, II_BUF_GRAD, (const void *const *)&a->gx, a->x_dtype, nx);
  g->acc = &a->acc_gx;
  g->row = a->x_row;
  g->used = all ? a->C + used : a->C;
  if (all) {
    put(l, II_BUF_INSIDE, (const void *const *)&a->goffset, a->om_dtype, a->C)->acc =
        &a->acc_goffset;
  } else {
    g = put(l, II_BUF_GRAD, (const void *const *)&a->goffset, a->om_dtype, rows * a->offset_row);
    g->acc = &a->acc_goffset;
    g->row = a->offset_row;
    g->used = used;
  }
  if (joint)
    put(l, II_BUF_INSIDE, (const void *const *)&a->gmask, a->om_dtype, to_mask)->acc =
        &a->acc_gmask;
  else
    GRAD(gmask, a->om_dtype, rows * a->mask_row);
}

static void residual(list *l, ii_residual_args *a, bool bwd) {
  int64_t n = a->N * a->rows * a->C;
  if (bwd)
    UNREAD(x);
  else
    IN(x, a->x_dtype, n);
  if (bwd && !a->ggamma)
    UNREAD(f);
  else
    IN(f, a->f_dtype, n);
  IN(gamma, a->real, a->C);
  IN(keep, a->real, a->N);
  if (!bwd) {
    OUT(y, a->x_dtype, n);
    return;
  }
  UNREAD(y);
  IN(gy, a->x_dtype, n);
  GRAD(gf, a->f_dtype, n);
  GRAD(ggamma, a->real, a->C);
}

static void group_mix(list *l, ii_group_mix_args *a, bool bwd) {
  int64_t n = a->rows * a->G * a->D, ns = a->rows * a->G;
  IN(a, a->x_dtype, n);
  IN(v, a->x_dtype, n);
  IN(s, a->s_dtype, ns);
  if (!bwd) {
    OUT(y, a->x_dtype, n);
    return;
  }
  UNREAD(y);
  IN(gy, a->x_dtype, n);
  GRAD(ga, a->x_dtype, n);
  GRAD(gv, a->x_dtype, n);
  GRAD(gs, a->s_dtype, ns);
}

static void mean_pool(list *l, ii_mean_pool_args *a, bool bwd) {
  int64_t nx = a->N * a->P * a->C, ny = a->N * a->C;
  if (!bwd) {
    IN(x, a->x_dtype, nx);
    OUT(y, a->y_dtype, ny);
    return;
  }
  UNREAD(x);
  UNREAD(y);
  IN(gy, a->y_dtype, ny);
  GRAD(gx, a->x_dtype, nx);
}

static void pool2d(list *l, ii_pool2d_args *a, bool bwd) {
  int64_t nx = a->N * a->H * a->W * a->C, ny = a->N * a->Ho * a->Wo * a->C;
  if (!bwd) {
    IN(x, a->x_dtype, nx);
    OUT(y, a->x_dtype, ny);
    OUT(argmax, II_I32, ny);
    return;
  }
  UNREAD(x);
  UNREAD(y);
  IN(argmax, II_I32, ny);
  IN(gy, a->x_dtype, ny);
  GRAD(gx, a->x_dtype, nx);
}

static void bmm(list *l, ii_bmm_args *a, bool bwd) {
  ii_dtype t = a->x_dtype;
  int64_t na = a->batch * a->M * a->K, nb = a->batch * a->K * a->N, nc = a->batch * a->M * a->N;
  IN(a, t, na);
  IN(b, t, nb);
  if (!bwd) {
    OUT(c, t, nc);
    return;
  }
  UNREAD(c);
  IN(gc, t, nc);
  GRAD(ga, t, na);
  GRAD(gb, t, nb);
}

static void pixel_shuffle(list *l, ii_pixel_shuffle_args *a, bool bwd) {
  int64_t n = a->N * a->H * a->W * a->C * a->r * a->r;
  if (!bwd) {
    IN(x, a->x_dtype, n);
    OUT(y, a->x_dtype, n);
    return;
  }
  UNREAD(x);
  UNREAD(y);
  IN(gy, a->x_dtype, n);
  GRAD(gx, a->x_dtype, n);
}

static void cross_entropy(list *l, ii_ce_args *a, bool bwd) {
  IN(x, a->x_dtype, a->N * a->C);
  IN(targets, a->real, a->N * a->C);
  IN(labels, II_I32, a->N);
  if (!bwd) {
    OUT(loss, a->real, 1);
    OUT(lse, a->real, a->N);
    return;
  }
  UNREAD(loss);
  IN(lse, a->real, a->N);
  IN(gy, a->real, 1);
  GRAD(gx, a->x_dtype, a->N * a->C);
}

/* Structs are buffers of numbers of their alignment. */
static void mix(list *l, int kernel, void *args) {
  if (kernel == II_K_mix_batch) {
    ii_mix_batch_args *a = args;
    IN(mix, II_F64, (int64_t)(sizeof(ii_mixture) / sizeof(double)));
    STATE(x, a->real, a->N * a->H * a->W * a->C);
  } else if (kernel == II_K_mix_targets) {
    ii_mix_targets_args *a = args;
    IN(mix, II_F64, (int64_t)(sizeof(ii_mixture) / sizeof(double)));
    IN(labels, II_I32, a->N);
    OUT(targets, a->real, a->N * a->C);
  } else {
    ii_erase_args *a = args;
    IN(count, II_I32, 1);
    IN(rects, II_I32, a->most * (int64_t)(sizeof(ii_erase_rect) / sizeof(int32_t)));
    STATE(x, a->real, a->N * a->H * a->W * a->C);
  }
}

static void simple(list *l, int kernel, void *args) {
  if (kernel == II_K_add_fwd) {
    ii_add_args *a = args;
    IN(a, a->x_dtype, a->n);
    IN(b, a->x_dtype, a->n);
    OUT(c, a->x_dtype, a->n);
  } else if (kernel == II_K_transpose) {
    ii_transpose_args *a = args;
    int64_t n = a->A * a->B * a->C * a->D;
    IN(x, a->x_dtype, n);
    put(l, II_BUF_GRAD, (const void *const *)&a->y, a->x_dtype, n)->acc = &a->accumulate;
  } else if (kernel == II_K_cast) {
    ii_cast_args *a = args;
    IN(x, a->x_dtype, a->n);
    put(l, II_BUF_GRAD, (const void *const *)&a->y, a->y_dtype, a->n)->acc = &a->accumulate;
  } else if (kernel == II_K_copy2d) {
    ii_copy2d_args *a = args;
    int64_t last = a->rows > 0 ? a->rows - 1 : 0;
    IN(x, a->x_dtype, a->rows ? last * a->x_stride + a->n : 0);
    ii_buf *y = put(l, II_BUF_GRAD, (const void *const *)&a->y, a->x_dtype,
                    a->rows ? last * a->y_stride + a->n : 0);
    y->acc = &a->accumulate;
    y->row = a->y_stride;
    y->used = a->n;
  } else if (kernel == II_K_fill) {
    ii_fill_args *a = args;
    int64_t last = a->rows > 0 ? a->rows - 1 : 0;
    ii_buf *y = put(l, II_BUF_OUT, (const void *const *)&a->y, a->y_dtype,
                    a->rows ? last * a->y_stride + a->n : 0);
    y->row = a->rows > 1 ? a->y_stride : 0;
    y->used = a->n;
  } else if (kernel == II_K_keep) {
    ii_keep_args *a = args;
    OUT(y, a->real, a->n);
  } else if (kernel == II_K_shift) {
    ii_shift_args *a = args;
    STATE(y, a->real, a->n);
  }
}

#define PAIR(name, call)                                                                           \
  case II_K_##name##_fwd:                                                                          \
    call(&l, args, false);                                                                         \
    break;                                                                                         \
  case II_K_##name##_bwd:                                                                          \
    call(&l, args, true);                                                                          \
    break;
#define ELTWISE(name, from_y)                                                                      \
  case II_K_##name##_fwd:                                                                          \
    eltwise(&l, args, false, from_y);                                                              \
    break;                                                                                         \
  case II_K_##name##_bwd:                                                                          \
    eltwise(&l, args, true, from_y);                                                               \
    break;

int ii_kernel_buffers(int kernel, void *args, ii_buf *b) {
  list l = {b, 0};
  switch (kernel) {
    PAIR(linear, linear)
    PAIR(conv2d, conv2d)
    PAIR(dwconv2d, dwconv2d)
    PAIR(layer_norm, layer_norm)
    PAIR(batch_norm, batch_norm)
    ELTWISE(gelu, false)
    ELTWISE(relu, true)
    ELTWISE(silu, false)
    ELTWISE(sigmoid, true)
    PAIR(softmax, softmax)
    PAIR(dcn, dcn)
    PAIR(residual, residual)
    PAIR(group_mix, group_mix)
    PAIR(mean_pool, mean_pool)
    PAIR(avg_pool2d, pool2d)
    PAIR(max_pool2d, pool2d)
    PAIR(bmm, bmm)
    PAIR(pixel_shuffle, pixel_shuffle)
    PAIR(soft_ce, cross_entropy)
    PAIR(smooth_ce, cross_entropy)
  case II_K_mix_batch:
  case II_K_mix_targets:
  case II_K_erase:
    mix(&l, kernel, args);
    break;
  default:
    simple(&l, kernel, args);
  }
  return l.n;
}
