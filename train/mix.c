#include "train/mix.h"
#include <math.h>
#include "autograd/kernel_call.h"
#include "autograd/rng.h"

/* timm's RandomErasing, which the official configuration does not change. */
static const double MIN_AREA = 0.02, MAX_AREA = 1.0 / 3.0, MIN_ASPECT = 0.3;
enum { TRIES = 10, RECTS_AT_ONCE = 64 };

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

static void erase(ii_ctx *c, const ii_config *cfg, int64_t epoch, const int64_t *samples,
                  ii_tensor *x) {
  ii_erase_rect rects[RECTS_AT_ONCE];
  ii_erase_args a = {.real = x->dtype, .N = x->shape[0], .H = x->shape[1], .W = x->shape[2]};
  a.C = x->shape[3], a.mode = (ii_erase_mode)cfg->data.erase_mode;
  a.rects = rects, a.x = ii_data(x);
  for (int64_t n = 0; n < a.N; n++) {
    a.count += ii_erase_draw(cfg, epoch, samples[n], (int32_t)n, a.H, a.W, rects + a.count);
    if (a.count == 0 || (n + 1 < a.N && a.count <= RECTS_AT_ONCE - II_ERASE_MAX)) continue;
    ii_run_erase(c, &a);
    a.count = 0;
  }
}

ii_mix ii_mix_apply(ii_ctx *c, const ii_config *cfg, int64_t epoch, int64_t batch,
                    const int64_t *samples, ii_tensor *x) {
  ii_mix m = {.lam = 1};
  if (!ii_ok(c)) return m;
  if (cfg->data.erase_prob > 0) erase(c, cfg, epoch, samples, x);
  m = ii_mix_draw(cfg, epoch, batch, x->shape[1], x->shape[2]);
  if (m.lam == 1) return m;
  ii_mix_batch_args a = {.real = x->dtype, .N = x->shape[0], .H = x->shape[1], .W = x->shape[2]};
  a.C = x->shape[3], a.cutmix = m.cutmix, a.lam = m.lam;
  a.y0 = m.y0, a.y1 = m.y1, a.x0 = m.x0, a.x1 = m.x1, a.x = ii_data(x);
  ii_run_mix_batch(c, &a);
  return m;
}

ii_tensor *ii_mix_loss(ii_ctx *c, const ii_config *cfg, const ii_mix *m, ii_tensor *logits,
                       ii_tensor *labels) {
  const double smoothing = cfg->train.label_smoothing;
  if (!ii_mix_wanted(cfg) || !ii_ok(c))
    return ii_smooth_cross_entropy(c, logits, labels, smoothing);
  ii_tensor *targets = ii_tensor_new(c, c->real, 2, logits->shape);
  if (ii_ok(c))
    ii_run_mix_targets(c, &(ii_mix_targets_args){.real = c->real,
                                                 .N = logits->shape[0],
                                                 .C = logits->shape[1],
                                                 .lam = m->lam,
                                                 .smoothing = smoothing,
                                                 .labels = ii_data(labels),
                                                 .targets = ii_data(targets)});
  return ii_soft_cross_entropy(c, logits, targets);
}
