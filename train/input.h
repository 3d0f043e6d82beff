/* The way of batches from the loader to the device.
 *
 * On a GPU the next batch is copied beside the kernels, straight from the loader's (pinned) memory,
 * to a waiting place; when its turn comes it is copied from there to the place that kernels read,
 * which is the same for every batch, so that recorded steps find it (77 MB for 128 images of 224
 * pixels: 0.05 ms at 3 TB/s for reading and writing it). On the CPU there is only that place,
 * filled when a batch is asked for. What comes out is the same. One thread, the one that owns the
 * context. */
#ifndef II_INPUT_H
#define II_INPUT_H
#include "autograd/ctx.h"
#include "data/loader.h"
#include "kernels/device.h"

typedef struct {
  int64_t epoch, index, count; /* as in ii_batch; count -1: the epoch of the loader is over */
  int64_t bad_files;           /* reported on the way to this batch */
  int64_t failed;
  ii_tensor *images, *labels; /* [count, size, size, 3] f32, [count] i32, on the device: the same
                                 tensors in every batch */
  ii_tensor *meta;            /* [count, II_META_VALUES] f32, or NULL */
  int32_t *host_labels;       /* [count], a copy */
  uint8_t *host_valid;        /* [count], a copy */
  int64_t *host_samples;      /* [count], a copy: the data set's numbers of the images */
  int64_t *host_keys;         /* [count], a copy: keys of the draws */
} ii_input_batch;

enum { II_INPUT_PARTS = 3 }; /* images, labels, metadata */

typedef struct {
  ii_ctx *ctx;
  bool ahead; /* there is a waiting place */
  bool transfers;
  int64_t fetched, given; /* batches so far; fetched - given of them wait on the device */
  ii_input_batch at[2];   /* the present one and the next, in turn */
  ii_tensor *place[II_INPUT_PARTS], *waiting[II_INPUT_PARTS]; /* NULL: no such part or place */
  ii_transfer transfer;
} ii_input;

/* Takes memory (II_MEM_INPUT) for batches of up to `batch` images of side `size`, and for their
 * metadata if `meta`. Returns the context's status; on an error *in is empty. Free with
 * ii_input_destroy, before the context and the loader. */
ii_status ii_input_init(ii_input *in, ii_ctx *c, int64_t batch, int64_t size, bool meta);
void ii_input_destroy(ii_input *in);

/* The next batch of the loader, whose uploads the kernels that follow wait for; what kernels queued
 * before read of the batch before is left alone. Valid until the next call. Errors: those of the
 * loader and the context. */
ii_status ii_input_next(ii_input *in, ii_loader *loader, const ii_input_batch **batch,
                        ii_error *err);
/* Starts the upload of the batch after the present one, where there is room; to be called while the
 * device is busy. May wait for the loader. The same errors. */
ii_status ii_input_ahead(ii_input *in, ii_loader *loader, ii_error *err);

/* Makes the loader keep its batches where c's device copies them from by itself. */
void ii_input_loader_memory(ii_loader_config *config, ii_ctx *c);

#endif
