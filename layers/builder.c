#include "layers/builder.h"
#include "autograd/rng.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ii_builder ii_builder_sub(const ii_builder *b, const char *fmt, ...) {
  ii_builder sub = *b;
  size_t n = strlen(sub.prefix);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(sub.prefix + n, sizeof sub.prefix - n, fmt, ap);
  va_end(ap);
  n = strlen(sub.prefix);
  II_ASSERT(n + 2 < sizeof sub.prefix, "parameter prefix %s is too long", sub.prefix);
  strcpy(sub.prefix + n, ".");
  return sub;
}

static void remember(const ii_builder *b, ii_init init) {
  ii_init_list *l = b->inits;
  if (l->count == l->capacity) {
    l->capacity = l->capacity ? 2 * l->capacity : 256;
    l->at = realloc(l->at, (size_t)l->capacity * sizeof *l->at);
    II_ASSERT(l->at, "out of host memory for %lld initialisations", (long long)l->capacity);
  }
  l->at[l->count++] = init;
}

static void full_name(const ii_builder *b, const char *name, char out[II_PARAM_NAME]) {
  int n = snprintf(out, II_PARAM_NAME, "%s%s", b->prefix, name);
  II_ASSERT(n < II_PARAM_NAME, "parameter name %s%s is too long", b->prefix, name);
}

ii_tensor *ii_build(const ii_builder *b, const char *name, ii_init init, int64_t d0, int64_t d1,
                    int64_t d2, int64_t d3) {
  char full[II_PARAM_NAME];
  const int64_t shape[4] = {d0, d1, d2, d3};
  int ndim = 0;
  while (ndim < 4 && shape[ndim]) ndim++;
  full_name(b, name, full);
  ii_tensor *t = ii_params_add(b->params, full, ndim, shape);
  if (t) remember(b, init);
  return t;
}

ii_tensor *ii_build_rows(const ii_builder *b, const char *name, ii_init init, ii_tensor *whole,
                         int64_t first, int64_t rows) {
  char full[II_PARAM_NAME];
  full_name(b, name, full);
  ii_tensor *t = ii_params_add_rows(b->params, full, whole, first, rows);
  if (t) remember(b, init);
  return t;
}

ii_tensor *ii_build_buffer(const ii_builder *b, const char *name, int64_t n, double value) {
  char full[II_PARAM_NAME];
  full_name(b, name, full);
  ii_tensor *t = ii_params_add_buffer(b->params, full, n ? 1 : 0, &n);
  if (t) remember(b, (ii_init){II_INIT_CONSTANT, value});
  return t;
}

static double draw(const ii_init *init, ii_rng *r) {
  double x;
  switch (init->kind) {
  case II_INIT_CONSTANT:
    return init->value;
  case II_INIT_UNIFORM:
    return ii_rng_range(r, -init->value, init->value);
  case II_INIT_TRUNC_NORMAL:
    do x = init->value * ii_rng_normal(r);
    while (fabs(x) > 2);
    return x;
  }
  return 0;
}

void ii_init_apply(ii_params *p, const ii_init_list *inits, uint64_t seed) {
  II_ASSERT(inits->count == p->count, "%lld initialisations for %lld parameters",
            (long long)inits->count, (long long)p->count);
  if (p->ctx->plan) return;
  for (int64_t i = 0; i < p->count; i++) {
    ii_tensor *t = p->at[i].value;
    int64_t n = ii_numel(t);
    double *host = malloc((size_t)(n ? n : 1) * sizeof *host);
    if (!host) {
      ii_error_set(&p->ctx->err, II_ERR_MEMORY, "out of host memory while initialising %s",
                   p->at[i].name);
      return;
    }
    ii_rng r = ii_rng_make(seed, II_RNG_INIT, ii_hash_string(p->at[i].name), 0);
    for (int64_t j = 0; j < n; j++) host[j] = draw(&inits->at[i], &r);
    ii_tensor_write_f64(p->ctx, t, host);
    free(host);
  }
  ii_params_refresh_low(p);
}
