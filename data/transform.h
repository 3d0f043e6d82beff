/* From a decoded image to the numbers a network sees: the official train and evaluation transforms.
 *
 * Train (timm 0.6.11): random resized crop -> horizontal flip -> normalise.
 * Evaluation: resize the shorter side to the size -> centre crop -> normalise. */
#ifndef II_TRANSFORM_H
#define II_TRANSFORM_H
#include "autograd/rng.h"
#include "data/resize.h"

typedef struct {
  int64_t size;           /* the result is size x size pixels */
  bool train;             /* the train transform; otherwise the evaluation transform */
  ii_filter filter;       /* of every resize */
  double mean[3], std[3]; /* of RGB in [0, 1] */

  /* train only */
  double scale[2];  /* part of the image's area a crop covers, lowest and highest */
  double ratio[2];  /* width / height of a crop, lowest and highest */
  double flip_prob; /* of mirroring left to right */
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

/* The working memory of a transform: one per thread. */
typedef struct ii_transformer ii_transformer;
ii_status ii_transformer_new(ii_transformer **transformer, ii_error *err);
void ii_transformer_free(ii_transformer *transformer); /* NULL is allowed */

/* The geometric part: *pixels points to [size, size, 3] bytes that belong to the transformer and
 * live until its next call. rng is used by the train transform only (may be NULL otherwise); the
 * order of its draws is the crop's, then one for the flip. Errors: II_ERR_MEMORY. */
ii_status ii_transform_pixels(ii_transformer *transformer, const ii_transform *t,
                              const ii_image *img, ii_rng *rng, const uint8_t **pixels,
                              ii_error *err);

/* The whole transform: out [size, size, 3] float32 (NHWC order), overwritten with
 * (pixel / 255 - mean) / std, each step rounded to float32 as torchvision does.
 * Errors: II_ERR_MEMORY. */
ii_status ii_transform_apply(ii_transformer *transformer, const ii_transform *t,
                             const ii_image *img, ii_rng *rng, float *out, ii_error *err);

#endif
