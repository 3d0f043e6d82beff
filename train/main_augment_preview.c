/* augment_preview: a contact sheet of what the input pipeline does. See --help. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "train/cli.h"
#include "train/preview.h"
#include "train/process.h"

enum {
  F_CONFIG,
  F_SET,
  F_OUT,
  F_OVERWRITE,
  F_COUNT,
  F_DRAWS,
  F_SIZE,
  F_SEED,
  F_NO_CAPTIONS,
  F_JSON,
  F_HELP,
  F_KEYS,
  F_VERSION
};

static const ii_flag FLAGS[] = {
    {"--config", "NAME", "configuration file, here or in configs/, e.g. quickstart.cfg"},
    {"--set", "KEY=VALUE", "overrides one key of the configuration; may be repeated"},
    {"--out", "FILE", "the contact sheet, a PNG file"},
    {"--overwrite", NULL, "replace FILE if there is one (otherwise that is an error)"},
    {"--count", "N", "images of the data set, from the first batch of epoch 0 (default 6)"},
    {"--draws", "N", "epochs to show, from 0 (default 4)"},
    {"--size", "PIXELS", "side of a picture in the sheet (default: data.img_size, or near it)"},
    {"--seed", "N", "the same as --set train.seed=N"},
    {"--no-captions", NULL,
     "pictures alone, without captions and outlines of the crops; what was "
     "drawn is printed all the same"},
    {"--json", NULL, "print what was drawn as one JSON object instead of a table"},
    {"--help", NULL, "this text"},
    {"--keys", NULL, "all configuration keys"},
    {"--version", NULL, "the version"},
    {0}};

typedef struct {
  ii_config config;
  ii_preview_options options;
  const char *name, *out, *seed, **sets, **files;
  int n_sets;
  bool overwrite, bare, json, count_given;
} command;

static bool print_info(int flag) {
  if (flag == F_HELP) {
    printf("usage: augment_preview --config NAME --out FILE.png [flags] [IMAGE ...]\n\n"
           "Shows what training makes of images: a row for each one with the picture, the "
           "evaluation\ntransform, and the training transform as it is drawn in epochs 0, 1, ..."
           "\nWithout IMAGE files it takes the training images of the configuration, with random\n"
           "erasing, Mixup and CutMix: for epoch 0 exactly what the first step gets.\n"
           "What was drawn is also printed. Exit codes: 0 done, 1 error, 2 wrong usage.\n\n");
    ii_cli_help(FLAGS, stdout);
  } else if (flag == F_KEYS) {
    ii_config_help(stdout);
  } else if (flag == F_VERSION) {
    printf("internimage.c %s\n", II_VERSION);
  } else {
    return false;
  }
  return true;
}

static ii_status take_number(int flag, const char *value, int64_t least, int64_t most, int64_t *out,
                             ii_error *err) {
  char *end;
  errno = 0;
  *out = strtoll(value, &end, 10);
  if (end == value || *end || errno || *out < least || *out > most)
    return ii_error_set(err, II_ERR_ARG, "%s %.100s is not a whole number in %" PRId64 "..%" PRId64,
                        FLAGS[flag].name, value, least, most);
  return II_OK;
}

static ii_status take_flag(command *c, int flag, const char *value, ii_error *err) {
  switch (flag) {
  case F_CONFIG:
    c->name = value;
    break;
  case F_SET:
    c->sets[c->n_sets++] = value;
    break;
  case F_OUT:
    c->out = value;
    break;
  case F_OVERWRITE:
    c->overwrite = true;
    break;
  case F_COUNT:
    c->count_given = true;
    return take_number(flag, value, 1, 10000, &c->options.count, err);
  case F_DRAWS:
    return take_number(flag, value, 0, 64, &c->options.draws, err);
  case F_SIZE:
    return take_number(flag, value, 8, 4096, &c->options.cell, err);
  case F_SEED:
    c->seed = value;
    break;
  case F_NO_CAPTIONS:
    c->bare = true;
    break;
  case F_JSON:
    c->json = true;
    break;
  }
  return II_OK;
}

static ii_status parse(command *c, int argc, char **argv, bool *done, ii_error *err) {
  ii_cli cli = ii_cli_begin(argc, argv, FLAGS);
  const char *value;
  c->options.draws = 4;
  for (int flag;;) {
    if (cli.at < argc && argv[cli.at][0] != '-') {
      c->files[c->options.n_files++] = argv[cli.at++];
      continue;
    }
    II_TRY(ii_cli_next(&cli, &flag, &value, err));
    if (flag < 0) break;
    if ((*done = print_info(flag))) return II_OK;
    II_TRY(take_flag(c, flag, value, err));
  }
  c->options.files = c->files;
  if (!c->name)
    return ii_error_set(err, II_ERR_ARG,
                        "--config NAME is missing, e.g. --config quickstart.cfg "
                        "(--help explains)");
  if (!c->out) return ii_error_set(err, II_ERR_ARG, "--out FILE.png is missing (--help explains)");
  if (c->count_given && c->options.n_files)
    return ii_error_set(err, II_ERR_ARG,
                        "--count is for a data set; with image files all are shown");
  return II_OK;
}

static ii_status load_config(command *c, ii_error *err) {
  char text[100];
  II_TRY(ii_config_load(&c->config, c->name, err));
  for (int i = 0; i < c->n_sets; i++) II_TRY(ii_config_set(&c->config, c->sets[i], err));
  if (c->seed) {
    snprintf(text, sizeof text, "train.seed=%.60s", c->seed);
    II_TRY(ii_config_set(&c->config, text, err));
  }
  c->options.config = &c->config;
  if (!c->count_given)
    c->options.count = c->config.data.batch_size < 6 ? c->config.data.batch_size : 6;
  return ii_config_check(&c->config, err);
}

/* ---- what was drawn --------------------------------------------------------------------------*/

static void print_text(const ii_preview *p) {
  char words[4096 + II_PATH_MAX], heading[64];
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t i = 0; i < p->columns; i++) {
      ii_preview_describe(p, r, i, words, sizeof words);
      ii_preview_heading(p, i, heading, sizeof heading);
      if (i == 0) {
        for (char *s = words; *s; s++) *s = *s == '\n' ? ' ' : *s;
        printf("%s\n", words);
        continue;
      }
      printf("  %-20s ", heading);
      for (const char *s = words; *s; s++) *s == '\n' ? fputs(", ", stdout) : putchar(*s);
      putchar('\n');
    }
}

static json_t *box_json(ii_box b) {
  return json_pack("{sI sI sI sI}", "left", (json_int_t)b.left, "top", (json_int_t)b.top, "width",
                   (json_int_t)b.w, "height", (json_int_t)b.h);
}

static const char *filter_name(ii_filter f) {
  return f == II_FILTER_BILINEAR ? "bilinear" : "bicubic";
}

static json_t *steps_json(const ii_transform_steps *s) {
  json_t *all = json_array();
  for (int i = 0; i < s->count; i++)
    json_array_append_new(all, json_pack("{ss sf ss}", "operation",
                                         ii_augment_op_name(s->steps[i].op), "argument",
                                         s->steps[i].arg, "filter", filter_name(s->filters[i])));
  return all;
}

static json_t *batch_json(const ii_preview_cell *c) {
  json_t *erased = json_array();
  for (int64_t i = 0; i < c->erased; i++) {
    const ii_erase_rect *r = &c->rects[i];
    json_array_append_new(erased, box_json((ii_box){r->top, r->left, r->height, r->width}));
  }
  json_t *o =
      json_pack("{sI so sf}", "epoch", (json_int_t)c->epoch, "erased", erased, "share", c->mix.lam);
  if (c->mix.lam == 1) return o;
  json_object_set_new(o, "mixed", json_string(c->mix.cutmix ? "cutmix" : "mixup"));
  json_object_set_new(o, "partner", json_integer(c->partner));
  if (c->mix.cutmix)
    json_object_set_new(
        o, "pasted",
        box_json((ii_box){c->mix.y0, c->mix.x0, c->mix.y1 - c->mix.y0, c->mix.x1 - c->mix.x0}));
  return o;
}

static json_t *draw_json(const ii_preview_cell *c) {
  const ii_resize_job *job = &c->plan.resize;
  return json_pack("{sI so ss sb so}", "epoch", (json_int_t)c->epoch, "crop", box_json(job->box),
                   "filter", filter_name(job->filter), "mirrored", (int)job->mirror, "operations",
                   steps_json(&c->steps));
}

static json_t *row_json(const ii_preview *p, int64_t r) {
  const ii_preview_row *row = &p->row[r];
  json_t *draws = json_array(), *batches = json_array();
  for (int64_t i = 0; i < p->columns; i++) {
    const ii_preview_cell *c = &p->cells[r * p->columns + i];
    if (c->kind == II_PREVIEW_DRAW) json_array_append_new(draws, draw_json(c));
    if (c->kind == II_PREVIEW_BATCH) json_array_append_new(batches, batch_json(c));
  }
  const ii_resize_job *eval = &p->cells[r * p->columns + 1].plan.resize;
  json_t *o = json_pack("{sI sI sI so so so}", "key", (json_int_t)row->key, "width",
                        (json_int_t)row->width, "height", (json_int_t)row->height, "evaluation",
                        json_pack("{sI sI so}", "width", (json_int_t)eval->out_w, "height",
                                  (json_int_t)eval->out_h, "view", box_json(eval->view)),
                        "draws", draws, "batches", batches);
  json_t *name = json_string(row->name); /* NULL: not UTF-8 */
  json_object_set_new(o, "image", name ? name : json_null());
  if (row->label >= 0) json_object_set_new(o, "label", json_integer(row->label));
  return o;
}

static ii_status print_json(const ii_preview *p, const command *c, ii_error *err) {
  json_t *rows = json_array();
  for (int64_t r = 0; r < p->rows; r++) json_array_append_new(rows, row_json(p, r));
  json_t *o = json_pack("{sI sI so}", "img_size", (json_int_t)p->img_size, "seed",
                        (json_int_t)c->config.train.seed, "images", rows);
  const bool good = o && json_dumpf(o, stdout, JSON_REAL_PRECISION(9)) == 0;
  putchar('\n');
  json_decref(o);
  return good ? II_OK : ii_error_set(err, II_ERR_IO, "the result cannot be printed");
}

/* ---- all -------------------------------------------------------------------------------------*/

static ii_status show(command *c, ii_error *err) {
  ii_preview p;
  ii_image sheet = {0};
  if (!c->overwrite && access(c->out, F_OK) == 0)
    return ii_error_set(err, II_ERR_ARG, "'%s' exists; --overwrite replaces it", c->out);
  II_TRY(ii_preview_make(&c->options, &p, err));
  ii_status s = ii_preview_sheet(&p, !c->bare, &sheet, NULL, err);
  if (s == II_OK) s = ii_image_write_png(c->out, sheet.data, sheet.w, sheet.h, err);
  if (s == II_OK && c->json) s = print_json(&p, c, err);
  if (s == II_OK && !c->json) {
    print_text(&p);
    printf("%s: %" PRId64 " x %" PRId64 " pixels\n", c->out, sheet.w, sheet.h);
  }
  ii_image_free(&sheet);
  ii_preview_free(&p);
  return s == II_OK ? ii_cli_flush(stdout, err) : s;
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  ii_error err = {0};
  command *c = calloc(1, sizeof *c);
  if (c) c->sets = calloc((size_t)argc, sizeof *c->sets);
  if (c) c->files = calloc((size_t)argc, sizeof *c->files);
  bool done = false;
  int code = 0;
  if (!c || !c->sets || !c->files)
    ii_error_set(&err, II_ERR_MEMORY, "out of memory");
  else if (parse(c, argc, argv, &done, &err) != II_OK)
    code = 2;
  else if (!done && load_config(c, &err) == II_OK)
    show(c, &err);
  if (err.status != II_OK) {
    fprintf(stderr, "augment_preview: %s\n", err.text);
    code = code ? code : 1;
  }
  if (c) free(c->sets);
  if (c) free(c->files);
  free(c);
  return code;
}
