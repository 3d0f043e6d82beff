/* What the official training loop does to a batch between the upload and the forward pass: random
 * erasing of images, then mixup or CutMix of the batch with itself, with soft targets (timm 0.6.11,
 * modes `batch`). The numbers are drawn on the host, each from a Philox stream of its own, so they
 * depend on the seed, the epoch and the batch or sample alone; kernels do the work.
 *
 * What was drawn goes to a fixed place on the device, and the kernels read it there, so that a step
 * that was recorded once (kernels/device.h) serves all batches:
 *
 *     ii_mix mix = ii_mixer_draw(m, step, epoch, batch, keys, N);  on the host; sends it
 *     ii_mixer_apply(m, x);                                        from here on always the same
 *     ii_tensor *logits = ii_model_forward(model, x, meta, NULL);
 *     ii_tensor *loss = ii_mixer_loss(m, logits, labels); */
#ifndef II_MIX_H
#define II_MIX_H
#include "autograd/ops.h"
#include "kernels/device.h"
#include "train/config.h"

enum { II_ERASE_MAX = 16 }; /* largest data.erase_count */

/* What happens to one batch: image n and image N-1-n are mixed. */
typedef struct {
  bool cutmix;            /* the box of the partner is pasted, else all pixels are blended */
  double lam;             /* share of the image's own label; mixup: of its own pixels; 1 = alone */
  int64_t y0, y1, x0, x1; /* cutmix: the box, rows [y0,y1), columns [x0,x1) */
} ii_mix;

/* Whether training batches are mixed at all: data.mixup or data.cutmix is above 0. */
bool ii_mix_wanted(const ii_config *cfg);

/* Draws for batch number `batch` of an epoch, of images of height x width: with probability
 * data.mix_prob a mixture, CutMix with data.mix_switch_prob where both are on, its share from
 * Beta(alpha, alpha). CutMix's box has sides sqrt(1-lam) of the image's, cut off at the border, and
 * lam becomes what is left. */
ii_mix ii_mix_draw(const ii_config *cfg, int64_t epoch, int64_t batch, int64_t height,
                   int64_t width);

/* The box around (cy, cx) for a share lam, into m->y0 to m->x1, and m->lam corrected. */
void ii_mix_box(ii_mix *m, double lam, int64_t height, int64_t width, int64_t cy, int64_t cx);

/* Draws the rectangles that are erased in one image, as image number `image` of its batch: with
 * probability data.erase_prob 1 to data.erase_count of them, of 2 % to a third of the image (in
 * all), height/width from 0.3 to 1/0.3; what does not fit inside the image after ten tries is left
 * out. Returns how many, at most II_ERASE_MAX. */
int64_t ii_erase_draw(const ii_config *cfg, int64_t epoch, int64_t sample, int32_t image,
                      int64_t height, int64_t width, ii_erase_rect rects[II_ERASE_MAX]);

/* What the device is told before each step; rectangles follow. */
typedef struct {
  int64_t step; /* number of the step over the whole run: for drop path and for reports */
  ii_mixture mix;
  int32_t rects, unused;
} ii_step_values;

typedef struct {
  ii_ctx *ctx;
  const ii_config *cfg;
  int64_t batch, height, width;
  int64_t most; /* rectangles in a batch */
  ii_upload upload;
  ii_tensor *values; /* an ii_step_values and `most` rectangles, on the device */
} ii_mixer;

/* For batches of `batch` images of height x width; *cfg must outlive it. Drop path and the reports
 * of kernels go by the step that was drawn last from now on (ctx->step_at). Returns the context's
 * status; on an error *m is empty. Free with ii_mixer_destroy, before the context. */
ii_status ii_mixer_init(ii_mixer *m, ii_ctx *c, const ii_config *cfg, int64_t batch, int64_t height,
                        int64_t width);
void ii_mixer_destroy(ii_mixer *m);

/* Draws for a batch of count <= batch images and queues the upload of what was drawn. keys[count]:
 * the keys of the draws (data/sampler.h), on the host, not needed after the call. Waits for the
 * upload before the last at most. Returns the mixture, for those who want to know. */
ii_mix ii_mixer_draw(ii_mixer *m, int64_t step, int64_t epoch, int64_t batch, const int64_t *keys,
                     int64_t count);

/* Erases and mixes x[N,height,width,C] (F32 or F64, on the device) in place. */
void ii_mixer_apply(const ii_mixer *m, ii_tensor *x);

/* The mean loss of logits[N,classes] for labels[N] int32: cross entropy with the soft targets of
 * the mixture, smoothed by train.label_smoothing; where the configuration mixes nothing, cross
 * entropy with label smoothing (the official code's two criteria). */
ii_tensor *ii_mixer_loss(const ii_mixer *m, ii_tensor *logits, ii_tensor *labels);

#endif
