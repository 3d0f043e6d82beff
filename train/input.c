#include "train/input.h"
#include <stdlib.h>
#include <string.h>

static void engine_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

static ii_status context_status(const ii_ctx *c, ii_error *err) {
  return ii_ok(c) ? II_OK : ii_error_set(err, c->err.status, "%s", c->err.text);
}

static void init_batch(ii_input *in, ii_input_batch *b, int64_t batch, int64_t size, bool meta) {
  ii_ctx *c = in->ctx;
  const int64_t images[] = {batch, size, size, 3}, values[] = {batch, II_META_VALUES};
  b->images = ii_tensor_persistent(c, II_F32, 4, images, II_MEM_INPUT);
  b->labels = ii_tensor_persistent(c, II_I32, 1, &batch, II_MEM_INPUT);
  if (meta) b->meta = ii_tensor_persistent(c, II_F32, 2, values, II_MEM_INPUT);
  b->host_labels = malloc((size_t)batch * sizeof *b->host_labels);
  b->host_valid = malloc((size_t)batch);
  b->host_samples = malloc((size_t)batch * sizeof *b->host_samples);
  b->host_keys = malloc((size_t)batch * sizeof *b->host_keys);
  if (!b->host_labels || !b->host_valid || !b->host_samples || !b->host_keys)
    ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for a batch");
  if (!in->transfers || !ii_ok(c)) return;
  engine_did(c, ii_transfer_init(&c->k, &b->transfer));
  /* the first upload comes after what is being done to the new memory */
  if (ii_ok(c)) engine_did(c, ii_transfer_release(&c->k, &b->transfer));
}

ii_status ii_input_init(ii_input *in, ii_ctx *c, int64_t batch, int64_t size, bool meta) {
  *in = (ii_input){.ctx = c, .room = c->k.device == II_CUDA ? 2 : 1, .transfers = !c->plan};
  for (int i = 0; i < in->room && ii_ok(c); i++) init_batch(in, &in->at[i], batch, size, meta);
  if (!ii_ok(c)) ii_input_destroy(in);
  return c->err.status;
}

void ii_input_destroy(ii_input *in) {
  for (int i = 0; i < in->room; i++) {
    ii_input_batch *b = &in->at[i];
    /* the loader's memory must outlive the copies from it */
    if (in->transfers) {
      ii_transfer_host_done(&in->ctx->k, &b->transfer);
      ii_transfer_destroy(&in->ctx->k, &b->transfer);
    }
    ii_tensor_free(b->images);
    ii_tensor_free(b->labels);
    ii_tensor_free(b->meta);
    free(b->host_labels);
    free(b->host_valid);
    free(b->host_samples);
    free(b->host_keys);
  }
  *in = (ii_input){0};
}

static void upload(ii_ctx *c, ii_transfer *t, ii_tensor *to, const void *host, int64_t count) {
  if (!to || !ii_ok(c)) return;
  to->shape[0] = count;
  engine_did(c, ii_transfer_start(&c->k, t, ii_data(to), host,
                                  (size_t)ii_numel(to) * ii_dtype_size(to->dtype)));
}

/* Takes the loader's next batch and starts its uploads. */
static ii_status fetch(ii_input *in, ii_loader *loader, ii_error *err) {
  ii_ctx *c = in->ctx;
  ii_input_batch *to = &in->at[in->fetched % in->room];
  ii_input_batch *last = &in->at[(in->fetched + in->room - 1) % in->room];
  const ii_batch *b;
  const int64_t bad_before = ii_loader_get_stats(loader).bad_files;
  /* the loader is about to get the memory of the batch before back */
  engine_did(c, ii_transfer_host_done(&c->k, &last->transfer));
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
  upload(c, &to->transfer, to->images, b->images, b->count);
  upload(c, &to->transfer, to->labels, b->labels, b->count);
  upload(c, &to->transfer, to->meta, b->meta, b->count);
  return context_status(c, err);
}

ii_status ii_input_next(ii_input *in, ii_loader *loader, const ii_input_batch **batch,
                        ii_error *err) {
  ii_ctx *c = in->ctx;
  if (in->fetched == in->given) II_TRY(fetch(in, loader, err));
  ii_input_batch *b = &in->at[in->given++ % in->room];
  if (b->count > 0) engine_did(c, ii_transfer_acquire(&c->k, &b->transfer));
  *batch = b;
  return context_status(c, err);
}

void ii_input_done(ii_input *in) {
  ii_ctx *c = in->ctx;
  if (ii_ok(c))
    engine_did(c, ii_transfer_release(&c->k, &in->at[(in->given - 1) % in->room].transfer));
}

ii_status ii_input_ahead(ii_input *in, ii_loader *loader, ii_error *err) {
  return in->room > 1 && in->fetched == in->given ? fetch(in, loader, err) : II_OK;
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
