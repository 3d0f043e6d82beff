#include "train/input.h"
#include <stdlib.h>
#include <string.h>

static void engine_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

static ii_status context_status(const ii_ctx *c, ii_error *err) {
  return ii_ok(c) ? II_OK : ii_error_set(err, c->err.status, "%s", c->err.text);
}

static void init_host(ii_input *in, ii_input_batch *b, int64_t batch) {
  b->images = in->place[0];
  b->labels = in->place[1];
  b->meta = in->place[2];
  b->host_labels = malloc((size_t)batch * sizeof *b->host_labels);
  b->host_valid = malloc((size_t)batch);
  b->host_samples = malloc((size_t)batch * sizeof *b->host_samples);
  b->host_keys = malloc((size_t)batch * sizeof *b->host_keys);
  if (!b->host_labels || !b->host_valid || !b->host_samples || !b->host_keys)
    ii_error_set(&in->ctx->err, II_ERR_MEMORY, "out of host memory for a batch");
}

static void init_place(ii_ctx *c, ii_tensor *part[], int64_t batch, int64_t size, bool meta) {
  const int64_t images[] = {batch, size, size, 3}, values[] = {batch, II_META_VALUES};
  part[0] = ii_tensor_persistent(c, II_F32, 4, images, II_MEM_INPUT);
  part[1] = ii_tensor_persistent(c, II_I32, 1, &batch, II_MEM_INPUT);
  if (meta) part[2] = ii_tensor_persistent(c, II_F32, 2, values, II_MEM_INPUT);
}

ii_status ii_input_init(ii_input *in, ii_ctx *c, int64_t batch, int64_t size, bool meta) {
  *in = (ii_input){.ctx = c, .ahead = c->k.device == II_CUDA, .transfers = !c->plan};
  init_place(c, in->place, batch, size, meta);
  if (in->ahead) init_place(c, in->waiting, batch, size, meta);
  for (int i = 0; i < 2 && ii_ok(c); i++) init_host(in, &in->at[i], batch);
  if (in->transfers && ii_ok(c)) engine_did(c, ii_transfer_init(&c->k, &in->transfer));
  /* the first upload comes after what is being done to the new memory */
  if (in->transfers && ii_ok(c)) engine_did(c, ii_transfer_release(&c->k, &in->transfer));
  if (!ii_ok(c)) ii_input_destroy(in);
  return c->err.status;
}

void ii_input_destroy(ii_input *in) {
  /* the loader's memory must outlive the copies from it */
  if (in->transfers) {
    ii_transfer_host_done(&in->ctx->k, &in->transfer);
    ii_transfer_destroy(&in->ctx->k, &in->transfer);
  }
  for (int i = 0; i < II_INPUT_PARTS; i++) {
    ii_tensor_free(in->place[i]);
    ii_tensor_free(in->waiting[i]);
  }
  for (int i = 0; i < 2; i++) {
    free(in->at[i].host_labels);
    free(in->at[i].host_valid);
    free(in->at[i].host_samples);
    free(in->at[i].host_keys);
  }
  *in = (ii_input){0};
}

/* Bytes of `count` images, labels or metadata. */
static size_t part_bytes(ii_tensor *t, int64_t count) {
  t->shape[0] = count;
  return (size_t)ii_numel(t) * ii_dtype_size(t->dtype);
}

/* Starts the copy of a part to where the next batch waits (or, on the CPU, to its place). */
static void upload(ii_input *in, int part, const void *host, int64_t count) {
  ii_ctx *c = in->ctx;
  ii_tensor *to = in->ahead ? in->waiting[part] : in->place[part];
  if (to && ii_ok(c))
    engine_did(c,
               ii_transfer_start(&c->k, &in->transfer, ii_data(to), host, part_bytes(to, count)));
}

/* Takes the loader's next batch and starts its uploads. */
static ii_status fetch(ii_input *in, ii_loader *loader, ii_error *err) {
  ii_ctx *c = in->ctx;
  ii_input_batch *to = &in->at[in->fetched % 2];
  const ii_batch *b;
  const int64_t bad_before = ii_loader_get_stats(loader).bad_files;
  /* the loader is about to get the memory of the batch before back */
  engine_did(c, ii_transfer_host_done(&c->k, &in->transfer));
  II_TRY(context_status(c, err));
  II_TRY(ii_loader_next(loader, &b, err));
  in->fetched++;
  to->bad_files = ii_loader_get_stats(loader).bad_files - bad_before;
  to->count = b ? b->count : -1;
  if (!b) return II_OK;
  to->epoch = b->epoch;
  to->index = b->index;
  to->failed = b->failed;
  memcpy(to->host_labels, b->labels, (size_t)b->count * sizeof *b->labels);
  memcpy(to->host_valid, b->valid, (size_t)b->count);
  memcpy(to->host_samples, b->samples, (size_t)b->count * sizeof *b->samples);
  memcpy(to->host_keys, b->keys, (size_t)b->count * sizeof *b->keys);
  upload(in, 0, b->images, b->count);
  upload(in, 1, b->labels, b->count);
  upload(in, 2, b->meta, b->count);
  return context_status(c, err);
}

/* Queues the copies to the place that kernels read; the waiting place is free after them. */
static void take_place(ii_input *in, int64_t count) {
  ii_ctx *c = in->ctx;
  engine_did(c, ii_transfer_acquire(&c->k, &in->transfer));
  for (int i = 0; i < II_INPUT_PARTS && ii_ok(c); i++) {
    if (!in->place[i]) continue;
    const size_t bytes = part_bytes(in->place[i], count);
    if (in->ahead)
      engine_did(c, ii_device_copy(&c->k, ii_data(in->place[i]), ii_data(in->waiting[i]), bytes));
  }
  if (ii_ok(c)) engine_did(c, ii_transfer_release(&c->k, &in->transfer));
}

ii_status ii_input_next(ii_input *in, ii_loader *loader, const ii_input_batch **batch,
                        ii_error *err) {
  if (in->fetched == in->given) II_TRY(fetch(in, loader, err));
  ii_input_batch *b = &in->at[in->given++ % 2];
  if (b->count > 0) take_place(in, b->count);
  *batch = b;
  return context_status(in->ctx, err);
}

ii_status ii_input_ahead(ii_input *in, ii_loader *loader, ii_error *err) {
  return in->ahead && in->fetched == in->given ? fetch(in, loader, err) : II_OK;
}

/* ---- the loader's memory ----------------------------------------------------------------------*/

static void *pinned_alloc(void *memory, size_t bytes) {
  ii_ctx *c = memory;
  void *p = NULL;
  return ii_host_alloc(&c->k, bytes, &p) ? NULL : p;
}

static void pinned_release(void *memory, void *p) {
  ii_ctx *c = memory;
  if (p) ii_host_free(&c->k, p);
}

void ii_input_loader_memory(ii_loader_config *config, ii_ctx *c) {
  config->alloc = pinned_alloc;
  config->release = pinned_release;
  config->memory = c;
}
