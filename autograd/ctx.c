#include "autograd/ctx.h"
#include "autograd/kernel_call.h"
#include "autograd/tape.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

ii_status ii_device_parse(const char *s, ii_device *out, int *index, ii_error *err) {
  char rest;
  *index = 0;
  if (!strcmp(s, "cpu")) return *out = II_CPU, II_OK;
  if (!strcmp(s, "cuda")) return *out = II_CUDA, II_OK;
  if (!strncmp(s, "cuda:", 5) && isdigit((unsigned char)s[5]) &&
      sscanf(s + 5, "%3d%c", index, &rest) == 1)
    return *out = II_CUDA, II_OK;
  return ii_error_set(err, II_ERR_ARG, "unknown device '%s': use cpu, cuda or cuda:1", s);
}

ii_ctx *ii_ctx_open(const ii_ctx_options *o, ii_error *err) {
  if (o->device == II_CPU && o->compute == II_F16) {
    ii_error_set(err, II_ERR_UNSUPPORTED,
                 "the CPU engine does not compute in fp16: use bf16 or none, or --device cuda");
    return NULL;
  }
  ii_ctx *c = calloc(1, sizeof *c);
  if (!c) {
    ii_error_set(err, II_ERR_MEMORY, "out of host memory");
    return NULL;
  }
  const ii_engine_options e = {o->device, o->index, o->threads};
  c->k.device = o->device;
  if (!(o->plan && o->device == II_CUDA) && ii_engine_open(&c->k, &e)) {
    ii_error_set(err, II_ERR_DEVICE, "%s", c->k.error);
    free(c);
    return NULL;
  }
  ii_pool_init(&c->pool, o->plan ? NULL : &c->k);
  c->real = o->real;
  c->compute = o->compute;
  c->plan = o->plan;
  c->seed = o->seed;
  II_ASSERT(o->real == II_F32 || o->real == II_F64, "real type %d", (int)o->real);
  II_ASSERT(o->compute == o->real ||
                (o->real == II_F32 && (o->compute == II_BF16 || o->compute == II_F16)),
            "compute type %s with real type %s", ii_dtype_name(o->compute), ii_dtype_name(o->real));
  return c;
}

/* ---- scopes ---- */

ii_scope ii_scope_begin(ii_ctx *c) {
  return c->n_owned;
}

void ii_scope_end(ii_ctx *c, ii_scope s, ii_tensor *const *keep, int n) {
  int64_t kept = s;
  II_ASSERT(s <= c->n_owned, "scope %lld ends after its parent", (long long)s);
  for (int64_t i = s; i < c->n_owned; i++) {
    ii_block *b = c->owned[i];
    bool stays = false;
    for (int k = 0; k < n; k++) stays |= keep[k] && keep[k]->mem == b;
    if (stays)
      c->owned[kept++] = b;
    else
      ii_block_release(b);
  }
  c->n_owned = kept;
}

ii_tensor *ii_scope_return(ii_ctx *c, ii_scope s, ii_tensor *result) {
  ii_scope_end(c, s, &result, 1);
  return result;
}

/* ---- kernel calls ---- */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool ii_kernel_begin(ii_ctx *c, double *t0) {
  if (c->plan || !ii_ok(c)) return false;
  *t0 = c->profile ? now() : 0;
  return true;
}

static const char *const kernel_names[] = {
#define II_KERNEL(name, args) #name,
#include "kernels/kernels.def"
#undef II_KERNEL
};

_Static_assert(II_KERNEL_COUNT <= 64, "ii_profile has 64 entries");

const char *ii_profile_name(int i) {
  return i < II_KERNEL_COUNT ? kernel_names[i] : NULL;
}

void ii_kernel_end(ii_ctx *c, int kernel, double t0, int status) {
  if (status)
    ii_error_set(&c->err, II_ERR_DEVICE, "kernel %s failed: %s", kernel_names[kernel], c->k.error);
  if (c->profile) {
    if (!status) ii_device_sync(&c->k); /* a GPU has only been told what to do so far */
    c->profile->seconds[kernel] += now() - t0;
    c->profile->calls[kernel]++;
  }
}
