/* What the input pipeline of a configuration makes of images, as a table of pictures: one row an
 * image; columns: the picture as it is, the evaluation transform, the training transform as it is
 * drawn in epochs 0, 1, ..., and for a data set, where the configuration erases or mixes, the same
 * draws behind that.
 *
 * The random numbers are those of training: stream (train.seed, epoch, key). Of a data set the rows
 * are the beginning of the first batch of epoch 0, with their keys, so that the last columns show
 * for epoch 0 what the first training step gets, and for epoch e the draws of its first batch on
 * the same images. Image files have the keys 0, 1, ... in their order. */
#ifndef II_PREVIEW_H
#define II_PREVIEW_H
#include "data/loader.h"
#include "train/mix.h"

typedef struct {
  const ii_config *config; /* complete and checked */
  const char *const *files;
  int64_t n_files; /* 0: the training images of the configuration */
  int64_t count;   /* rows, of a data set; 1 to data.batch_size */
  int64_t draws;   /* epochs, 0 or more */
  int64_t cell;    /* side of a picture in the sheet; 0: see ii_preview_cell_size */
} ii_preview_options;

typedef enum {
  II_PREVIEW_ORIGINAL,
  II_PREVIEW_EVAL,
  II_PREVIEW_DRAW, /* of one epoch, alone */
  II_PREVIEW_BATCH /* of one epoch, erased and mixed in its batch */
} ii_preview_kind;

typedef struct {
  ii_preview_kind kind;
  int64_t epoch;   /* of DRAW and BATCH */
  ii_image pixels; /* ORIGINAL: scaled to fit into a cell; others: data.img_size squared, BATCH
                    * rounded to the nearest value that a byte has */
  ii_transform_plan plan;   /* EVAL, DRAW */
  ii_transform_steps steps; /* DRAW */
  ii_mix mix;               /* BATCH */
  int64_t partner;          /* BATCH, mixed: the sample that it is mixed with */
  int64_t erased;           /* BATCH: rectangles of random noise or colour */
  ii_erase_rect rects[II_ERASE_MAX];
} ii_preview_cell;

typedef struct {
  char name[II_PATH_MAX]; /* of the image, inside its data set */
  int64_t sample, key;    /* of a file: its number */
  int64_t width, height;  /* upright, as training sees it */
  int32_t label;          /* -1: a file */
} ii_preview_row;

typedef struct {
  int64_t img_size, cell;
  int64_t rows, columns;
  ii_preview_row *row;    /* [rows] */
  ii_preview_cell *cells; /* [rows, columns] */
} ii_preview;

/* The side of pictures in the sheet when none is asked for: data.img_size, or the lowest multiple
 * of it from 96 on, or 256 where it is larger. */
int64_t ii_preview_cell_size(int64_t img_size);

/* Computes all pictures, on the processor. Errors: those of the data set and of decoding, with the
 * image's name; II_ERR_ARG (count, draws, cell); II_ERR_MEMORY. Free with ii_preview_free. */
ii_status ii_preview_make(const ii_preview_options *options, ii_preview *p, ii_error *err);
void ii_preview_free(ii_preview *p);

/* What was drawn for a cell, a line for each thing, with line ends in between: "crop 312x200 at
 * 13,40" (width, height, left, top), "mirrored", "Rotate -26.9", ... out has `size` bytes. */
void ii_preview_describe(const ii_preview *p, int64_t row, int64_t column, char *out, size_t size);

/* "original", "evaluation", "epoch 0", "epoch 0 in its batch". */
void ii_preview_heading(const ii_preview *p, int64_t column, char *out, size_t size);

/* Puts all into one picture; pictures whose side is not `cell` are scaled to it. With captions the
 * original also shows the outlines of the crops, in the colours of the marks over their columns.
 * *at (may be NULL) gets the place of each cell's upper left corner, [rows, columns], freed by the
 * caller. Errors: II_ERR_ARG (more than 2^28 pixels), II_ERR_MEMORY. */
ii_status ii_preview_sheet(const ii_preview *p, bool captions, ii_image *sheet, ii_box **at,
                           ii_error *err);

#endif
