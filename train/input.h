/* The way of batches from the loader to the device.
 *
 * On a GPU two batches have room there: while the kernels work on one, the next is copied beside
 * them, straight from the loader's (pinned) memory. On the CPU there is one, filled when it is
 * asked for. What comes out is the same. One thread, the one that owns the context. */
#ifndef II_INPUT_H
#define II_INPUT_H
#include "autograd/ctx.h"
#include "data/loader.h"
#include "kernels/device.h"

typedef struct {
  int64_t epoch, index, count; /* as in ii_batch; count -1: the epoch of the loader is over */
  int64_t bad_files;           /* reported on the way to this batch */
  int64_t failed;
  ii_tensor *images, *labels; /* [count, size, size, 3] f32, [count] i32, on the device */
  ii_tensor *meta;            /* [count, II_META_VALUES] f32, or NULL */
  int32_t *host_labels;       /* [count], a copy */
  uint8_t *host_valid;        /* [count], a copy */
  int64_t *host_samples;      /* [count], a copy: the data set's numbers of the images */
  int64_t *host_keys;         /* [count], a copy: keys of the draws */
  ii_transfer transfer;
} ii_input_batch;

typedef struct {
  ii_ctx *ctx;
  int room; /* batches on the device: 1 or 2 */
  bool transfers;
  int64_t fetched, given; /* batches so far; fetched - given of them wait on the device */
  ii_input_batch at[2];
} ii_input;

/* Takes memory (II_MEM_INPUT) for batches of up to `batch` images of side `size`, and for their
 * metadata if `meta`. Returns the context's status; on an error *in is empty. Free with
 * ii_input_destroy, before the context and the loader. */
ii_status ii_input_init(ii_input *in, ii_ctx *c, int64_t batch, int64_t size, bool meta);
void ii_input_destroy(ii_input *in);

/* The next batch of the loader, whose uploads the kernels that follow wait for. Valid until the
 * next call. After the queued kernels that read it call ii_input_done. Errors: those of the loader
 * and the context. */
ii_status ii_input_next(ii_input *in, ii_loader *loader, const ii_input_batch **batch,
                        ii_error *err);
/* All kernels that read the present batch have been queued. */
void ii_input_done(ii_input *in);
/* Starts the upload of the batch after the present one, where there is room; to be called while the
 * device is busy. May wait for the loader. The same errors. */
ii_status ii_input_ahead(ii_input *in, ii_loader *loader, ii_error *err);

/* Makes the loader keep its batches where c's device copies them from by itself. */
void ii_input_loader_memory(ii_loader_config *config, ii_ctx *c);

#endif
