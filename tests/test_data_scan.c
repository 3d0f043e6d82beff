/* 2,000 damaged and strange images: the scan ends, keeps its memory bound, and reports exactly
 * those that the decoder refuses; training with its skip list meets no bad file, and without it
 * reports each. The programs scan and pack from end to end. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include "autograd/rng.h"
#include "data/loader.h"
#include "data/scan.h"
#include "data/skip_list.h"

#define GOLDEN     II_TEST_DATA "/golden/augment/"
#define EACH       200
#define MAX_PIXELS 1000000

enum { GOOD, BAD, EITHER }; /* what must come out */

static char root[256];
static ii_dataset *set;
static ii_rng rng;

static char *in_root(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

static void load(const char *name, ii_bytes *b) {
  char path[512];
  ii_error err = {0};
  snprintf(path, sizeof path, GOLDEN "%s", name);
  if (ii_bytes_read(b, path, &err) != II_OK) fail_msg("%s", err.text);
}

static void put(const char *path, const uint8_t *bytes, int64_t n) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, (size_t)n, f), n);
  assert_int_equal(fclose(f), 0);
}

/* ---- the kinds of images ---------------------------------------------------------------------*/

/* Writes image i of a kind; returns what must come of it. */
typedef int (*maker)(int i, const char *path);

static int64_t below(int64_t n) {
  return (int64_t)ii_rng_below(&rng, (uint64_t)n);
}

static int truncated(int i, const char *path) {
  static const char *const names[] = {"made_420_odd.JPEG", "made_progressive.JPEG", "png_rgb8.png",
                                      "png_rgb8_interlaced.png"};
  ii_bytes b = {0};
  load(names[i % 4], &b);
  /* 20 bytes from the end of a PNG there is still image data; of a JPEG at least the end marker */
  put(path, b.data, 1 + below(b.size - 21));
  ii_bytes_free(&b);
  return BAD;
}

static int wrong_extension(int i, const char *path) {
  static const char *const names[] = {"png_rgb8.png", "png_grey4.png", "noise_a.png",
                                      "png_rgba8.png"};
  static const char *const others[] = {"GIF89a\1\0\1\0\0\0\0;", "RIFF\x10\0\0\0WEBPVP8 ",
                                       "BM\x46\0\0\0\0\0\0\0\x36\0\0\0", "<html>not found</html>"};
  ii_bytes b = {0};
  if (i % 2) {
    put(path, (const uint8_t *)others[i / 2 % 4], i / 2 % 4 == 3 ? 22 : 14);
    return BAD;
  }
  load(names[i / 2 % 4], &b); /* all files are named .jpg */
  put(path, b.data, b.size);
  ii_bytes_free(&b);
  return GOOD;
}

static int cmyk(int i, const char *path) {
  ii_bytes b = {0};
  load("made_cmyk.JPEG", &b);
  for (int k = 0; k < i % 5; k++) b.data[2 + below(b.size - 2)] ^= (uint8_t)(1 << below(8));
  put(path, b.data, b.size);
  ii_bytes_free(&b);
  return i % 5 ? EITHER : GOOD;
}

static int png_kinds(int i, const char *path) {
  static const char *const names[] = {
      "png_rgb16.png",    "png_rgba16.png", "png_grey16.png",         "png_greya16.png",
      "png_palette4.png", "png_grey1.png",  "png_palette8_alpha.png", "png_rgb8_key.png"};
  ii_bytes b = {0};
  load(names[i % 8], &b);
  const bool hurt = i % 3 == 0;
  if (hurt) b.data[16 + below(b.size - 16)] ^= (uint8_t)(1 << below(8));
  put(path, b.data, b.size);
  ii_bytes_free(&b);
  return hurt ? EITHER : GOOD;
}

static int zeros_and_noise(int i, const char *path) {
  uint8_t bytes[4000] = {0};
  const int64_t n = i % 4 == 0 ? i / 4 % 12 : below(4000);
  for (int64_t k = 0; i % 4 > 1 && k < n; k++) bytes[k] = (uint8_t)ii_rng_u32(&rng);
  if (i % 4 == 3) memcpy(bytes, "\xff\xd8\xff\xe0", 4); /* as if it were a JPEG */
  put(path, bytes, n);
  return BAD;
}

static void put_u32(uint8_t *p, uint32_t v) {
  for (int k = 0; k < 4; k++) p[k] = (uint8_t)(v >> (24 - 8 * k));
}

/* Where the frame header of a JPEG is. */
static int64_t frame_of(const ii_bytes *b) {
  int64_t at = 2;
  while (b->data[at + 1] != 0xc0 && b->data[at + 1] != 0xc2)
    at += 2 + (b->data[at + 2] << 8 | b->data[at + 3]);
  return at;
}

static int giants(int i, const char *path) {
  ii_bytes b = {0};
  if (i % 2) {
    load("made_420_odd.JPEG", &b);
    uint8_t *p = b.data + frame_of(&b) + 5; /* height, width */
    const int h = 3000 + (int)below(62000), w = 1000 + (int)below(64000);
    p[0] = (uint8_t)(h >> 8), p[1] = (uint8_t)h, p[2] = (uint8_t)(w >> 8), p[3] = (uint8_t)w;
  } else {
    load("png_rgb8.png", &b);
    put_u32(b.data + 16, 2000u + (uint32_t)below(i % 4 ? 60000 : 2147480000));
    put_u32(b.data + 20, 2000u + (uint32_t)below(2147480000));
    put_u32(b.data + 29, (uint32_t)crc32(0, b.data + 12, 17));
  }
  put(path, b.data, b.size);
  ii_bytes_free(&b);
  return BAD;
}

/* A marker segment of n bytes put behind the first two of the file. */
static void with_segment(const ii_bytes *b, int marker, const uint8_t *data, int n,
                         const char *path) {
  uint8_t *out = malloc((size_t)b->size + (size_t)n + 4);
  memcpy(out, b->data, 2);
  out[2] = 0xff, out[3] = (uint8_t)marker;
  out[4] = (uint8_t)((n + 2) >> 8), out[5] = (uint8_t)(n + 2);
  memcpy(out + 6, data, (size_t)n);
  memcpy(out + 6 + n, b->data + 2, (size_t)b->size - 2);
  put(path, out, b->size + n + 4);
  free(out);
}

static int exif_garbage(int i, const char *path) {
  uint8_t data[300];
  ii_bytes b = {0};
  const int n = 6 + (int)below(290);
  for (int k = 0; k < n; k++) data[k] = (uint8_t)ii_rng_u32(&rng);
  memcpy(data, "Exif\0\0", 6);
  if (n > 20 && i % 2) memcpy(data + 6, i % 4 == 1 ? "II*\0\x08\0\0\0" : "MM\0*\0\0\0\x08", 8);
  if (n > 40 && i % 3 == 0) memcpy(data + 14, "\xff\xff\x12\x01\x03\x00", 6);
  load("made_444_odd.JPEG", &b);
  with_segment(&b, 0xe1, data, n, path);
  ii_bytes_free(&b);
  return GOOD;
}

/* The last scan of a progressive file again and again, or over an image of many pixels. */
static int progressive_bombs(int i, const char *path) {
  ii_bytes b = {0};
  load("made_progressive.JPEG", &b);
  int64_t last = 0;
  for (int64_t k = 2; k + 1 < b.size; k++)
    if (b.data[k] == 0xff && b.data[k + 1] == 0xda) last = k;
  const int64_t scan = b.size - 2 - last, times = 150 + below(3000);
  if (i % 2) {
    uint8_t *p = b.data + frame_of(&b) + 5;
    p[0] = 3, p[2] = 3; /* more than 768 x 768 */
  }
  uint8_t *out = malloc((size_t)(b.size + times * scan));
  memcpy(out, b.data, (size_t)b.size - 2);
  int64_t n = b.size - 2;
  for (int64_t k = 0; k < times; k++, n += scan) memcpy(out + n, b.data + last, (size_t)scan);
  memcpy(out + n, "\xff\xd9", 2);
  put(path, out, n + 2);
  free(out);
  ii_bytes_free(&b);
  return BAD;
}

/* A PNG whose few bytes unpack to the largest picture that is allowed, or that promises more rows
 * than there are. */
static int png_bombs(int i, const char *path) {
  const uint32_t w = 1000, h = i % 2 ? 1000 : 500, rows = i % 2 ? 1000 : 499;
  uLongf packed = 100000;
  uint8_t *raw = calloc(rows, w * 3 + 1), *out = malloc(packed + 100);
  assert_int_equal(compress2(out + 41, &packed, raw, rows * (w * 3 + 1), 9), Z_OK);
  memcpy(out, "\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16);
  put_u32(out + 16, w), put_u32(out + 20, h);
  memcpy(out + 24, "\x08\x02\0\0", 5);
  put_u32(out + 29, (uint32_t)crc32(0, out + 12, 17));
  put_u32(out + 33, (uint32_t)packed);
  memcpy(out + 37, "IDAT", 4);
  put_u32(out + 41 + packed, (uint32_t)crc32(0, out + 37, 4 + (uInt)packed));
  memcpy(out + 45 + packed, "\0\0\0\0IEND\xae\x42\x60\x82", 12);
  put(path, out, 57 + (int64_t)packed);
  free(raw);
  free(out);
  return i % 2 ? GOOD : BAD;
}

static const struct {
  const char *name;
  maker make;
} kinds[] = {{"a_truncated", truncated},
             {"b_extension", wrong_extension},
             {"c_cmyk", cmyk},
             {"d_png", png_kinds},
             {"e_zero", zeros_and_noise},
             {"f_giant", giants},
             {"g_exif", exif_garbage},
             {"h_progressive", progressive_bombs},
             {"i_inflate", png_bombs},
             {"j_good", NULL}};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int expected[KINDS * EACH];

static int plain(int i, const char *path) {
  ii_bytes b = {0};
  load(i % 2 ? "made_gray_odd.JPEG" : "made_q5.JPEG", &b);
  put(path, b.data, b.size);
  ii_bytes_free(&b);
  return GOOD;
}

static int setup(void **state) {
  ii_error err = {0};
  char path[600];
  strcpy(root, "/tmp/ii_scan_XXXXXX");
  if (!mkdtemp(root) || mkdir(in_root("set"), 0777) != 0) return -1;
  rng = ii_rng_make(9, II_RNG_TEST, 0, 0);
  for (int k = 0; k < KINDS; k++) {
    snprintf(path, sizeof path, "%s/set/%s", root, kinds[k].name);
    mkdir(path, 0777);
    for (int i = 0; i < EACH; i++) {
      snprintf(path, sizeof path, "%s/set/%s/%03d.jpg", root, kinds[k].name, i);
      expected[k * EACH + i] = (kinds[k].make ? kinds[k].make : plain)(i, path);
    }
  }
  return ii_dataset_open_folder(in_root("set"), NULL, &set, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(set);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static const ii_decode_options limits = {.max_pixels = MAX_PIXELS};

static ii_scan_report do_scan(int threads) {
  ii_error err = {0};
  ii_scan_report r;
  const ii_scan_options o = {.threads = threads, .decode = limits};
  if (ii_scan(set, &o, &r, &err) != II_OK) fail_msg("%s", err.text);
  return r;
}

/* ---- tests -----------------------------------------------------------------------------------*/

static void test_each_is_reported(void **state) {
  ii_decoder *decoder;
  ii_error err = {0};
  ii_image img = {0};
  ii_bytes b = {0};
  ii_scan_report r = do_scan(3);
  int64_t at = 0, good[KINDS] = {0};
  assert_int_equal(r.images, KINDS * EACH);
  assert_int_equal(ii_decoder_new(&decoder, &err), II_OK);
  for (int64_t i = 0; i < r.images; i++) {
    const ii_scan_bad *bad = at < r.bad_count && r.bad[at].sample == i ? &r.bad[at++] : NULL;
    char path[II_PATH_MAX];
    ii_dataset_path(set, i, path);
    ii_error_clear(&err);
    ii_status s = ii_bytes_read(&b, path, &err);
    if (s == II_OK) s = ii_image_decode(decoder, b.data, b.size, &limits, &img, &err);
    if ((s != II_OK) != (bad != NULL)) fail_msg("%s: scan and decoder differ", path);
    if (expected[i] != EITHER && (bad != NULL) != (expected[i] == BAD))
      fail_msg("%s: %s", path, bad ? bad->reason : "should be refused");
    good[i / EACH] += !bad;
    if (!bad) continue;
    assert_string_equal(bad->reason, err.text);
    assert_true(strlen(bad->reason) > 10 && !strpbrk(bad->reason, "\n\t"));
    assert_int_equal(bad->bytes, b.size);
  }
  assert_int_equal(at, r.bad_count);
  assert_int_equal(r.jpeg + r.png + r.bad_count, r.images);
  assert_true(r.max_pixels <= MAX_PIXELS && r.misnamed >= 100 && r.png == r.misnamed);
  assert_true(good[2] >= 40 && good[3] >= 133); /* the undamaged of the kinds that are EITHER */
  ii_scan_free(&r);
  ii_decoder_free(decoder);
  ii_image_free(&img);
  ii_bytes_free(&b);
}

static void test_threads_do_not_matter(void **state) {
  ii_scan_report a = do_scan(1), b = do_scan(7);
  assert_int_equal(a.bad_count, b.bad_count);
  for (int64_t i = 0; i < a.bad_count; i++) {
    assert_int_equal(a.bad[i].sample, b.bad[i].sample);
    assert_int_equal(a.bad[i].crc, b.bad[i].crc);
    assert_string_equal(a.bad[i].reason, b.bad[i].reason);
  }
  assert_true(a.jpeg == b.jpeg && a.png == b.png && a.turned == b.turned && a.bytes == b.bytes);
  assert_true(a.min_side == b.min_side && a.max_side == b.max_side);
  ii_scan_free(&a);
  ii_scan_free(&b);
}

/* 4 threads with images of at most 2 megapixels: 6 MB of pixels and, for a progressive file, at
 * most 12 MB of coefficients each; the bombs promise gigabytes. */
static void test_memory_is_bounded(void **state) {
  pid_t child = fork();
  if (child == 0) {
    ii_scan_report r = do_scan(4);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    ii_scan_free(&r);
    r = do_scan(4);
    getrusage(RUSAGE_SELF, &after);
    long limit = 100 * 1024;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    limit *= 8; /* their own memory */
#endif
    _exit(before.ru_maxrss < limit && after.ru_maxrss < limit ? 0 : 1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

/* What a loader reports is on the list of the scan, each file once. */
typedef struct {
  const ii_scan_report *scan; /* NULL: nothing may be reported */
  bool *seen;                 /* [scan->bad_count] */
  int count;
} bad_files;

static void on_bad(void *context, const char *path, const char *reason) {
  bad_files *f = context;
  char listed[II_PATH_MAX];
  f->count++;
  for (int64_t i = 0; f->scan && i < f->scan->bad_count; i++) {
    ii_dataset_path(set, f->scan->bad[i].sample, listed);
    if (strcmp(listed, path) != 0) continue;
    assert_false(f->seen[i]);
    f->seen[i] = true;
    return;
  }
  fail_msg("%s is not on the list: %s", path, reason);
}

static int train_epoch(const ii_dataset *d, const ii_scan_report *scan) {
  bad_files bad = {.scan = scan};
  ii_error err = {0};
  ii_loader *l;
  const ii_batch *b;
  ii_loader_config c = ii_loader_config_default(d, ii_transform_default(32, true), 20);
  c.endless = false, c.drop_last = false, c.shuffle = true, c.replace_bad = !scan;
  c.decode = limits, c.on_bad = on_bad, c.context = &bad, c.threads = 3;
  if (scan) bad.seen = calloc((size_t)scan->bad_count, sizeof *bad.seen);
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  do
    if (ii_loader_next(l, &b, &err) != II_OK) fail_msg("%s", err.text);
  while (b);
  ii_loader_free(l);
  free(bad.seen);
  return bad.count;
}

static void test_training_with_the_list(void **state) {
  ii_error err = {0};
  ii_scan_report r = do_scan(2);
  ii_dataset *d;
  assert_int_equal(ii_scan_write_list(set, &r, in_root("skip.txt"), &err), II_OK);
  /* training may not look at all of an image, and so not meet the damage in a few */
  const int met = train_epoch(set, &r);
  assert_true(met <= r.bad_count && met > r.bad_count * 19 / 20);
  assert_int_equal(ii_dataset_open_folder(in_root("set"), NULL, &d, &err), II_OK);
  if (ii_dataset_skip(d, in_root("skip.txt"), &err) != II_OK) fail_msg("%s", err.text);
  const ii_skip_result *s = ii_dataset_skip_result(d);
  assert_true(s->listed == r.bad_count && s->skipped == r.bad_count && !s->changed && !s->unknown);
  assert_int_equal(ii_dataset_size(d), r.images - r.bad_count);
  assert_int_equal(train_epoch(d, NULL), 0);
  /* labels and names moved together */
  for (int64_t i = 0; i < ii_dataset_size(d); i++) {
    char name[II_PATH_MAX];
    ii_dataset_name(d, i, name);
    assert_int_equal(name[0] - 'a', ii_dataset_label(d, i));
  }
  ii_dataset_free(d);
  ii_scan_free(&r);
}

/* A file that was mended since is used again; what is not there is counted. */
static void test_list_is_older_than_the_data(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  mkdir(in_root("two"), 0777), mkdir(in_root("two/x"), 0777), mkdir(in_root("two/y"), 0777);
  plain(0, in_root("two/x/1.jpg")), plain(0, in_root("two/y/1.jpg"));
  put(in_root("two/x/2.jpg"), (const uint8_t *)"bad", 3);
  put(in_root("two/x/3.jpg"), (const uint8_t *)"", 0);
  ii_scan_report r;
  assert_int_equal(ii_dataset_open_folder(in_root("two"), NULL, &d, &err), II_OK);
  assert_int_equal(ii_scan(d, &(ii_scan_options){0}, &r, &err), II_OK);
  assert_int_equal(r.bad_count, 2);
  assert_int_equal(ii_scan_write_list(d, &r, in_root("two.txt"), &err), II_OK);
  ii_scan_free(&r);
  ii_dataset_free(d);
  FILE *f = fopen(in_root("two.txt"), "a");
  fprintf(f, "x/9.jpg\t12\t00000000\tgone since\n");
  fclose(f);
  plain(1, in_root("two/x/2.jpg"));
  assert_int_equal(ii_dataset_open_folder(in_root("two"), NULL, &d, &err), II_OK);
  assert_int_equal(ii_dataset_skip(d, in_root("two.txt"), &err), II_OK);
  const ii_skip_result *s = ii_dataset_skip_result(d);
  assert_true(s->listed == 3 && s->skipped == 1 && s->changed == 1 && s->unknown == 1);
  assert_int_equal(ii_dataset_size(d), 3);
  ii_dataset_free(d);
  static const char *const wrong[] = {"x/1.jpg\n", "x/1.jpg\t5\n", "x/1.jpg\tfive\t00000000\n",
                                      "x/1.jpg\t5\t123\tshort\n", "\t5\t00000000\n"};
  for (int i = 0; i < 5; i++) {
    put(in_root("two.txt"), (const uint8_t *)wrong[i], (int64_t)strlen(wrong[i]));
    assert_int_equal(ii_dataset_open_folder(in_root("two"), NULL, &d, &err), II_OK);
    assert_int_equal(ii_dataset_skip(d, in_root("two.txt"), &err), II_ERR_FORMAT);
    assert_non_null(strstr(err.text, "two.txt:1: expected"));
    ii_error_clear(&err);
    ii_dataset_free(d);
  }
}

/* ---- the programs ----------------------------------------------------------------------------*/

static int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *fmt, ...) {
  char arguments[2000], command[4000];
  va_list args;
  va_start(args, fmt);
  vsnprintf(arguments, sizeof arguments, fmt, args);
  va_end(args);
  snprintf(command, sizeof command, "%s/%s >%s/out 2>%s/err", II_BIN, arguments, root, root);
  int status = system(command);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool said(const char *file, const char *text) {
  static char buffer[1 << 16];
  FILE *f = fopen(in_root(file), "r");
  assert_non_null(f);
  buffer[fread(buffer, 1, sizeof buffer - 1, f)] = 0;
  fclose(f);
  return strstr(buffer, text) != NULL;
}

static void test_programs(void **state) {
  ii_scan_report r = do_scan(2);
  char text[100];
  assert_int_equal(
      run("scan --folder %s/set --max-pixels %d --out %s/cli.txt --quiet", root, MAX_PIXELS, root),
      3);
  snprintf(text, sizeof text, "%lld cannot be used", (long long)r.bad_count);
  assert_true(said("out", text));
  ii_scan_free(&r);
  /* the good ones, packed and back again */
  assert_int_equal(run("pack create --folder %s/set --skip-list %s/cli.txt --out %s/p.h5 --quiet",
                       root, root, root),
                   0);
  assert_int_equal(run("pack list %s/p.h5", root), 0);
  assert_true(said("out", "j_good                   200"));
  assert_int_equal(run("pack verify %s/p.h5 --decode --quiet", root), 0);
  assert_int_equal(run("scan --packed %s/p.h5 --quiet", root), 0);
  assert_int_equal(run("pack extract %s/p.h5 --out %s/back --quiet", root, root), 0);
  char command[1000];
  snprintf(command, sizeof command, "diff -r %s/set/j_good %s/back/j_good", root, root);
  assert_int_equal(system(command), 0);
  assert_int_equal(run("scan --packed %s/back/p.h5", root), 1);
  assert_true(said("err", "cannot open"));
  /* no room on the disk: one sentence, not HDF5's crash at exit */
  snprintf(command, sizeof command,
           "trap '' XFSZ; ulimit -f 8; cd %s; %s/pack create --folder set --out full.h5 --quiet "
           "--skip-list cli.txt 2>err; test $? = 1 && ! ls full* 2>err2",
           root, II_BIN);
  assert_int_equal(system(command), 0);
  assert_true(said("err", "check the free space"));
  assert_int_equal(run("scan"), 2);
  assert_int_equal(run("scan --folder"), 2);
  assert_int_equal(run("scan --folder x --list y"), 2);
  assert_int_equal(run("pack"), 2);
  assert_int_equal(run("pack create --folder x"), 2);
  assert_int_equal(run("pack list --quality 3 x.h5"), 2);
  assert_int_equal(run("pack --help"), 0);
  assert_int_equal(run("scan --help"), 0);
}

static void test_progress_text(void **state) {
  char text[160];
  ii_progress_text(50, 100, 10, text, sizeof text);
  assert_string_equal(text, "[===============>              ]  50 %  50/100  5/s  0:10 left");
  ii_progress_text(0, 100, 0, text, sizeof text);
  assert_non_null(strstr(text, "[>  "));
  ii_progress_text(100, 100, 1, text, sizeof text);
  assert_non_null(strstr(text, "==] 100 %  100/100  100/s  0:00 left"));
}

/* Names with tabs, line ends, backslashes and a '#' in front; lists that were made before there
 * were escapes. */
static void test_strange_names(void **state) {
  static const char *const names[] = {"a\tb.jpg", "c\nd.jpg", "e\\tf.jpg",
                                      "#g.jpg",   "h\ri.jpg", "good.jpg"};
  enum { NAMES = sizeof names / sizeof *names };
  char folder[600], path[700];
  uint8_t rgb[20 * 20 * 3] = {0};
  ii_error err = {0};
  ii_dataset *d;
  ii_scan_report r;
  snprintf(folder, sizeof folder, "%s/strange", root);
  mkdir(folder, 0777);
  snprintf(path, sizeof path, "%s/#k", folder); /* the names begin with the class */
  mkdir(path, 0777);
  for (int i = 0; i < NAMES; i++) {
    snprintf(path, sizeof path, "%s/#k/%s", folder, names[i]);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("no picture", f);
    fclose(f);
    if (i == NAMES - 1) assert_int_equal(ii_image_write_jpeg(path, rgb, 20, 20, 90, &err), II_OK);
  }
  assert_int_equal(ii_dataset_open_folder(folder, NULL, &d, &err), II_OK);
  assert_int_equal(ii_scan(d, &(ii_scan_options){0}, &r, &err), II_OK);
  assert_int_equal(r.bad_count, NAMES - 1);
  assert_int_equal(ii_scan_write_list(d, &r, in_root("strange.txt"), &err), II_OK);
  const uint32_t before = ii_dataset_fingerprint(d);
  if (ii_dataset_skip(d, in_root("strange.txt"), &err) != II_OK) fail_msg("%s", err.text);
  const ii_skip_result *s = ii_dataset_skip_result(d);
  assert_true(s->listed == NAMES - 1 && s->skipped == NAMES - 1 && s->unknown == 0);
  assert_int_equal(ii_dataset_size(d), 1);
  assert_int_not_equal(ii_dataset_fingerprint(d), before);
  ii_dataset_free(d);
  /* an older list: a backslash is one, and "#" begins a comment */
  FILE *f = fopen(in_root("old.txt"), "w");
  assert_non_null(f);
  fprintf(f, "# a comment\n#k/good.jpg\t10\t00000000\tno name\n");
  for (int i = 0; i < r.bad_count; i++)
    fprintf(f, "k\\t%d.jpg\t10\t%08x\twhy\n", i, (unsigned)r.bad[0].crc);
  fclose(f);
  snprintf(path, sizeof path, "%s/list.txt", folder);
  f = fopen(path, "w");
  assert_non_null(f);
  fprintf(f, "k\\t0.jpg 0\n#k/good.jpg 0\n");
  fclose(f);
  snprintf(path, sizeof path, "%s/k\\t0.jpg", folder);
  f = fopen(path, "w");
  assert_non_null(f);
  fputs("no picture", f);
  fclose(f);
  snprintf(path, sizeof path, "%s/list.txt", folder);
  assert_int_equal(ii_dataset_open_list(path, folder, 0, &d, &err), II_OK);
  if (ii_dataset_skip(d, in_root("old.txt"), &err) != II_OK) fail_msg("%s", err.text);
  s = ii_dataset_skip_result(d);
  assert_true(s->listed == NAMES - 1 && s->skipped == 1 && s->unknown == NAMES - 2);
  ii_dataset_free(d);
  /* escapes that are never written */
  f = fopen(in_root("bad.txt"), "w");
  assert_non_null(f);
  fprintf(f, "%s\nk\\x.jpg\t10\t00000000\twhy\n", II_SKIP_ESCAPES);
  fclose(f);
  assert_int_equal(ii_dataset_open_folder(folder, NULL, &d, &err), II_OK);
  assert_int_equal(ii_dataset_skip(d, in_root("bad.txt"), &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "bad.txt:2"));
  ii_dataset_free(d);
  ii_scan_free(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_each_is_reported),
      cmocka_unit_test(test_threads_do_not_matter),
      cmocka_unit_test(test_memory_is_bounded),
      cmocka_unit_test(test_training_with_the_list),
      cmocka_unit_test(test_list_is_older_than_the_data),
      cmocka_unit_test(test_programs),
      cmocka_unit_test(test_progress_text),
      cmocka_unit_test(test_strange_names),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
