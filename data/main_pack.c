/* pack: makes, lists, verifies and unpacks packed data sets (data/pack.h). */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/jpeg_index.h"
#include "data/pack.h"
#include "data/parallel.h"
#include "data/scan.h"
#include "data/source.h"

static const char usage[] =
    "usage: pack create SOURCE --out NAME.h5 [options]   make a pack of a data set\n"
    "       pack list NAME.h5 [--images]                 what is in it\n"
    "       pack verify NAME.h5 [--decode]               read and check everything\n"
    "       pack extract NAME.h5 --out DIR               back to files\n"
    "A pack is NAME.h5 and its shards NAME-<id>-00000.h5, ... beside it. Use it with\n"
    "data.format = packed (data.root has train.h5 and val.h5).\n"
    "SOURCE is one of, with what belongs to it:\n"
    "%s"
    "options of create:\n"
    "  --out NAME.h5        the pack; one of that name is replaced when the new one is complete\n"
    "  --shard-size MIB     MiB of images per shard (default 4096)\n"
    "  --max-side N         make larger images smaller, to N pixels of the longer side, as JPEG\n"
    "  --quality N          quality of those JPEG images, 1..100 (default 90)\n"
    "  --no-crop-index      leave out what lets training decode only the part of an image that a\n"
    "                       crop needs: smaller, for packs whose images are decoded whole\n"
    "other options:\n"
    "  --images             list: a line for each image: name, class number, bytes, checksum\n"
    "  --decode             verify: decode the images too\n"
    "  --threads N          threads (default: one per processor)\n"
    "  --quiet              no progress\n"
    "  --help               this text\n";

typedef struct {
  const char *verb, *pack, *out;
  ii_source source;
  ii_pack_options pack_options;
  bool images, decode, quiet;
  int threads;
} command;

static volatile sig_atomic_t stop;

static void on_signal(int number) {
  stop = 1;
}

/* ---- arguments -------------------------------------------------------------------------------*/

static ii_status number_option(const command *c, int argc, char **argv, int *i, long long lo,
                               long long hi, long long *value, ii_error *err) {
  char *end;
  const char *name = argv[*i];
  if (*i + 1 >= argc) return ii_error_set(err, II_ERR_ARG, "%s needs a value", name);
  errno = 0;
  *value = strtoll(argv[++*i], &end, 10);
  if (errno || end == argv[*i] || *end || *value < lo || *value > hi)
    return ii_error_set(err, II_ERR_ARG, "%s %s is not a whole number in %lld..%lld", name,
                        argv[*i], lo, hi);
  return II_OK;
}

static ii_status parse_option(command *c, int argc, char **argv, int *i, ii_error *err) {
  const char *name = argv[*i];
  bool taken;
  long long v = 0;
  const bool create = !strcmp(c->verb, "create");
  if (create) {
    II_TRY(ii_source_option(&c->source, argc, argv, i, &taken, err));
    if (taken) return II_OK;
  }
  if (!strcmp(name, "--quiet")) return c->quiet = true, II_OK;
  if (!strcmp(name, "--images") && !strcmp(c->verb, "list")) return c->images = true, II_OK;
  if (!strcmp(name, "--decode") && !strcmp(c->verb, "verify")) return c->decode = true, II_OK;
  if (!strcmp(name, "--threads")) {
    II_TRY(number_option(c, argc, argv, i, 1, 1024, &v, err));
    c->threads = (int)v;
    return II_OK;
  }
  if (!strcmp(name, "--out") && (create || !strcmp(c->verb, "extract"))) {
    if (*i + 1 >= argc) return ii_error_set(err, II_ERR_ARG, "--out needs a value");
    c->out = argv[++*i];
    return II_OK;
  }
  if (create && !strcmp(name, "--shard-size")) {
    II_TRY(number_option(c, argc, argv, i, 1, 1 << 24, &v, err));
    c->pack_options.shard_bytes = v << 20;
    return II_OK;
  }
  if (create && !strcmp(name, "--max-side")) {
    II_TRY(number_option(c, argc, argv, i, 16, 65000, &v, err));
    c->pack_options.max_side = v;
    return II_OK;
  }
  if (create && !strcmp(name, "--no-crop-index"))
    return c->pack_options.no_crop_index = true, II_OK;
  if (create && !strcmp(name, "--quality")) {
    II_TRY(number_option(c, argc, argv, i, 1, 100, &v, err));
    c->pack_options.quality = (int)v;
    return II_OK;
  }
  if (name[0] == '-' || create || c->pack)
    return ii_error_set(err, II_ERR_ARG, "pack %s does not know '%s'; see pack --help", c->verb,
                        name);
  c->pack = name;
  return II_OK;
}

static ii_status parse(command *c, int argc, char **argv, ii_error *err) {
  static const char *const verbs[] = {"create", "list", "verify", "extract"};
  for (size_t k = 0; argc > 1 && k < sizeof verbs / sizeof *verbs; k++)
    if (!strcmp(argv[1], verbs[k])) c->verb = verbs[k];
  if (!c->verb)
    return ii_error_set(err, II_ERR_ARG,
                        "say what to do: create, list, verify or extract; see pack --help");
  for (int i = 2; i < argc; i++) II_TRY(parse_option(c, argc, argv, &i, err));
  const bool create = !strcmp(c->verb, "create");
  if (!c->out && (create || !strcmp(c->verb, "extract")))
    return ii_error_set(err, II_ERR_ARG, "pack %s needs --out", c->verb);
  if (!create && !c->pack)
    return ii_error_set(err, II_ERR_ARG, "pack %s needs the name of a pack", c->verb);
  if (create && c->pack_options.quality && !c->pack_options.max_side)
    return ii_error_set(err, II_ERR_ARG, "--quality goes with --max-side");
  return II_OK;
}

/* ---- progress --------------------------------------------------------------------------------*/

typedef struct {
  int64_t total;
  double begin, last;
  bool quiet, terminal;
} progress;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static progress start_progress(const command *c, int64_t total) {
  const double t = now();
  return (progress){
      .total = total, .begin = t, .last = t, .quiet = c->quiet, .terminal = isatty(2)};
}

/* A bar that is redrawn on a terminal, a line every 10 seconds otherwise. */
static bool show(progress *p, int64_t done) {
  char text[160];
  const double t = now();
  if (p->quiet || (!p->terminal && t - p->last < 10)) return !stop;
  p->last = t;
  ii_progress_text(done, p->total, t - p->begin, text, sizeof text);
  fprintf(stderr, p->terminal ? "\r%s\033[K" : "%s\n", text);
  fflush(stderr);
  return !stop;
}

static void end_progress(const progress *p) {
  if (!p->quiet && p->terminal) fputc('\n', stderr);
}

/* ---- create ----------------------------------------------------------------------------------*/

static bool create_tick(void *context, int64_t done, int64_t total) {
  return show(context, done);
}

static void create_bad(void *context, const char *name, const char *reason) {
  fprintf(stderr, "pack: %s is stored as it is: %s\n", name, reason);
}

static ii_status create(const command *c, ii_error *err) {
  ii_dataset *d;
  ii_pack_result r;
  II_TRY(ii_source_open(&c->source, &d, err));
  progress p = start_progress(c, ii_dataset_size(d));
  ii_pack_options o = c->pack_options;
  o.threads = c->threads;
  o.tick = create_tick, o.on_bad = create_bad, o.context = &p;
  ii_status s = ii_pack_write(d, c->out, &o, &r, err);
  end_progress(&p);
  ii_dataset_free(d);
  II_TRY(s);
  printf("%lld images, %.1f MB in %lld shard%s of %s", (long long)r.images, (double)r.bytes * 1e-6,
         (long long)r.shards, r.shards == 1 ? "" : "s", c->out);
  if (o.max_side)
    printf("; %lld made smaller, %lld cannot be decoded", (long long)r.reencoded,
           (long long)r.undecodable);
  if (!o.no_crop_index)
    printf("; %.1f MB of crop indexes for %lld of them", (double)r.index_bytes * 1e-6,
           (long long)r.indexed);
  printf("\n");
  return II_OK;
}

/* ---- list ------------------------------------------------------------------------------------*/

static ii_status list_images(const ii_dataset *d, ii_error *err) {
  ii_bytes buffer = {0};
  ii_status s = II_OK;
  for (int64_t i = 0; s == II_OK && i < ii_dataset_size(d); i++) {
    char name[II_PATH_MAX];
    const uint8_t *bytes;
    int64_t n;
    ii_dataset_name(d, i, name);
    s = ii_dataset_read(d, i, &buffer, &bytes, &n, err);
    if (s == II_OK)
      printf("%s\t%d\t%lld\t%08x\n", name, (int)ii_dataset_label(d, i), (long long)n,
             (unsigned)ii_crc32c(0, bytes, n));
  }
  ii_bytes_free(&buffer);
  return s;
}

static ii_status list(const command *c, const ii_dataset *d, ii_error *err) {
  const int64_t classes = ii_dataset_num_classes(d), n = ii_dataset_size(d);
  if (c->images) return list_images(d, err);
  printf("%s: %lld images of %lld classes%s\n", c->pack, (long long)n, (long long)classes,
         ii_dataset_has_meta(d) ? ", with time and place" : "");
  if (ii_dataset_recoded(d) > 0)
    printf("%lld images have other bytes than the files they were made from\n",
           (long long)ii_dataset_recoded(d));
  int64_t index_bytes;
  const int64_t indexed = ii_dataset_packed_indexes(d, &index_bytes);
  printf("%lld images have a crop index (%.1f MB)\n", (long long)indexed,
         (double)index_bytes * 1e-6);
  int64_t *count = calloc((size_t)classes, sizeof *count);
  if (!count)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for %lld classes", (long long)classes);
  for (int64_t i = 0; i < n; i++) count[ii_dataset_label(d, i)]++;
  for (int64_t k = 0; k < classes; k++) {
    const char *name = ii_dataset_class_name(d, k);
    printf("%6lld  %-24s %lld\n", (long long)k, name ? name : "", (long long)count[k]);
  }
  free(count);
  return II_OK;
}

/* ---- verify ----------------------------------------------------------------------------------*/

typedef struct {
  const ii_dataset *set;
  ii_bytes *buffers;  /* [threads] */
  bool quiet_reading; /* what cannot be read is said elsewhere */
  _Atomic int64_t bad;
  progress bar;
} verification;

/* Whether the crop index is the one that is made of the image now. */
static ii_status verify_index(const ii_dataset *d, int64_t i, const uint8_t *bytes, int64_t n,
                              ii_error *err) {
  int64_t stored_n, made_n;
  uint8_t *made;
  const uint8_t *stored = ii_dataset_packed_index(d, i, bytes, &stored_n);
  if (!stored) return II_OK;
  II_TRY(ii_jpeg_index_make(bytes, n, &made, &made_n, err));
  const bool same = made_n == stored_n && memcmp(made, stored, (size_t)made_n) == 0;
  free(made);
  char path[II_PATH_MAX];
  ii_dataset_path(d, i, path);
  return same ? II_OK
              : ii_error_set(
                    err, II_ERR_FORMAT,
                    "'%s' has another crop index than is made of it now; pack the data set again",
                    path);
}

static void verify_one(void *context, int thread, int64_t i) {
  verification *v = context;
  const uint8_t *bytes;
  int64_t n;
  ii_error err = {0};
  ii_status s = ii_dataset_read(v->set, i, &v->buffers[thread], &bytes, &n, &err);
  if (s != II_OK && v->quiet_reading) return;
  if (s == II_OK) s = verify_index(v->set, i, bytes, n, &err);
  if (s == II_OK) return;
  atomic_fetch_add(&v->bad, 1);
  flockfile(stderr);
  fprintf(stderr, "pack: %s\n", err.text);
  funlockfile(stderr);
}

static bool verify_tick(void *context, int64_t done) {
  return show(&((verification *)context)->bar, done);
}

static bool scan_tick(void *context, int64_t done) {
  return show(context, done);
}

/* Decoding also finds what was damaged before it was packed. */
static ii_status verify_decoding(const command *c, const ii_dataset *d, int64_t *bad,
                                 ii_error *err) {
  progress p = start_progress(c, ii_dataset_size(d));
  ii_scan_report r;
  const ii_scan_options o = {.threads = c->threads, .tick = scan_tick, .context = &p};
  ii_status s = ii_scan(d, &o, &r, err);
  end_progress(&p);
  II_TRY(s);
  for (int64_t i = 0; i < r.bad_count; i++) {
    char name[II_PATH_MAX];
    ii_dataset_name(d, r.bad[i].sample, name);
    fprintf(stderr, "pack: %s: %s\n", name, r.bad[i].reason);
  }
  *bad = r.bad_count;
  ii_scan_free(&r);
  return II_OK;
}

/* Reading checks the checksums. */
static ii_status verify_reading(const command *c, const ii_dataset *d, int64_t *bad,
                                ii_error *err) {
  const int threads = c->threads ? c->threads : ii_parallel_processors();
  verification v = {
      .set = d, .quiet_reading = c->decode, .bar = start_progress(c, ii_dataset_size(d))};
  v.buffers = calloc((size_t)threads, sizeof *v.buffers);
  if (!v.buffers) return ii_error_set(err, II_ERR_MEMORY, "no memory for %d threads", threads);
  const ii_parallel loop = {threads, verify_one, verify_tick, &v};
  ii_status s = ii_parallel_run(&loop, ii_dataset_size(d), err);
  end_progress(&v.bar);
  for (int i = 0; i < threads; i++) ii_bytes_free(&v.buffers[i]);
  free(v.buffers);
  *bad = atomic_load(&v.bad);
  return s;
}

static ii_status verify(const command *c, const ii_dataset *d, ii_error *err) {
  int64_t bad = 0;
  int64_t undecodable = 0;
  II_TRY(verify_reading(c, d, &bad, err));
  if (c->decode) II_TRY(verify_decoding(c, d, &undecodable, err));
  bad += undecodable;
  if (bad > 0)
    return ii_error_set(err, II_ERR_FORMAT, "%lld of the %lld images of '%s' are damaged",
                        (long long)bad, (long long)ii_dataset_size(d), c->pack);
  printf("%s: all %lld images are good\n", c->pack, (long long)ii_dataset_size(d));
  return II_OK;
}

/* ---- extract ---------------------------------------------------------------------------------*/

/* The name as a path below the target; refused if it would lead out of it. */
static const char *safe_name(const char *name) {
  while (*name == '/') name++;
  for (const char *p = name; p; p = strchr(p, '/')) {
    p += *p == '/';
    if (p[0] == '.' && p[1] == '.' && (p[2] == '/' || !p[2])) return NULL;
  }
  return *name ? name : NULL;
}

/* Makes the folders above the file. */
static ii_status make_folders(char *path, ii_error *err) {
  for (char *p = path + 1; (p = strchr(p, '/')) != NULL; p++) {
    *p = 0;
    const bool good = mkdir(path, 0777) == 0 || errno == EEXIST;
    if (!good)
      ii_error_set(err, II_ERR_IO, "cannot make the folder '%s': %s", path, strerror(errno));
    *p = '/';
    if (!good) return II_ERR_IO;
  }
  return II_OK;
}

static ii_status write_file(const char *path, const uint8_t *bytes, int64_t n, ii_error *err) {
  FILE *f = fopen(path, "wb");
  bool good = f && fwrite(bytes, 1, (size_t)n, f) == (size_t)n;
  if (f && fclose(f) != 0) good = false;
  return good ? II_OK
              : ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
}

static ii_status extract_one(const command *c, const ii_dataset *d, int64_t i, FILE *names,
                             ii_bytes *buffer, ii_error *err) {
  char name[II_PATH_MAX], path[2 * II_PATH_MAX];
  const uint8_t *bytes;
  int64_t n;
  ii_dataset_name(d, i, name);
  const char *safe = safe_name(name);
  if (!safe) return ii_error_set(err, II_ERR_FORMAT, "'%s' would lie outside of --out", name);
  II_TRY(ii_dataset_read(d, i, buffer, &bytes, &n, err));
  snprintf(path, sizeof path, "%s/%s", c->out, safe);
  II_TRY(make_folders(path, err));
  fprintf(names, "%s\t%d\n", safe, (int)ii_dataset_label(d, i));
  return write_file(path, bytes, n, err);
}

static ii_status extract(const command *c, const ii_dataset *d, ii_error *err) {
  char path[II_PATH_MAX];
  ii_bytes buffer = {0};
  if (snprintf(path, sizeof path, "%s/list.txt", c->out) >= (int)sizeof path)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", c->out);
  II_TRY(make_folders(path, err));
  FILE *names = fopen(path, "w");
  if (!names) return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  progress p = start_progress(c, ii_dataset_size(d));
  ii_status s = II_OK;
  for (int64_t i = 0; s == II_OK && i < ii_dataset_size(d); i++) {
    s = extract_one(c, d, i, names, &buffer, err);
    if (i % 256 == 0 && !show(&p, i))
      s = ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
  }
  end_progress(&p);
  ii_bytes_free(&buffer);
  if (fclose(names) != 0 && s == II_OK)
    s = ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  if (s != II_OK) return s;
  printf("%lld images and list.txt in %s\n", (long long)ii_dataset_size(d), c->out);
  if (ii_dataset_recoded(d) > 0)
    printf("%lld of them have other bytes than the files they were made from\n",
           (long long)ii_dataset_recoded(d));
  return s;
}

/* ---- main ------------------------------------------------------------------------------------*/

static ii_status run(const command *c, ii_error *err) {
  ii_dataset *d;
  if (!strcmp(c->verb, "create")) return create(c, err);
  II_TRY(ii_dataset_open_packed(c->pack, false, &d, err));
  ii_status s = !strcmp(c->verb, "list")     ? list(c, d, err)
                : !strcmp(c->verb, "verify") ? verify(c, d, err)
                                             : extract(c, d, err);
  ii_dataset_free(d);
  return s;
}

int main(int argc, char **argv) {
  command c = {0};
  ii_error err = {0};
  for (int i = 1; i < argc; i++)
    if (!strcmp(argv[i], "--help")) return printf(usage, ii_source_help()), 0;
  signal(SIGINT, on_signal);
  signal(SIGTERM, on_signal);
  if (parse(&c, argc, argv, &err) != II_OK) return fprintf(stderr, "pack: %s\n", err.text), 2;
  if (run(&c, &err) == II_OK && fflush(stdout) == 0) return 0;
  fprintf(stderr, "pack: %s\n", err.status ? err.text : "cannot write the output");
  return err.status == II_ERR_ARG ? 2 : 1;
}
