#include "op_guard.h"
#include "kernels/buffers.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GUARD  64
#define POISON 0xFF /* all bits set: NaN in every floating type, -1 as an integer */

typedef int (*kernel_fn)(ii_kctx *k, const void *args);

static bool guard_is_on;
static int64_t checked[II_K_COUNT];

void ii_guard_on(bool on) {
  guard_is_on = on;
}
int64_t ii_guard_checked(int kernel) {
  return checked[kernel];
}

static const char *const names[II_K_COUNT] = {
#define II_KERNEL(name, args) #name,
#include "kernels/kernels.def"
#undef II_KERNEL
};

static double value(ii_dtype t, const void *p, int64_t i) {
  if (t == II_F32) return ((const float *)p)[i];
  if (t == II_F64) return ((const double *)p)[i];
  if (t == II_BF16) return ii_bf16_to_f32(((const uint16_t *)p)[i]);
  if (t == II_F16) return ii_f16_to_f32(((const uint16_t *)p)[i]);
  return ((const int32_t *)p)[i];
}

static void set_value(ii_dtype t, void *p, int64_t i, double v) {
  if (t == II_F32)
    ((float *)p)[i] = (float)v;
  else if (t == II_F64)
    ((double *)p)[i] = v;
  else if (t == II_BF16)
    ((uint16_t *)p)[i] = ii_f32_to_bf16((float)v);
  else if (t == II_F16)
    ((uint16_t *)p)[i] = ii_f32_to_f16((float)v);
  else
    ((int32_t *)p)[i] = (int32_t)v;
}

/* unit roundoff of a type */
static double roundoff(ii_dtype t) {
  return t == II_F64 ? 0x1p-53 : t == II_F32 ? 0x1p-24 : t == II_F16 ? 0x1p-11 : 0x1p-8;
}

static size_t buf_bytes(const ii_buf *b) {
  return (size_t)b->n * ii_dtype_size(b->dtype);
}

/* The host's image of a guarded buffer; what the kernel sees is a copy of it in device memory. */
static unsigned char *guarded_new(size_t bytes) {
  size_t total = (bytes + 2 * GUARD + 63) / 64 * 64;
  unsigned char *p = aligned_alloc(64, total);
  assert_non_null(p);
  memset(p, POISON, bytes + 2 * GUARD);
  return p + GUARD;
}

static void guarded_free(void *p) {
  if (p) free((unsigned char *)p - GUARD);
}

static void engine_did(const ii_kctx *k, int status) {
  if (status) fail_msg("device memory: %s", k->error);
}

/* n bytes of device memory in host memory of its own. */
static void *fetched(ii_kctx *k, const void *from, size_t bytes) {
  void *p = malloc(bytes + 1);
  assert_non_null(p);
  if (from) engine_did(k, ii_device_read(k, p, from, bytes));
  return p;
}

static void check_guards(int kernel, const ii_buf *b, int index, const unsigned char *p) {
  size_t bytes = buf_bytes(b);
  for (size_t i = 0; i < GUARD; i++)
    if (p[-1 - (ptrdiff_t)i] != POISON || p[bytes + i] != POISON)
      fail_msg("%s wrote outside its buffer %d (%lld %s)", names[kernel], index, (long long)b->n,
               ii_dtype_name(b->dtype));
}

/* One run: private copies of all buffers. */
typedef struct {
  ii_kctx *k;
  const void *args;
  int n;
  ii_buf b[II_BUFS_MAX];
  unsigned char *p[II_BUFS_MAX]; /* host images, without their guards */
  void *device[II_BUFS_MAX];     /* the copies that the kernel works on, from their guards on */
  bool misaligned;               /* they begin one element behind an aligned address */
} call;

static size_t guarded_bytes(const ii_buf *b) {
  return buf_bytes(b) + 2 * GUARD;
}

static size_t shift_of(const call *c, int i) {
  return c->misaligned ? ii_dtype_size(c->b[i].dtype) : 0;
}

/* Gives the image to the device; returns the kernel's pointer. */
static void *upload(call *c, int i) {
  ii_kctx *k = c->k;
  engine_did(k, ii_device_alloc(k, guarded_bytes(&c->b[i]) + shift_of(c, i), &c->device[i]));
  char *at = (char *)c->device[i] + shift_of(c, i);
  engine_did(k, ii_device_write(k, at, c->p[i] - GUARD, guarded_bytes(&c->b[i])));
  return at + GUARD;
}

/* Brings back what the kernel made. */
static void download(call *c) {
  for (int i = 0; i < c->n; i++)
    if (c->p[i])
      engine_did(c->k, ii_device_read(c->k, c->p[i] - GUARD, (char *)c->device[i] + shift_of(c, i),
                                      guarded_bytes(&c->b[i])));
}

/* ACC_ODD, ACC_EVEN: gradients at odd (even) places in the list accumulate, the others overwrite */
typedef enum { ACC_AS_GIVEN, ACC_OFF, ACC_ON, ACC_ODD, ACC_EVEN } acc_mode;

static bool accumulates(acc_mode mode, int i) {
  return mode == ACC_ON || (mode == ACC_ODD && i % 2) || (mode == ACC_EVEN && i % 2 == 0);
}

/* something to add to that is neither zero nor as large as to swallow the sum */
static double ballast(int64_t i) {
  return 0.5 + 0.25 * (double)(i % 7) - 0.125 * (double)(i % 3);
}

static void fill_grad(const ii_buf *b, int index, unsigned char *p, const void *original,
                      acc_mode mode) {
  if (mode == ACC_AS_GIVEN && *b->acc) memcpy(p, original, buf_bytes(b));
  if (accumulates(mode, index))
    for (int64_t i = 0; i < b->n; i++) set_value(b->dtype, p, i, ballast(i));
}

/* What lies outside the used part of a row belongs to the caller. */
static void fill_tails(const ii_buf *b, unsigned char *p, const void *original) {
  size_t es = ii_dtype_size(b->dtype);
  for (int64_t i = 0; b->row && i < b->n; i++)
    if (i % b->row >= b->used)
      memcpy(p + (size_t)i * es, (const char *)original + (size_t)i * es, es);
}

/* Copies of the buffers of `given`, whose pointers are put into `args` (a copy of the given
 * struct). only >= 0: all gradients but this one are NULL. */
static void prepare(call *c, ii_kctx *k, int kernel, void *args, acc_mode mode, int only,
                    void *const *original, bool misaligned) {
  *c = (call){.k = k, .args = args, .misaligned = misaligned};
  c->n = ii_kernel_buffers(kernel, args, c->b);
  for (int i = 0; i < c->n; i++) {
    ii_buf *b = &c->b[i];
    if (b->role == II_BUF_UNREAD) {
      *b->at = NULL;
      continue;
    }
    if (b->role == II_BUF_INSIDE) {
      char *base = *b[-1].at;
      int outer = i - 1; /* the buffer that all of them are in */
      while (c->b[outer].role == II_BUF_INSIDE) outer--;
      *b->at = base ? base + (size_t)b->n * ii_dtype_size(b->dtype) : NULL;
      if (b->acc && mode != ACC_AS_GIVEN) *b->acc = accumulates(mode, outer);
      continue;
    }
    if (b->role == II_BUF_GRAD && only >= 0 && i != only) {
      *b->at = NULL;
      continue;
    }
    c->p[i] = guarded_new(buf_bytes(b));
    if (b->role == II_BUF_GRAD) {
      fill_grad(b, i, c->p[i], original[i], mode);
      if (mode != ACC_AS_GIVEN) *b->acc = accumulates(mode, i);
    } else if (b->role != II_BUF_OUT && b->n) {
      memcpy(c->p[i], original[i], buf_bytes(b));
    }
    fill_tails(b, c->p[i], original[i]);
    *b->at = upload(c, i);
  }
}

static void release(call *c) {
  for (int i = 0; i < c->n; i++) {
    guarded_free(c->p[i]);
    if (c->device[i]) ii_device_free(c->k, c->device[i], guarded_bytes(&c->b[i]) + shift_of(c, i));
  }
}

/* Guards, inputs, and that every output element was written. */
static void check_call(int kernel, const call *c, void *const *original) {
  for (int i = 0; i < c->n; i++) {
    const ii_buf *b = &c->b[i];
    const unsigned char *p = c->p[i];
    if (!p) continue;
    check_guards(kernel, b, i, p);
    if (b->role == II_BUF_IN && b->n && memcmp(p, original[i], buf_bytes(b)))
      fail_msg("%s changed its input %d", names[kernel], i);
    if (b->role != II_BUF_OUT && b->role != II_BUF_GRAD) continue;
    size_t es = ii_dtype_size(b->dtype);
    unsigned char never[8];
    memset(never, POISON, sizeof never);
    for (int64_t j = 0; j < b->n; j++) {
      bool tail = b->row && j % b->row >= b->used;
      const char *was = (const char *)original[i] + (size_t)j * es;
      if (tail ? memcmp(p + (size_t)j * es, was, es) : !memcmp(p + (size_t)j * es, never, es))
        fail_msg("%s: element %lld of buffer %d (%lld %s) %s", names[kernel], (long long)j, i,
                 (long long)b->n, ii_dtype_name(b->dtype),
                 tail ? "is not the kernel's to write" : "was not written");
    }
  }
}

static double largest(const ii_buf *b, const unsigned char *p) {
  double m = 0;
  for (int64_t i = 0; i < b->n; i++) {
    const double v = fabs(value(b->dtype, p, i));
    if (isfinite(v)) m = fmax(m, v);
  }
  return m;
}

/* What rounding on the way may add to result `index` of a call, over its greatest value: cuDNN has
 * the gradient of 16-bit convolution weights in 16 bits (kernels/cuda/conv2d.cu; of a stem as
 * several numbers, which are added), where other kernels of ours, for what it refuses, have fp32.
 */
static double rounded_before(int kernel, const call *c, int index) {
  const ii_conv2d_args *a = c->args;
  if (kernel != II_K_conv2d_bwd || c->k->device != II_CUDA) return 0;
  return (const void *)c->b[index].at == &a->gw ? 4 * roundoff(a->x_dtype) : 0;
}

/* Result `index` must be `want` (plus ballast): the sums may be in another order, so some tens of
 * roundings. */
static void check_close(int kernel, const char *what, const call *c, int index,
                        const unsigned char *want, bool added) {
  const ii_buf *b = &c->b[index];
  const unsigned char *a = c->p[index];
  double scale = largest(b, want) + (added ? 1.0 : 0.0);
  double bound = scale * ((b->dtype == II_BF16 ? 2 : 256) * roundoff(b->dtype) +
                          rounded_before(kernel, c, index));
  for (int64_t i = 0; i < b->n; i++) {
    if (b->row && i % b->row >= b->used) continue;
    double w = value(b->dtype, want, i) + (added ? ballast(i) : 0), g = value(b->dtype, a, i);
    if (!(fabs(g - w) <= bound || g == w || (isnan(g) && isnan(w))))
      fail_msg("%s, %s: element %lld of buffer %d (%lld %s) is %.9g, not %.9g", names[kernel], what,
               (long long)i, index, (long long)b->n, ii_dtype_name(b->dtype), g, w);
  }
}

static void must(int kernel, int status, const ii_kctx *k) {
  if (status) fail_msg("%s failed: %s", names[kernel], k->error);
}

static void run(call *c, int kernel, const void *args, kernel_fn real, void *const *original) {
  must(kernel, real(c->k, args), c->k);
  download(c);
  check_call(kernel, c, original);
}

/* A gradient asked for with acc, and alone, against all of them overwritten. */
static void check_gradients(ii_kctx *k, int kernel, const void *args, size_t size, kernel_fn real,
                            void *const *original) {
  char copy[512];
  call all, other;
  memcpy(copy, args, size);
  prepare(&all, k, kernel, copy, ACC_OFF, -1, original, false);
  run(&all, kernel, copy, real, original);
  int grads = 0;
  for (int i = 0; i < all.n; i++) grads += all.b[i].role == II_BUF_GRAD;
  for (acc_mode mode = ACC_ON; mode <= (grads > 1 ? ACC_EVEN : ACC_ON); mode++) {
    memcpy(copy, args, size);
    prepare(&other, k, kernel, copy, mode, -1, original, false);
    run(&other, kernel, copy, real, original);
    for (int i = 0; i < all.n; i++)
      if (all.b[i].role == II_BUF_GRAD)
        check_close(kernel, "accumulating", &other, i, all.p[i], accumulates(mode, i));
    release(&other);
  }
  for (int only = 0; grads > 1 && only < all.n; only++) {
    if (all.b[only].role != II_BUF_GRAD) continue;
    memcpy(copy, args, size);
    prepare(&other, k, kernel, copy, ACC_OFF, only, original, false);
    run(&other, kernel, copy, real, original);
    check_close(kernel, "asked for alone", &other, only, all.p[only], false);
    release(&other);
  }
  release(&all);
}

/* Buffers that begin in the middle of a vector: the same results up to the order of sums. */
static void check_misaligned(ii_kctx *k, int kernel, const void *args, size_t size, kernel_fn real,
                             void *const *original, const call *want) {
  char copy[512];
  call other;
  memcpy(copy, args, size);
  prepare(&other, k, kernel, copy, ACC_AS_GIVEN, -1, original, true);
  run(&other, kernel, copy, real, original);
  for (int i = 0; i < other.n; i++)
    if (other.p[i] && other.b[i].role != II_BUF_IN)
      check_close(kernel, "misaligned", &other, i, want->p[i], false);
  release(&other);
}

/* Outputs that are another buffer of the same call (in place) cannot run on separate copies. */
static bool in_place(const ii_buf *b, int n) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      bool out = b[i].role == II_BUF_OUT || b[i].role == II_BUF_GRAD || b[i].role == II_BUF_STATE;
      bool known = b[i].role == II_BUF_INSIDE || b[j].role == II_BUF_INSIDE;
      if (i != j && out && !known && *b[i].at == *b[j].at) return true;
    }
  return false;
}

static int guarded(ii_kctx *k, int kernel, const void *args, size_t size, kernel_fn real) {
  char first_args[512], second_args[512];
  ii_buf list[II_BUFS_MAX];
  void *original[II_BUFS_MAX] = {0}, *target[II_BUFS_MAX];
  assert_true(size <= sizeof first_args);
  memcpy(first_args, args, size);
  int n = ii_kernel_buffers(kernel, first_args, list);
  if (!guard_is_on || in_place(list, n)) return real(k, args);
  bool has_gradients = false;
  for (int i = 0; i < n; i++) {
    target[i] = *list[i].at;
    original[i] = list[i].role == II_BUF_INSIDE || list[i].role == II_BUF_UNREAD
                      ? NULL
                      : fetched(k, target[i], buf_bytes(&list[i]));
    has_gradients |= list[i].role == II_BUF_GRAD;
  }
  call first, second;
  prepare(&first, k, kernel, first_args, ACC_AS_GIVEN, -1, original, false);
  run(&first, kernel, first_args, real, original);
  memcpy(second_args, args, size);
  prepare(&second, k, kernel, second_args, ACC_AS_GIVEN, -1, original, false);
  run(&second, kernel, second_args, real, original);
  for (int i = 0; i < n; i++)
    if (first.p[i] && memcmp(first.p[i], second.p[i], buf_bytes(&first.b[i])))
      fail_msg("%s: buffer %d differs from run to run", names[kernel], i);
  release(&second);
  if (k->device == II_CUDA) check_misaligned(k, kernel, args, size, real, original, &first);
  if (has_gradients) check_gradients(k, kernel, args, size, real, original);
  for (int i = 0; i < n; i++) {
    if (first.p[i] && first.b[i].role != II_BUF_IN && first.b[i].n)
      engine_did(k, ii_device_write(k, target[i], first.p[i], buf_bytes(&first.b[i])));
    free(original[i]);
  }
  release(&first);
  checked[kernel]++;
  return 0;
}

#define II_GUARD(engine, name, args)                                                               \
  int __real_ii_##engine##_##name(ii_kctx *k, const args *a);                                      \
  int __wrap_ii_##engine##_##name(ii_kctx *k, const args *a);                                      \
  static int real_##engine##_##name(ii_kctx *k, const void *a) {                                   \
    return __real_ii_##engine##_##name(k, a);                                                      \
  }                                                                                                \
  int __wrap_ii_##engine##_##name(ii_kctx *k, const args *a) {                                     \
    return guarded(k, II_K_##name, a, sizeof *a, real_##engine##_##name);                          \
  }
#define II_KERNEL(name, args) II_GUARD(cpu, name, args)
#include "kernels/kernels.def"
#undef II_KERNEL
#if II_HAVE_CUDA
#define II_KERNEL(name, args) II_GUARD(cuda, name, args)
#include "kernels/kernels.def"
#undef II_KERNEL
#endif
