/* make_sample_data: writes the sample data set of data/sample_draw.h as an image folder. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "data/image.h"
#include "data/sample_draw.h"

typedef struct {
  const char *out;
  long long classes, train, val, size, seed;
} settings;

static const char usage[] =
    "usage: make_sample_data --out DIR [options]\n"
    "Draws a small classification data set: JPEG pictures of shapes in DIR/train/<class>/ and\n"
    "DIR/val/<class>/. The same options give the same files.\n"
    "  --out DIR            where to write (made if missing)\n"
    "  --classes N          number of classes, 2..%d (default 12)\n"
    "  --train-per-class N  training pictures of each class (default 200)\n"
    "  --val-per-class N    validation pictures of each class (default 50)\n"
    "  --size N             width and height in pixels, 8..1024 (default 64)\n"
    "  --seed N             another number draws other pictures (default 1)\n"
    "  --help               this text\n";

static int parse(int argc, char **argv, settings *s) {
  const struct {
    const char *name;
    long long *value, lo, hi;
  } options[] = {{"--classes", &s->classes, 2, II_SAMPLE_CLASSES},
                 {"--train-per-class", &s->train, 1, 1000000},
                 {"--val-per-class", &s->val, 1, 1000000},
                 {"--size", &s->size, 8, 1024},
                 {"--seed", &s->seed, 0, INT64_MAX}};
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (strcmp(name, "--help") == 0) {
      printf(usage, II_SAMPLE_CLASSES);
      exit(0);
    }
    size_t o = 0, n = sizeof options / sizeof *options;
    bool out = strcmp(name, "--out") == 0;
    while (o < n && strcmp(name, options[o].name) != 0) o++;
    if (o == n && !out)
      return fprintf(stderr, "make_sample_data: unknown option '%s'; see --help\n", name), 2;
    if (++i == argc)
      return fprintf(stderr, "make_sample_data: %s needs a value; see --help\n", name), 2;
    if (out) {
      s->out = argv[i];
      continue;
    }
    char *end;
    errno = 0;
    *options[o].value = strtoll(argv[i], &end, 10);
    if (end == argv[i] || *end || errno || *options[o].value < options[o].lo ||
        *options[o].value > options[o].hi)
      return fprintf(stderr, "make_sample_data: %s %s is not a whole number in %lld..%lld\n", name,
                     argv[i], options[o].lo, options[o].hi),
             2;
  }
  if (!s->out) return fprintf(stderr, "make_sample_data: --out DIR is missing; see --help\n"), 2;
  return 0;
}

/* Makes the folder and those above it. */
static ii_status make_folder(const char *path, ii_error *err) {
  char part[4096];
  if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", path);
  for (char *p = part + 1;; p++) {
    if (*p && *p != '/') continue;
    char c = *p;
    *p = 0;
    if (mkdir(part, 0777) != 0 && errno != EEXIST)
      return ii_error_set(err, II_ERR_IO, "cannot make the folder '%s': %s", part, strerror(errno));
    *p = c;
    if (!c) return II_OK;
  }
}

/* Pictures first..first+n-1 of class c, into out/part/<class>/; rgb is working memory. */
static ii_status write_part(const settings *s, const char *part, int64_t c, int64_t first,
                            int64_t n, uint8_t *rgb, ii_error *err) {
  char dir[4096], path[4200];
  if (snprintf(dir, sizeof dir, "%s/%s/%s", s->out, part, ii_sample_class_name(c)) >=
      (int)sizeof dir)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", s->out);
  II_TRY(make_folder(dir, err));
  for (int64_t i = 0; i < n; i++) {
    ii_sample_draw((uint64_t)s->seed, c, first + i, s->size, rgb);
    snprintf(path, sizeof path, "%s/%05lld.jpg", dir, (long long)i);
    II_TRY(ii_image_write_jpeg(path, rgb, s->size, s->size, 90, err));
  }
  return II_OK;
}

static void write_class(const settings *s, int64_t c, ii_error *err) {
  uint8_t *rgb = malloc((size_t)(s->size * s->size * 3));
  if (!rgb) ii_error_set(err, II_ERR_MEMORY, "no memory for a picture");
  if (rgb && write_part(s, "train", c, 0, s->train, rgb, err) == II_OK)
    write_part(s, "val", c, s->train, s->val, rgb, err);
  free(rgb);
}

int main(int argc, char **argv) {
  settings s = {.classes = II_SAMPLE_CLASSES, .train = 200, .val = 50, .size = 64, .seed = 1};
  int rc = parse(argc, argv, &s);
  if (rc != 0) return rc;
  ii_error err[II_SAMPLE_CLASSES] = {0};
#pragma omp parallel for schedule(dynamic)
  for (int64_t c = 0; c < s.classes; c++) write_class(&s, c, &err[c]);
  for (int64_t c = 0; c < s.classes; c++) {
    if (err[c].status == II_OK) continue;
    fprintf(stderr, "make_sample_data: %s\n", err[c].text);
    return 1;
  }
  printf("%lld classes x (%lld train + %lld val) pictures of %lld x %lld in %s\n", s.classes,
         s.train, s.val, s.size, s.size, s.out);
  return 0;
}
