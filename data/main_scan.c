/* scan: decodes every image of a data set once; a report, a skip list for data.skip_list, and a
 * crop index for data.crop_index. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "data/scan.h"
#include "data/source.h"

static const char usage[] =
    "usage: scan SOURCE [--out FILE] [options]\n"
    "Decodes every image of a data set once, reports what is there, and writes the images that\n"
    "cannot be used, with size, checksum and reason, to a skip list, which training leaves out:\n"
    "data.skip_list = FILE. With --crop-index also writes where in each JPEG file which part of "
    "the\n"
    "picture is; training then decodes only what a crop needs, with the same pixels:\n"
    "data.crop_index = FILE. Exit code 0: all images are good; 3: some are not.\n"
    "SOURCE is one of, with what belongs to it:\n"
    "%s"
    "options:\n"
    "  --out FILE           the skip list (replaced if there is one)\n"
    "  --crop-index FILE    the crop index (replaced if there is one)\n"
    "  --allow-truncated    files that end early count as good, as with data.allow_truncated\n"
    "  --max-pixels N       larger images count as bad (default %lld)\n"
    "  --threads N          threads (default: one per processor)\n"
    "  --quiet              no progress\n"
    "  --help               this text\n";

typedef struct {
  ii_source source;
  ii_scan_options options;
  const char *out, *crop_index; /* NULL: none */
  bool quiet, terminal;
  int64_t total;
  double begin, last;
} command;

static volatile sig_atomic_t stop;

static void on_signal(int number) {
  stop = 1;
}

static ii_status parse(command *c, int argc, char **argv, ii_error *err) {
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    bool taken;
    II_TRY(ii_source_option(&c->source, argc, argv, &i, &taken, err));
    if (taken) continue;
    if (!strcmp(name, "--quiet")) {
      c->quiet = true;
    } else if (!strcmp(name, "--allow-truncated")) {
      c->options.decode.allow_truncated = true;
    } else if (!strcmp(name, "--out") || !strcmp(name, "--crop-index")) {
      if (i + 1 >= argc || !*argv[i + 1])
        return ii_error_set(err, II_ERR_ARG, "%s needs a value", name);
      *(name[2] == 'o' ? &c->out : &c->crop_index) = argv[++i];
    } else if (!strcmp(name, "--threads") || !strcmp(name, "--max-pixels")) {
      char *end = "";
      if (i + 1 >= argc) return ii_error_set(err, II_ERR_ARG, "%s needs a value", name);
      const char *value = argv[++i];
      const bool threads = name[2] == 't';
      const long long most = threads ? 1024 : INT64_C(1) << 40;
      const long long v = strtoll(value, &end, 10);
      if (*end || !*value || v < 1 || v > most)
        return ii_error_set(err, II_ERR_ARG, "%s %s is not a whole number in 1..%lld", name, value,
                            most);
      if (threads) c->options.threads = (int)v;
      if (name[2] == 'm') c->options.decode.max_pixels = v;
    } else {
      return ii_error_set(err, II_ERR_ARG, "scan does not know '%s'; see scan --help", name);
    }
  }
  return II_OK;
}

/* Whether two files, there or not, have the same name in the same folder. */
static bool same_file(const char *a, const char *b) {
  struct stat in[2];
  const char *paths[] = {a, b}, *names[2];
  for (int i = 0; i < 2; i++) {
    char folder[II_PATH_MAX] = ".";
    const char *slash = strrchr(paths[i], '/');
    names[i] = slash ? slash + 1 : paths[i];
    if (slash) snprintf(folder, sizeof folder, "%.*s/", (int)(slash - paths[i]), paths[i]);
    if (stat(folder, &in[i]) != 0) return false;
  }
  return !strcmp(names[0], names[1]) && in[0].st_dev == in[1].st_dev &&
         in[0].st_ino == in[1].st_ino;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A bar that is redrawn on a terminal, a line every 10 seconds otherwise. */
static bool show(void *context, int64_t done) {
  command *c = context;
  char text[160];
  const double t = now();
  if (c->quiet || (!c->terminal && t - c->last < 10)) return !stop;
  c->last = t;
  ii_progress_text(done, c->total, t - c->begin, text, sizeof text);
  fprintf(stderr, c->terminal ? "\r%s\033[K" : "%s\n", text);
  fflush(stderr);
  return !stop;
}

static void report(const ii_scan_report *r, double seconds) {
  printf("%lld images, %.1f MB, %.0f images/s\n", (long long)r->images, (double)r->bytes * 1e-6,
         (double)r->images / (seconds > 0 ? seconds : 1));
  printf("%lld JPEG, %lld PNG; sides from %lld to %lld pixels, the largest image has %.1f "
         "megapixels\n",
         (long long)r->jpeg, (long long)r->png, (long long)r->min_side, (long long)r->max_side,
         (double)r->max_pixels * 1e-6);
  if (r->misnamed)
    printf("%lld with the name of the other format (no harm: what is inside counts)\n",
           (long long)r->misnamed);
  if (r->turned) printf("%lld with an EXIF orientation\n", (long long)r->turned);
  printf("%lld cannot be used\n", (long long)r->bad_count);
}

static void print_bad(const ii_dataset *d, const ii_scan_report *r) {
  char path[II_PATH_MAX];
  const int64_t most = 20;
  for (int64_t i = 0; i < r->bad_count && i < most; i++) {
    ii_dataset_path(d, r->bad[i].sample, path);
    printf("  %s: %s\n", path, r->bad[i].reason);
  }
  if (r->bad_count > most) printf("  ... and %lld more\n", (long long)(r->bad_count - most));
}

static ii_status finish_crop_index(const command *c, const ii_scan_report *r, ii_error *err) {
  ii_crop_summary x;
  II_TRY(ii_crop_writer_finish(c->options.crops, &x, err));
  printf("crop index: %s, %lld of %lld images, %.1f MB\n", c->crop_index, (long long)x.entries,
         (long long)r->images, (double)x.bytes * 1e-6);
  if (x.entries == 0) printf("  (only baseline JPEG files can have one: training refuses it)\n");
  return II_OK;
}

static ii_status scan_all(command *c, const ii_dataset *d, int64_t *bad, ii_error *err) {
  ii_scan_report r;
  if (c->out && c->crop_index && same_file(c->out, c->crop_index))
    return ii_error_set(err, II_ERR_ARG, "--out and --crop-index are the same file, '%s'", c->out);
  if (c->crop_index) II_TRY(ii_crop_writer_new(d, c->crop_index, &c->options.crops, err));
  c->options.tick = show, c->options.context = c;
  c->total = ii_dataset_size(d);
  c->begin = c->last = now();
  c->terminal = isatty(2);
  ii_status s = ii_scan(d, &c->options, &r, err);
  if (c->terminal && !c->quiet) fputc('\n', stderr);
  if (s == II_OK) {
    report(&r, now() - c->begin);
    print_bad(d, &r);
    *bad = r.bad_count;
    if (c->out) s = ii_scan_write_list(d, &r, c->out, err);
    if (c->out && s == II_OK) printf("skip list: %s\n", c->out);
    if (c->crop_index && s == II_OK) s = finish_crop_index(c, &r, err);
    ii_scan_free(&r);
  }
  ii_crop_writer_free(c->options.crops);
  return s;
}

static ii_status run(command *c, int64_t *bad, ii_error *err) {
  ii_dataset *d;
  II_TRY(ii_source_open(&c->source, &d, err));
  const ii_status s = scan_all(c, d, bad, err);
  ii_dataset_free(d);
  return s;
}

int main(int argc, char **argv) {
  command c = {0};
  ii_error err = {0};
  int64_t bad = 0;
  for (int i = 1; i < argc; i++)
    if (!strcmp(argv[i], "--help"))
      return printf(usage, ii_source_help(), (long long)II_MAX_PIXELS_DEFAULT), 0;
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);
  if (parse(&c, argc, argv, &err) != II_OK) return fprintf(stderr, "scan: %s\n", err.text), 2;
  if (run(&c, &bad, &err) == II_OK && fflush(stdout) == 0) return bad ? 3 : 0;
  fprintf(stderr, "scan: %s\n", err.status ? err.text : "cannot write the output");
  return err.status == II_ERR_ARG ? 2 : 1;
}
