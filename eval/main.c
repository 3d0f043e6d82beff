/* eval: accuracy of a checkpoint. See --help. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "eval/evaluate.h"
#include "train/cli.h"
#include "train/process.h"

enum {
  F_CHECKPOINT,
  F_CONFIG,
  F_SET,
  F_EMA,
  F_JSON,
  F_PER_CLASS,
  F_TTA_FLIP,
  F_TTA_SCALES,
  F_DEVICE,
  F_HELP,
  F_KEYS,
  F_VERSION
};

static const ii_flag FLAGS[] = {
    {"--checkpoint", "PATH", "checkpoint, or an HDF5 file of weights with their official names"},
    {"--config", "NAME", "configuration file; the one stored in the checkpoint is the default"},
    {"--set", "KEY=VALUE", "overrides one key, e.g. data.root=FOLDER; may be repeated"},
    {"--ema", NULL, "evaluate the moving average of the weights"},
    {"--json", NULL, "print one JSON object: top1, top5 (percent), images, ..."},
    {"--per-class", NULL, "also the accuracy of each class"},
    {"--tta-flip", NULL,
     "also the accuracy of the averaged probabilities of each image and its "
     "mirror image"},
    {"--tta-scales", "LIST",
     "of each image at several sizes, e.g. 0.875,1,1.14: these times "
     "data.img_size, in multiples of 32"},
    {"--device", "cpu|cuda|cuda:N", "where to compute; cpu is the default"},
    {"--help", NULL, "this text"},
    {"--keys", NULL, "all configuration keys"},
    {"--version", NULL, "the version"},
    {0}};

typedef struct {
  ii_eval_options options;
  const char *config, **sets;
  int n_sets;
  bool json, per_class;
} command;

/* All but the result goes to stderr, so that --json can be piped. */
static void print_line(void *user, ii_say_kind kind, const char *line) {
  const bool terminal = *(const bool *)user;
  const char *clear = terminal ? "\r\033[K" : "";
  if (kind == II_SAY_PULSE && terminal)
    fprintf(stderr, "%s%.*s", clear, ii_cli_columns(stderr) - 1, line);
  if (kind == II_SAY_NOTE) fprintf(stderr, "%s%s\n", clear, line);
  if (kind == II_SAY_WARNING) fprintf(stderr, "%swarning: %s\n", clear, line);
}

static bool print_info(int flag) {
  if (flag == F_HELP) {
    printf("usage: eval --checkpoint PATH [flags]\n\nMeasures top-1 and top-5 accuracy on the "
           "validation images; each image counts once.\nImages are resized and cut in the middle "
           "(--set data.test_crop=false: stretched).\n--tta-flip and --tta-scales report the "
           "accuracy of averaged softmax probabilities beside\nthe plain one.\n\n");
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

static ii_status take_flag(command *c, int flag, const char *value, ii_error *err) {
  switch (flag) {
  case F_CHECKPOINT:
    c->options.checkpoint = value;
    break;
  case F_CONFIG:
    c->config = value;
    break;
  case F_SET:
    c->sets[c->n_sets++] = value;
    break;
  case F_EMA:
    c->options.ema = true;
    break;
  case F_JSON:
    c->json = true;
    break;
  case F_PER_CLASS:
    c->per_class = true;
    break;
  case F_TTA_FLIP:
    c->options.tta.flip = true;
    break;
  case F_TTA_SCALES:
    return ii_tta_parse(value, &c->options.tta, err) == II_OK
               ? II_OK
               : ii_error_prefix(err, "--tta-scales");
  case F_DEVICE:
    return ii_device_parse(value, &c->options.device, &c->options.device_index, err);
  }
  return II_OK;
}

static ii_status parse(command *c, int argc, char **argv, bool *done, ii_error *err) {
  ii_cli cli = ii_cli_begin(argc, argv, FLAGS);
  const char *value;
  for (int flag;;) {
    II_TRY(ii_cli_next(&cli, &flag, &value, err));
    if (flag < 0) break;
    if ((*done = print_info(flag))) return II_OK;
    II_TRY(take_flag(c, flag, value, err));
  }
  if (c->options.tta.flip && !c->options.tta.count)
    c->options.tta.scales[c->options.tta.count++] = 1;
  if (c->options.checkpoint) return II_OK;
  return ii_error_set(err, II_ERR_ARG, "--checkpoint PATH is missing (--help explains)");
}

static ii_status load_config(command *c, ii_error *err) {
  ii_config *cfg = &c->options.config;
  II_TRY(ii_eval_config(c->config, c->options.checkpoint, cfg, err));
  for (int i = 0; i < c->n_sets; i++) II_TRY(ii_config_set(cfg, c->sets[i], err));
  return ii_config_check(cfg, err);
}

static double percent(int64_t part, int64_t all) {
  return all ? 100.0 * (double)part / (double)all : 0;
}

/* A JSON string. */
static void print_quoted(const char *s) {
  putchar('"');
  for (; *s; s++) {
    const unsigned char ch = (unsigned char)*s;
    if (ch == '"' || ch == '\\')
      printf("\\%c", ch);
    else if (ch < 0x20)
      printf("\\u%04x", ch);
    else
      putchar(ch);
  }
  putchar('"');
}

/* "top1", "top5", "images", "failed" and "loss" of a JSON object. */
static void print_accuracy(const ii_accuracy *a) {
  printf("\"top1\": %.6g, \"top5\": %.6g, \"images\": %" PRId64 ", \"failed\": %" PRId64
         ", \"loss\": ",
         ii_top1(a), ii_top5(a), a->images, a->failed);
  if (a->finite)
    printf("%.9g", a->loss);
  else
    printf("null");
}

/* The sizes were checked when they were used. */
static void print_tta(const ii_eval_result *r, const ii_eval_options *o) {
  int64_t sizes[II_TTA_SCALES];
  if (!o->tta.count) return;
  ii_tta_sizes(&o->tta, o->config.data.img_size, sizes, NULL);
  printf(", \"tta\": {");
  print_accuracy(&r->average);
  printf(", \"flip\": %s, \"sizes\": [", o->tta.flip ? "true" : "false");
  for (int64_t i = 0; i < o->tta.count; i++) printf("%s%" PRId64, i ? ", " : "", sizes[i]);
  printf("]}");
}

static void print_json(const ii_eval_result *r, const ii_eval_options *o, bool per_class) {
  printf("{");
  print_accuracy(&r->accuracy);
  print_tta(r, o);
  if (per_class) {
    printf(", \"classes\": [");
    for (int64_t i = 0; i < r->classes; i++) {
      printf("%s{\"class\": %" PRId64, i ? ", " : "", i);
      if (r->class_names) {
        printf(", \"name\": ");
        print_quoted(r->class_names[i]);
      }
      printf(", \"top1\": %.6g", percent(r->class_correct[i], r->class_images[i]));
      if (r->class_average)
        printf(", \"tta_top1\": %.6g", percent(r->class_average[i], r->class_images[i]));
      printf(", \"images\": %" PRId64 "}", r->class_images[i]);
    }
    printf("]");
  }
  printf("}\n");
}

static void print_line_of(const ii_accuracy *a) {
  printf("top-1 %.2f %%  top-5 %.2f %%  loss %.4f  %" PRId64 " images", ii_top1(a), ii_top5(a),
         a->loss, a->images);
  if (a->failed) printf(", %" PRId64 " of them unreadable and counted as wrong", a->failed);
  printf("  (%.1f img/s)\n", (double)a->images / (a->seconds + 1e-9));
}

static void print_text(const ii_eval_result *r, const ii_eval_options *o, bool per_class) {
  int64_t sizes[II_TTA_SCALES];
  for (int64_t i = 0; per_class && i < r->classes; i++) {
    if (!r->class_images[i]) continue;
    printf("%5" PRId64 "  %-30s top-1 %6.2f %%", i, r->class_names ? r->class_names[i] : "",
           percent(r->class_correct[i], r->class_images[i]));
    if (r->class_average)
      printf("  averaged %6.2f %%", percent(r->class_average[i], r->class_images[i]));
    printf("  of %" PRId64 "\n", r->class_images[i]);
  }
  print_line_of(&r->accuracy);
  if (!o->tta.count) return;
  ii_tta_sizes(&o->tta, o->config.data.img_size, sizes, NULL);
  printf("averaged over");
  for (int64_t i = 0; i < o->tta.count; i++) printf(" %" PRId64, sizes[i]);
  printf(" pixels%s: ", o->tta.flip ? ", with the mirror images" : "");
  print_line_of(&r->average);
}

static ii_status evaluate(command *c, ii_error *err) {
  bool terminal = isatty(STDERR_FILENO) == 1;
  ii_eval_result r;
  c->options.say = (ii_say){print_line, &terminal};
  ii_status s = ii_eval_run(&c->options, &r, err);
  if (terminal) fprintf(stderr, "\r\033[K");
  II_TRY(s);
  if (c->json)
    print_json(&r, &c->options, c->per_class);
  else
    print_text(&r, &c->options, c->per_class);
  ii_eval_free(&r);
  return ii_cli_flush(stdout, err);
}

/* Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage. */
int main(int argc, char **argv) {
  ii_process_prepare(argv);
  ii_error err = {0};
  command *c = calloc(1, sizeof *c);
  if (c) c->sets = calloc((size_t)argc, sizeof *c->sets);
  bool done = false;
  int code = 0;
  if (!c || !c->sets)
    ii_error_set(&err, II_ERR_MEMORY, "out of memory");
  else if (parse(c, argc, argv, &done, &err) != II_OK)
    code = 2;
  else if (!done && load_config(c, &err) == II_OK)
    evaluate(c, &err);
  if (err.status != II_OK) {
    fprintf(stderr, "eval: %s\n", err.text);
    code = code ? code : 1;
  }
  if (c) free(c->sets);
  free(c);
  return code;
}
