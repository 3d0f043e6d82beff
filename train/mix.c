#include "train/mix.h"
#include <math.h>
#include <stddef.h>
#include <string.h>
#include "autograd/kernel_call.h"
#include "autograd/rng.h"

/* timm's RandomErasing, which the official configuration does not change. */
static const double MIN_AREA = 0.02, MAX_AREA = 1.0 / 3.0, MIN_ASPECT = 0.3;
enum { TRIES = 10 };

bool ii_mix_wanted(const ii_config *cfg) {
  return cfg->data.mixup > 0 || cfg->data.cutmix > 0;
}

static int64_t within(int64_t v, int64_t most) {
  return v < 0 ? 0 : v > most ? most : v;
}

void ii_mix_box(ii_mix *m, double lam, int64_t height, int64_t width, int64_t cy, int64_t cx) {
  const double side = sqrt(1.0 - lam);
  const int64_t h = (int64_t)((double)height * side), w = (int64_t)((double)width * side);
  m->y0 = within(cy - h / 2, height), m->y1 = within(cy + h / 2, height);
  m->x0 = within(cx - w / 2, width), m->x1 = within(cx + w / 2, width);
  const int64_t area = (m->y1 - m->y0) * (m->x1 - m->x0);
  m->lam = 1.0 - (double)area / (double)(height * width);
}

ii_mix ii_mix_draw(const ii_config *cfg, int64_t epoch, int64_t batch, int64_t height,
                   int64_t width) {
  const double mixup = cfg->data.mixup, cutmix = cfg->data.cutmix;
  ii_rng r = ii_rng_make((uint64_t)cfg->train.seed, II_RNG_MIX, (uint64_t)epoch, (uint64_t)batch);
  ii_mix m = {.lam = 1};
  if (!ii_mix_wanted(cfg) || ii_rng_uniform(&r) >= cfg->data.mix_prob) return m;
  m.cutmix = mixup == 0 || (cutmix > 0 && ii_rng_uniform(&r) < cfg->data.mix_switch_prob);
  const double alpha = m.cutmix ? cutmix : mixup;
  m.lam = ii_rng_beta(&r, alpha, alpha);
  if (!m.cutmix || m.lam == 1) return m;
  const int64_t cy = (int64_t)ii_rng_below(&r, (uint64_t)height);
  const int64_t cx = (int64_t)ii_rng_below(&r, (uint64_t)width);
  ii_mix_box(&m, m.lam, height, width, cy, cx);
  return m;
}

/* One rectangle; false when ten tries gave none that fits. */
static bool draw_rect(ii_rng *r, double area, int64_t height, int64_t width, ii_erase_rect *rect) {
  for (int i = 0; i < TRIES; i++) {
    const double target = area * ii_rng_range(r, MIN_AREA, MAX_AREA);
    const double aspect = exp(ii_rng_range(r, log(MIN_ASPECT), -log(MIN_ASPECT)));
    const int64_t h = (int64_t)rint(sqrt(target * aspect));
    const int64_t w = (int64_t)rint(sqrt(target / aspect));
    if (h >= height || w >= width) continue;
    rect->height = (int32_t)h, rect->width = (int32_t)w;
    rect->top = (int32_t)ii_rng_below(r, (uint64_t)(height - h + 1));
    rect->left = (int32_t)ii_rng_below(r, (uint64_t)(width - w + 1));
    return true;
  }
  return false;
}

int64_t ii_erase_draw(const ii_config *cfg, int64_t epoch, int64_t sample, int32_t image,
                      int64_t height, int64_t width, ii_erase_rect rects[II_ERASE_MAX]) {
  ii_rng r =
      ii_rng_make((uint64_t)cfg->train.seed, II_RNG_ERASE, (uint64_t)epoch, (uint64_t)sample);
  int64_t n = 0;
  if (ii_rng_uniform(&r) >= cfg->data.erase_prob) return 0;
  const int64_t count = 1 + (int64_t)ii_rng_below(&r, (uint64_t)cfg->data.erase_count);
  for (int64_t i = 0; i < count; i++) {
    /* the draws here are blocks {i, 0, ...} of the stream; part 0 is theirs */
    ii_erase_rect rect = {.image = image, .part = (uint32_t)i + 1, .noise = ii_rng_stream(&r)};
    if (draw_rect(&r, (double)(height * width) / (double)count, height, width, &rect))
      rects[n++] = rect;
  }
  return n;
}

/* ---- on the device ----------------------------------------------------------------------------*/

_Static_assert(sizeof(ii_step_values) % 8 == 0 && sizeof(ii_erase_rect) % 4 == 0,
               "tensors of words");

static void engine_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

/* Where a member of the values stands on the device; NULL in plan mode. */
static const void *at(const ii_mixer *m, size_t offset) {
  const char *base = ii_data(m->values);
  return base ? base + offset : NULL;
}

ii_status ii_mixer_init(ii_mixer *m, ii_ctx *c, const ii_config *cfg, int64_t batch, int64_t height,
                        int64_t width) {
  *m = (ii_mixer){.ctx = c, .cfg = cfg, .batch = batch, .height = height, .width = width};
  m->most = cfg->data.erase_prob > 0 ? batch * cfg->data.erase_count : 0;
  const size_t bytes = sizeof(ii_step_values) + (size_t)m->most * sizeof(ii_erase_rect);
  m->values = ii_tensor_persistent(c, II_I32, 1, (int64_t[]){(int64_t)(bytes / 4)}, II_MEM_INPUT);
  if (!c->plan && ii_ok(c)) engine_did(c, ii_upload_init(&c->k, &m->upload, bytes));
  if (!ii_ok(c)) {
    ii_mixer_destroy(m);
    return c->err.status;
  }
  c->step_at = at(m, offsetof(ii_step_values, step));
  return II_OK;
}

void ii_mixer_destroy(ii_mixer *m) {
  ii_ctx *c = m->ctx;
  if (!c) return;
  c->step_at = NULL;
  if (!c->plan) ii_upload_destroy(&c->k, &m->upload);
  ii_tensor_free(m->values);
  *m = (ii_mixer){0};
}

ii_mix ii_mixer_draw(ii_mixer *m, int64_t step, int64_t epoch, int64_t batch, const int64_t *keys,
                     int64_t count) {
  ii_ctx *c = m->ctx;
  const ii_mix mix = ii_mix_draw(m->cfg, epoch, batch, m->height, m->width);
  void *host = NULL;
  II_ASSERT(count <= m->batch, "%lld images in a batch of %lld", (long long)count,
            (long long)m->batch);
  if (c->plan || !ii_ok(c)) return mix;
  engine_did(c, ii_upload_begin(&c->k, &m->upload, &host));
  if (!ii_ok(c)) return mix;
  ii_step_values *v = host;
  ii_erase_rect *rects = (void *)(v + 1);
  *v = (ii_step_values){.step = step, .mix = ii_mixture_of(mix.lam, mix.cutmix)};
  v->mix.y0 = mix.y0, v->mix.y1 = mix.y1, v->mix.x0 = mix.x0, v->mix.x1 = mix.x1;
  for (int64_t n = 0; m->most && n < count; n++) {
    ii_erase_rect drawn[II_ERASE_MAX];
    const int64_t some =
        ii_erase_draw(m->cfg, epoch, keys[n], (int32_t)n, m->height, m->width, drawn);
    memcpy(rects + v->rects, drawn, (size_t)some * sizeof *drawn);
    v->rects += (int32_t)some;
  }
  engine_did(c, ii_upload_send(&c->k, &m->upload, ii_data(m->values),
                               sizeof *v + (size_t)v->rects * sizeof *rects));
  return mix;
}

void ii_mixer_apply(const ii_mixer *m, ii_tensor *x) {
  ii_ctx *c = m->ctx;
  const int64_t N = x->shape[0], H = x->shape[1], W = x->shape[2], C = x->shape[3];
  if (m->most)
    ii_run_erase(c, &(ii_erase_args){.real = x->dtype,
                                     .N = N,
                                     .H = H,
                                     .W = W,
                                     .C = C,
                                     .mode = (ii_erase_mode)m->cfg->data.erase_mode,
                                     .most = m->most,
                                     .count = at(m, offsetof(ii_step_values, rects)),
                                     .rects = at(m, sizeof(ii_step_values)),
                                     .x = ii_data(x)});
  if (ii_mix_wanted(m->cfg))
    ii_run_mix_batch(c, &(ii_mix_batch_args){.real = x->dtype,
                                             .N = N,
                                             .H = H,
                                             .W = W,
                                             .C = C,
                                             .mix = at(m, offsetof(ii_step_values, mix)),
                                             .x = ii_data(x)});
}

ii_tensor *ii_mixer_loss(const ii_mixer *m, ii_tensor *logits, ii_tensor *labels) {
  ii_ctx *c = m->ctx;
  const double smoothing = m->cfg->train.label_smoothing;
  if (!ii_mix_wanted(m->cfg)) return ii_smooth_cross_entropy(c, logits, labels, smoothing);
  ii_tensor *targets = ii_tensor_new(c, c->real, 2, logits->shape);
  ii_run_mix_targets(c, &(ii_mix_targets_args){.real = c->real,
                                               .N = logits->shape[0],
                                               .C = logits->shape[1],
                                               .smoothing = smoothing,
                                               .mix = at(m, offsetof(ii_step_values, mix)),
                                               .labels = ii_data(labels),
                                               .targets = ii_data(targets)});
  return ii_soft_cross_entropy(c, logits, targets);
}
