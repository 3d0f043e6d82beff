#include "kernels/selftest_priv.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/device.h"

typedef int (*kernel_fn)(ii_kctx *k, const void *a);

#define II_KERNEL(name, args)                                                                      \
  static int cpu_##name(ii_kctx *k, const void *a) {                                               \
    return ii_cpu_##name(k, a);                                                                    \
  }
#include "kernels/kernels.def"
#undef II_KERNEL

static const kernel_fn cpu_kernels[II_K_COUNT] = {
#define II_KERNEL(name, args) cpu_##name,
#include "kernels/kernels.def"
#undef II_KERNEL
};

#if II_HAVE_CUDA
#define II_KERNEL(name, args)                                                                      \
  static int cuda_##name(ii_kctx *k, const void *a) {                                              \
    return ii_cuda_##name(k, a);                                                                   \
  }
#include "kernels/kernels.def"
#undef II_KERNEL

static const kernel_fn cuda_kernels[II_K_COUNT] = {
#define II_KERNEL(name, args) cuda_##name,
#include "kernels/kernels.def"
#undef II_KERNEL
};
#endif

static const char *const names[II_K_COUNT] = {
#define II_KERNEL(name, args) #name,
#include "kernels/kernels.def"
#undef II_KERNEL
};

const char *ii_selftest_kernel_name(int kernel) {
  return names[kernel];
}

int ii_selftest_call(ii_kctx *k, int kernel, const ii_any_args *a) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) return cuda_kernels[kernel](k, a);
#endif
  return cpu_kernels[kernel](k, a);
}

/* ---- Values -----------------------------------------------------------------------------------*/

double ii_selftest_get(ii_dtype t, const void *p, int64_t i) {
  switch (t) {
  case II_F32:
    return ((const float *)p)[i];
  case II_F64:
    return ((const double *)p)[i];
  case II_BF16:
    return ii_bf16_to_f32(((const uint16_t *)p)[i]);
  case II_F16:
    return ii_f16_to_f32(((const uint16_t *)p)[i]);
  default:
    return ((const int32_t *)p)[i];
  }
}

void ii_selftest_set(ii_dtype t, void *p, int64_t i, double v) {
  switch (t) {
  case II_F32:
    ((float *)p)[i] = (float)v;
    break;
  case II_F64:
    ((double *)p)[i] = v;
    break;
  case II_BF16:
    ((uint16_t *)p)[i] = ii_f32_to_bf16((float)v);
    break;
  case II_F16:
    ((uint16_t *)p)[i] = ii_f32_to_f16((float)v);
    break;
  default:
    ((int32_t *)p)[i] = (int32_t)v;
  }
}

double ii_selftest_draw(int64_t field, int64_t i, ii_dtype t, bool positive) {
  uint64_t h =
      (uint64_t)(field + 1) * 0x9E3779B97F4A7C15u ^ (uint64_t)(i + 1) * 0xBF58476D1CE4E5B9u;
  h = (h ^ h >> 31) * 0x94D049BB133111EBu;
  h ^= h >> 29;
  if (t == II_I32) return (double)(h % 7);              /* a class */
  if (positive) return 0.5 + (double)(h % 4097) / 4096; /* variances, second moments */
  return (double)((int64_t)(h % 16385) - 8192) / 4096;
}

double ii_selftest_bound(ii_dtype t) {
  switch (t) {
  case II_F64:
    return 1e-12;
  case II_F32:
    return 5e-6;
  case II_F16:
    return 8e-4;
  case II_BF16:
    return 6e-3;
  default:
    return 0;
  }
}

/* ---- One run: buffers on the engine and their values on the host ------------------------------*/

typedef struct {
  ii_any_args a;
  ii_buf b[II_BUFS_MAX];
  int n;
  char *host[II_BUFS_MAX];
  void *device[II_BUFS_MAX];
  size_t bytes[II_BUFS_MAX]; /* of the device's memory */
  size_t shift;              /* from its start to the buffer */
} run;

static int64_t field_of(const run *r, int i) {
  return (const char *)r->b[i].at - (const char *)&r->a;
}

static void release(ii_kctx *k, run *r) {
  for (int i = 0; i < r->n; i++) {
    ii_device_free(k, r->device[i], r->bytes[i]);
    free(r->host[i]);
  }
  r->n = 0;
}

/* Lists the buffers and makes host memory for them; every byte is 0xff (NaN). */
static int list(ii_kctx *k, run *r, int kernel, int variant, ii_dtype t) {
  memset(r, 0, sizeof *r);
  ii_selftest_problem(kernel, variant, t, &r->a);
  r->n = ii_kernel_buffers(kernel, &r->a, r->b);
  for (int i = 0; i < r->n; i++) {
    ii_buf *b = &r->b[i];
    if (b->acc) *b->acc = variant == 1;
    if (b->role == II_BUF_UNREAD || b->role == II_BUF_INSIDE) continue;
    const size_t bytes = (size_t)b->n * ii_dtype_size(b->dtype);
    r->host[i] = malloc(bytes + 1);
    if (!r->host[i]) {
      snprintf(k->error, sizeof k->error, "out of memory for the self-test of %s", names[kernel]);
      return 1;
    }
    memset(r->host[i], 0xff, bytes + 1);
  }
  return 0;
}

/* Whether a pointer of the problem only says that there is a buffer (selftest_problems.c). */
static bool is_mark(const run *r, const void *p) {
  const uintptr_t at = (uintptr_t)p, args = (uintptr_t)&r->a;
  return at >= args && at < args + sizeof r->a;
}

/* Fills what the kernel reads. `made` (or NULL): the forward kernel's results in double precision,
 * which replace the drawn values of the same fields. */
static void fill(run *r, int kernel, int variant, const run *made) {
  const bool norm = kernel == II_K_batch_norm_fwd || kernel == II_K_batch_norm_bwd;
  for (int i = 0; i < r->n; i++) {
    const ii_buf *b = &r->b[i];
    if (!r->host[i] || b->role == II_BUF_OUT || (b->role == II_BUF_GRAD && variant == 0)) continue;
    if (b->role == II_BUF_IN && !is_mark(r, *b->at)) { /* a struct that the problem gives */
      memcpy(r->host[i], *b->at, (size_t)b->n * ii_dtype_size(b->dtype));
      continue;
    }
    int from = -1;
    for (int j = 0; made && j < made->n; j++)
      if (made->b[j].role == II_BUF_OUT && field_of(made, j) == field_of(r, i)) from = j;
    for (int64_t e = 0; e < b->n; e++)
      ii_selftest_set(b->dtype, r->host[i], e,
                      from >= 0 ? ii_selftest_get(made->b[from].dtype, made->host[from], e)
                                : ii_selftest_draw(field_of(r, i), e, b->dtype,
                                                   norm || b->role == II_BUF_STATE));
  }
}

static int upload(ii_kctx *k, run *r, int variant) {
  for (int i = 0; i < r->n; i++) {
    ii_buf *b = &r->b[i];
    if (b->role == II_BUF_UNREAD) *b->at = NULL;
    if (b->role == II_BUF_INSIDE)
      *b->at = (char *)*r->b[i - 1].at + b->n * (int64_t)ii_dtype_size(b->dtype);
    if (!r->host[i]) continue;
    const size_t shift = variant == 1 ? ii_dtype_size(b->dtype) : 0;
    const size_t bytes = (size_t)b->n * ii_dtype_size(b->dtype);
    r->bytes[i] = bytes + shift + 16;
    if (ii_device_alloc(k, r->bytes[i], &r->device[i])) return 1;
    *b->at = (char *)r->device[i] + shift;
    if (ii_device_write(k, *b->at, r->host[i], bytes)) return 1;
  }
  return 0;
}

/* Runs the kernel and brings the buffers back. */
static int execute(ii_kctx *k, run *r, int kernel, int variant) {
  if (upload(k, r, variant) || ii_selftest_call(k, kernel, &r->a)) return 1;
  for (int i = 0; i < r->n; i++)
    if (r->host[i] && r->b[i].role != II_BUF_IN &&
        ii_device_read(k, r->host[i], *r->b[i].at,
                       (size_t)r->b[i].n * ii_dtype_size(r->b[i].dtype)))
      return 1;
  return 0;
}

/* ---- Comparison -------------------------------------------------------------------------------*/

static bool written(const ii_buf *b, int64_t i) {
  return !b->row || i % b->row < b->used;
}

static double difference(const ii_buf *b, const void *got, const ii_buf *w, const void *want) {
  double scale = 0, worst = 0;
  for (int64_t i = 0; i < b->n; i++) {
    if (!written(b, i)) continue;
    const double g = ii_selftest_get(b->dtype, got, i), v = ii_selftest_get(w->dtype, want, i);
    if (!isfinite(g) || !isfinite(v)) return INFINITY;
    scale = fmax(scale, fabs(v));
    worst = fmax(worst, fabs(g - v));
  }
  return worst > 0 ? worst / fmax(scale, 1e-30) : 0;
}

void ii_selftest_worse(ii_selftest_result *r, double error, double bound) {
  if (r->bound == 0 || error * r->bound > r->error * bound) *r = (ii_selftest_result){error, bound};
}

static void compare(const run *got, const run *want, int kernel, ii_dtype t,
                    ii_selftest_result *r) {
  for (int i = 0; i < got->n; i++) {
    const ii_buf *b = &got->b[i];
    if (!got->host[i] || b->role == II_BUF_IN) continue;
    const double error = difference(b, got->host[i], &want->b[i], want->host[i]);
    double bound = ii_selftest_bound(b->dtype);
    /* cuDNN has the gradient of 16-bit weights in 16 bits only (kernels/cuda/conv2d.cu) */
    if (kernel == II_K_conv2d_bwd) bound = fmax(bound, ii_selftest_bound(t));
    if (b->dtype == II_I32) { /* indices: equal or not */
      if (error > 0) ii_selftest_worse(r, INFINITY, ii_selftest_bound(t));
    } else {
      ii_selftest_worse(r, error, bound);
    }
  }
}

/* The forward kernel whose results the backward kernel reads; -1: none. */
static int forward_of(int kernel) {
  const size_t n = strlen(names[kernel]);
  if (n < 4 || strcmp(names[kernel] + n - 4, "_bwd")) return -1;
  for (int i = 0; i < II_K_COUNT; i++)
    if (strlen(names[i]) == n && !strncmp(names[i], names[kernel], n - 3) &&
        !strcmp(names[i] + n - 4, "_fwd"))
      return i;
  return -1;
}

static int run_variant(ii_kctx *tested, ii_kctx *reference, int kernel, int variant, ii_dtype t,
                       ii_selftest_result *result) {
  const int fwd = forward_of(kernel);
  run made = {0}, want = {0}, got = {0};
  int bad = 0;
  if (fwd >= 0) {
    bad = list(reference, &made, fwd, variant, II_F64);
    if (!bad) fill(&made, fwd, variant, NULL);
    bad = bad || execute(reference, &made, fwd, variant);
  }
  bad = bad || list(reference, &want, kernel, variant, II_F64);
  if (!bad) bad = list(tested, &got, kernel, variant, t);
  if (!bad) {
    fill(&got, kernel, variant, fwd >= 0 ? &made : NULL);
    for (int i = 0; i < got.n; i++) /* the very numbers that the tested kernel reads */
      for (int64_t e = 0; got.host[i] && e < got.b[i].n; e++)
        ii_selftest_set(want.b[i].dtype, want.host[i], e,
                        ii_selftest_get(got.b[i].dtype, got.host[i], e));
    bad = execute(reference, &want, kernel, variant);
  }
  if (bad) snprintf(tested->error, sizeof tested->error, "%.480s", reference->error);
  bad = bad || execute(tested, &got, kernel, variant);
  if (!bad) compare(&got, &want, kernel, t, result);
  release(reference, &made);
  release(reference, &want);
  release(tested, &got);
  return bad;
}

int ii_selftest_run(ii_kctx *tested, ii_kctx *reference, int kernel, ii_dtype t,
                    ii_selftest_result *r) {
  *r = (ii_selftest_result){0};
  for (int variant = 0; variant < II_SELFTEST_VARIANTS; variant++) {
    ii_any_args a;
    const int known = ii_selftest_problem(kernel, variant, t, &a);
    if (known == 0 && (variant >= 2 || !ii_selftest_is_update(kernel))) return 0;
    if (known < 0)
      snprintf(tested->error, sizeof tested->error, "kernels/selftest_problems.c lacks a problem");
    const int bad =
        ii_selftest_is_update(kernel)
            ? t == ii_dtype_real(t) && ii_selftest_update(tested, reference, kernel, variant, t, r)
            : known < 0 || run_variant(tested, reference, kernel, variant, t, r);
    if (bad) {
      *r = (ii_selftest_result){INFINITY, ii_selftest_bound(t)};
      return 1;
    }
  }
  return 0;
}
