/* From a decoded image to the numbers a network sees: the official train and evaluation transforms.
 *
 * Train (timm 0.6.11): random resized crop -> horizontal flip -> RandAugment, or else colour jitter
 * -> normalise.
 * Evaluation: resize the shorter side to the size -> centre crop -> normalise. */
#ifndef II_TRANSFORM_H
#define II_TRANSFORM_H
#include "data/randaugment.h"
#include "data/resize.h"
#include "data/stages.h"

typedef struct {
  int64_t size;           /* the result is size x size pixels */
  bool train;             /* the train transform; otherwise the evaluation transform */
  ii_filter filter;       /* of every resize */
  double mean[3], std[3]; /* of RGB in [0, 1] */

  /* train only */
  double scale[2];             /* part of the image's area a crop covers, lowest and highest */
  double ratio[2];             /* width / height of a crop, lowest and highest */
  double flip_prob;            /* of mirroring left to right */
  bool random_filter;          /* `filter` is drawn, bicubic or bilinear, for each image and each
                                * operation of RandAugment (timm's default) */
  ii_randaugment auto_augment; /* geometric operations fill with the mean colour */
  double jitter[4]; /* brightness, contrast, saturation, hue; without auto_augment alone */
  bool small_crop;  /* for images of about the wanted size (the official rule: size <= 32): a random
                     * window of the image with 4 black pixels added on each side replaces the
                     * random resized crop. An image too small even so gets as much black as needed
                     * (the official code stops there) */

  /* evaluation only */
  bool centre_crop; /* true: shorter side to `size`, then the centre; false: straight to a square,
                     * whatever the shape */
} ii_transform;

/* The official settings for a size: bicubic, ImageNet mean and std (0.485 0.456 0.406, 0.229 0.224
 * 0.225), scale 0.08..1, ratio 3/4..4/3, flip 0.5, small_crop when size <= 32, centre crop. */
ii_transform ii_transform_default(int64_t size, bool train);

/* Refuses settings that cannot work. Errors: II_ERR_ARG. */
ii_status ii_transform_check(const ii_transform *t, ii_error *err);

/* The crop of timm's RandomResizedCropAndInterpolation for an image of w x h: up to 10 tries of
 * area ~ U(scale) and aspect ratio ~ exp(U(log ratio)), else the largest centred box of an allowed
 * ratio. Draws from rng: area, ratio for each try, then top, left. */
ii_box ii_transform_random_box(const ii_transform *t, int64_t w, int64_t h, ii_rng *rng);

/* What a transform does with an image of w x h, as far as it is known before the pixels are. */
typedef struct {
  bool window;          /* resize.box is copied, black where it is outside of the image */
  ii_resize_job resize; /* without the source */
  ii_box source;        /* the part of the image that has an influence */
} ii_transform_plan;

/* Draws the plan for an image of w x h (> 0). rng is used by the train transform only (may be NULL
 * otherwise): the crop's draws, then one for the filter if that is random, then one for the flip.
 */
ii_transform_plan ii_transform_draw(const ii_transform *t, int64_t w, int64_t h, ii_rng *rng);

/* The operations of RandAugment or of colour jitter on one image, in their order. */
typedef struct {
  int count;
  ii_augment_step steps[II_AUGMENT_STEPS];
  ii_filter filters[II_AUGMENT_STEPS]; /* of the geometric ones */
} ii_transform_steps;

/* Draws them with what follows in rng behind the plan: those that ii_transform_part applies. None
 * with the evaluation transform, which takes nothing from rng. */
ii_transform_steps ii_transform_draw_steps(const ii_transform *t, ii_rng *rng);

/* The working memory of a transform: one per thread. */
typedef struct ii_transformer ii_transformer;
ii_status ii_transformer_new(ii_transformer **transformer, ii_error *err);
void ii_transformer_free(ii_transformer *transformer); /* NULL is allowed */

/* From now on adds its time to the stages RESIZE, AUGMENT and WRITE of watch, which is the
 * caller's; what passed before a call goes to RESIZE, so take a lap first. NULL: no more. */
void ii_transformer_measure(ii_transformer *transformer, ii_stopwatch *watch);

/* The transform of the part of an image: part holds at least plan->source and begins at (top, left)
 * of the image; rng goes on where the plan left it. out [size, size, 3] float32 (NHWC order) is
 * overwritten with (pixel / 255 - mean) / std, each step rounded to float32 as torchvision does.
 * Errors: II_ERR_MEMORY; II_ERR_FORMAT (see ii_resize). */
ii_status ii_transform_part(ii_transformer *transformer, const ii_transform *t,
                            const ii_transform_plan *plan, const ii_image *part, int64_t top,
                            int64_t left, ii_rng *rng, float *out, ii_error *err);

/* The same for a whole image, plan and all, without normalising: *pixels points to [size, size, 3]
 * bytes that belong to the transformer and live until its next call. */
ii_status ii_transform_pixels(ii_transformer *transformer, const ii_transform *t,
                              const ii_image *img, ii_rng *rng, const uint8_t **pixels,
                              ii_error *err);

/* The whole transform of a whole image. */
ii_status ii_transform_apply(ii_transformer *transformer, const ii_transform *t,
                             const ii_image *img, ii_rng *rng, float *out, ii_error *err);

#endif
