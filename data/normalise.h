/* Bytes to normalised values. Not for other folders. */
#ifndef II_NORMALISE_H
#define II_NORMALISE_H
#include <stdbool.h>
#include <stdint.h>

/* Starts as {0}; made by ii_normaliser_set. */
typedef struct {
  float value[256][4]; /* of a byte, by channel */
  double mean[3], std[3];
  float minus[3], divisor[3], inverse[3]; /* in single precision: mean, std, 1 / std */
  bool by_products;                       /* products give the same bits */
} ii_normaliser;

/* (byte / 255 - mean) / std in single precision, each operation rounded, as torchvision's ToTensor
 * and Normalize. std > 0. Costs nothing when mean and std are those of the last call. */
void ii_normaliser_set(ii_normaliser *n, const double mean[3], const double std[3]);

/* rgb [pixels, 3] -> out [pixels, 3] */
void ii_normalise(const ii_normaliser *n, const uint8_t *rgb, int64_t pixels, float *out);

#endif
