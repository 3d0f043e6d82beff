#include "train/preview.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "train/setup.h"

enum { SMALLEST = 96, LARGEST = 256, MAX_CELL = 4096, MAX_DRAWS = 64 };

typedef struct {
  const ii_preview_options *o;
  ii_preview *p;
  ii_loader_config train, eval; /* transforms, decoding, seed */
  ii_dataset *set;              /* NULL: files */
  int64_t *keys, n_keys;        /* of the first batch */
  ii_decoder *decoder;
  ii_transformer *transformer;
  ii_resizer *resizer;
  ii_bytes file;
  ii_image image;
  ii_ctx *ctx;
  float *batch; /* [n_keys, size, size, 3] */
} maker;

int64_t ii_preview_cell_size(int64_t img_size) {
  if (img_size > LARGEST) return LARGEST;
  return (SMALLEST + img_size - 1) / img_size * img_size;
}

static ii_preview_cell *cell_of(const ii_preview *p, int64_t row, int64_t column) {
  return &p->cells[row * p->columns + column];
}

/* ---- images ----------------------------------------------------------------------------------*/

/* Decodes a row's image, or that of any key of the batch, upright or not as `o` says. */
static ii_status decode(maker *m, int64_t i, const ii_loader_config *o, ii_error *err) {
  const uint8_t *bytes;
  int64_t n;
  char path[II_PATH_MAX];
  if (m->set) {
    const int64_t sample = m->keys[i] % ii_dataset_size(m->set);
    ii_dataset_path(m->set, sample, path);
    II_TRY(ii_dataset_read(m->set, sample, &m->file, &bytes, &n, err));
  } else {
    snprintf(path, sizeof path, "%s", m->o->files[i]);
    II_TRY(ii_bytes_read(&m->file, path, err));
    bytes = m->file.data, n = m->file.size;
  }
  if (ii_image_decode(m->decoder, bytes, n, &o->decode, &m->image, err) == II_OK) return II_OK;
  return ii_error_prefix(err, "'%s'", path);
}

static ii_rng stream(const maker *m, int64_t epoch, int64_t key) {
  return ii_rng_make(m->train.seed, II_RNG_AUGMENT, (uint64_t)epoch, (uint64_t)key);
}

/* The decoded image, no larger than a cell. */
static ii_status make_original(maker *m, ii_preview_cell *c, ii_error *err) {
  const ii_image *img = &m->image;
  const double scale = (double)m->p->cell / (double)(img->w > img->h ? img->w : img->h);
  const int64_t w = (int64_t)fmax(1, rint((double)img->w * scale));
  const int64_t h = (int64_t)fmax(1, rint((double)img->h * scale));
  const ii_resize_job job = {.src = img,
                             .box = {0, 0, img->h, img->w},
                             .filter = II_FILTER_BICUBIC,
                             .out_w = w,
                             .out_h = h,
                             .view = {0, 0, h, w}};
  II_TRY(ii_image_reserve(&c->pixels, w, h, err));
  return ii_resize(m->resizer, &job, c->pixels.data, err);
}

/* The decoded image through a transform. */
static ii_status make_pixels(maker *m, const ii_transform *t, ii_rng rng, ii_preview_cell *c,
                             ii_error *err) {
  const uint8_t *pixels;
  ii_rng again = rng;
  c->plan = ii_transform_draw(t, m->image.w, m->image.h, &again);
  c->steps = ii_transform_draw_steps(t, &again);
  II_TRY(ii_image_reserve(&c->pixels, t->size, t->size, err));
  II_TRY(ii_transform_pixels(m->transformer, t, &m->image, &rng, &pixels, err));
  memcpy(c->pixels.data, pixels, (size_t)(t->size * t->size * 3));
  return II_OK;
}

static ii_status make_row(maker *m, int64_t r, ii_error *err) {
  ii_preview_row *row = &m->p->row[r];
  row->key = m->set ? m->keys[r] : r;
  row->sample = m->set ? row->key % ii_dataset_size(m->set) : r;
  row->label = m->set ? ii_dataset_label(m->set, row->sample) : -1;
  if (m->set)
    ii_dataset_name(m->set, row->sample, row->name);
  else
    snprintf(row->name, sizeof row->name, "%s", m->o->files[r]);
  II_TRY(decode(m, r, &m->train, err));
  row->width = m->image.w, row->height = m->image.h;
  ii_preview_cell *c = cell_of(m->p, r, 0);
  c->kind = II_PREVIEW_ORIGINAL;
  II_TRY(make_original(m, c, err));
  for (int64_t e = 0; e < m->o->draws; e++) {
    c = cell_of(m->p, r, 2 + e);
    c->kind = II_PREVIEW_DRAW, c->epoch = e;
    II_TRY(make_pixels(m, &m->train.transform, stream(m, e, row->key), c, err));
  }
  c = cell_of(m->p, r, 1);
  c->kind = II_PREVIEW_EVAL;
  II_TRY(decode(m, r, &m->eval, err));
  return make_pixels(m, &m->eval.transform, (ii_rng){0}, c, err);
}

/* ---- batches ---------------------------------------------------------------------------------*/

/* Undoes the normalisation; what erasing drew outside of 0..255 is cut off. */
static void to_bytes(const ii_transform *t, const float *v, uint8_t *out) {
  const int64_t n = t->size * t->size;
  for (int64_t i = 0; i < n * 3; i++) {
    const double x = ((double)v[i] * t->std[i % 3] + t->mean[i % 3]) * 255;
    out[i] = (uint8_t)rint(fmax(0, fmin(255, x)));
  }
}

/* The images of the batch that the rows and their partners are; the others do not matter. */
static ii_status fill_batch(maker *m, int64_t epoch, ii_error *err) {
  const ii_transform *t = &m->train.transform;
  const int64_t pixels = t->size * t->size * 3;
  for (int64_t i = 0; i < m->n_keys; i++) {
    if (i >= m->p->rows && i < m->n_keys - m->p->rows) continue;
    ii_rng rng = stream(m, epoch, m->keys[i]);
    II_TRY(decode(m, i, &m->train, err));
    II_TRY(ii_transform_apply(m->transformer, t, &m->image, &rng, m->batch + i * pixels, err));
  }
  return II_OK;
}

static ii_status make_batch(maker *m, int64_t epoch, ii_error *err) {
  ii_ctx *k = m->ctx;
  const ii_transform *t = &m->train.transform;
  const int64_t shape[] = {m->n_keys, t->size, t->size, 3}, pixels = t->size * t->size * 3;
  II_TRY(fill_batch(m, epoch, err));
  const ii_scope scope = ii_scope_begin(k);
  ii_tensor *x = ii_tensor_from_host(k, II_F32, 4, shape, m->batch);
  ii_mixer mixer;
  ii_mix mix = {0};
  if (ii_mixer_init(&mixer, k, m->o->config, m->n_keys, t->size, t->size) == II_OK) {
    mix = ii_mixer_draw(&mixer, 0, epoch, 0, m->keys, m->n_keys);
    ii_mixer_apply(&mixer, x);
    ii_tensor_read(k, x, m->batch);
    ii_mixer_destroy(&mixer);
  }
  ii_scope_end(k, scope, NULL, 0);
  if (!ii_ok(k)) return ii_error_set(err, k->err.status, "%s", k->err.text);
  for (int64_t r = 0; r < m->p->rows; r++) {
    ii_preview_cell *c = cell_of(m->p, r, 2 + m->o->draws + epoch);
    c->kind = II_PREVIEW_BATCH, c->epoch = epoch, c->mix = mix;
    c->partner = m->keys[m->n_keys - 1 - r] % ii_dataset_size(m->set);
    c->erased =
        ii_erase_draw(m->o->config, epoch, m->keys[r], (int32_t)r, t->size, t->size, c->rects);
    II_TRY(ii_image_reserve(&c->pixels, t->size, t->size, err));
    to_bytes(t, m->batch + r * pixels, c->pixels.data);
  }
  return II_OK;
}

/* ---- all -------------------------------------------------------------------------------------*/

static ii_status check(const ii_preview_options *o, ii_error *err) {
  if (o->draws < 0 || o->draws > MAX_DRAWS)
    return ii_error_set(err, II_ERR_ARG, "%lld draws are not in 0..%d", (long long)o->draws,
                        MAX_DRAWS);
  if (o->cell < 0 || o->cell > MAX_CELL)
    return ii_error_set(err, II_ERR_ARG, "pictures of %lld pixels are not in 1..%d",
                        (long long)o->cell, MAX_CELL);
  if (o->n_files == 0 && (o->count < 1 || o->count > o->config->data.batch_size))
    return ii_error_set(err, II_ERR_ARG,
                        "%lld images cannot be shown: there are 1..%lld in a batch "
                        "(data.batch_size)",
                        (long long)o->count, (long long)o->config->data.batch_size);
  return II_OK;
}

/* The first batch of the data set, and room for its pixels. */
static ii_status open_set(maker *m, ii_error *err) {
  const ii_config *cfg = m->o->config;
  II_TRY(ii_setup_dataset(cfg, true, &m->set, err));
  const ii_sampler_config s = {.dataset = m->set,
                               .sampling = m->train.sampling,
                               .batch = m->train.batch,
                               .world = 1,
                               .seed = m->train.seed,
                               .shuffle = m->train.shuffle,
                               .drop_last = m->train.drop_last};
  ii_sampler *sampler;
  const int64_t pixels = cfg->data.img_size * cfg->data.img_size * 3;
  m->keys = calloc((size_t)s.batch, sizeof *m->keys);
  m->batch = calloc((size_t)(s.batch * pixels), sizeof *m->batch);
  if (!m->keys || !m->batch)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for a batch; use a smaller data.batch_size");
  II_TRY(ii_sampler_new(&s, &sampler, err));
  m->n_keys = ii_sampler_batch(sampler, 0, 0, m->keys);
  ii_sampler_free(sampler);
  m->ctx = ii_ctx_open(&(ii_ctx_options){.device = II_CPU, .real = II_F32, .compute = II_F32}, err);
  return m->ctx ? II_OK : err->status;
}

static ii_status make(maker *m, ii_error *err) {
  const ii_preview_options *o = m->o;
  ii_preview *p = m->p;
  II_TRY(check(o, err));
  m->train = ii_setup_loader(o->config, NULL, true);
  m->eval = ii_setup_loader(o->config, NULL, false);
  II_TRY(ii_transform_check(&m->train.transform, err));
  if (o->n_files == 0) II_TRY(open_set(m, err));
  p->img_size = o->config->data.img_size;
  p->cell = o->cell ? o->cell : ii_preview_cell_size(p->img_size);
  p->rows = o->n_files ? o->n_files : o->count;
  const bool batches = m->set && (ii_mix_wanted(o->config) || o->config->data.erase_prob > 0);
  p->columns = 2 + o->draws * (batches ? 2 : 1);
  p->row = calloc((size_t)p->rows, sizeof *p->row);
  p->cells = calloc((size_t)(p->rows * p->columns), sizeof *p->cells);
  if (!p->row || !p->cells) return ii_error_set(err, II_ERR_MEMORY, "no memory for the pictures");
  II_TRY(ii_decoder_new(&m->decoder, err));
  II_TRY(ii_transformer_new(&m->transformer, err));
  II_TRY(ii_resizer_new(&m->resizer, err));
  for (int64_t r = 0; r < p->rows; r++) II_TRY(make_row(m, r, err));
  for (int64_t e = 0; batches && e < o->draws; e++) II_TRY(make_batch(m, e, err));
  return II_OK;
}

ii_status ii_preview_make(const ii_preview_options *options, ii_preview *p, ii_error *err) {
  maker m = {.o = options, .p = p};
  *p = (ii_preview){0};
  const ii_status s = make(&m, err);
  ii_dataset_free(m.set);
  free(m.keys);
  free(m.batch);
  ii_decoder_free(m.decoder);
  ii_transformer_free(m.transformer);
  ii_resizer_free(m.resizer);
  ii_bytes_free(&m.file);
  ii_image_free(&m.image);
  if (m.ctx) ii_ctx_close(m.ctx);
  if (s != II_OK) ii_preview_free(p);
  return s;
}

void ii_preview_free(ii_preview *p) {
  for (int64_t i = 0; p->cells && i < p->rows * p->columns; i++) ii_image_free(&p->cells[i].pixels);
  free(p->cells);
  free(p->row);
  *p = (ii_preview){0};
}
