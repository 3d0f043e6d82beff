/* Damaged config files: each is either read as a configuration that survives a round trip, or
 * refused with one sentence that names the file. Meant to be run under sanitizers. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "autograd/rng.h"
#include "train/config.h"

enum { ROOM = 1 << 16 };

/* What configs are made of, to be put in at random places. */
static const char *const pieces[] = {"{",
                                     "}",
                                     "[",
                                     "]",
                                     "(",
                                     ")",
                                     "=",
                                     ";",
                                     ",",
                                     "\"",
                                     "\\",
                                     "/*",
                                     "*/",
                                     "#",
                                     "//",
                                     "\n",
                                     "base",
                                     "model",
                                     "train",
                                     "1e999",
                                     "-",
                                     "0x",
                                     "0xfffff",
                                     "1L",
                                     "-1",
                                     "1e",
                                     "9999999999",
                                     "true",
                                     "\xff",
                                     "\x01",
                                     "\"\\x",
                                     "\"\\",
                                     "@include \"x\"",
                                     "base = \"quickstart.cfg\";",
                                     "model = {",
                                     "= (((((((((",
                                     "*",
                                     ".",
                                     "..",
                                     "1.2.3",
                                     "nan",
                                     ":",
                                     "$",
                                     "channels",
                                     "base = \"fuzz.cfg\";"};
enum { PIECES = sizeof pieces / sizeof *pieces };

static void damage(char *text, ii_rng *rng) {
  size_t n = strlen(text), at = ii_rng_below(rng, n + 1);
  const char *piece = pieces[ii_rng_below(rng, PIECES)];
  size_t m = strlen(piece), span = ii_rng_below(rng, 40);
  switch (ii_rng_below(rng, 6)) {
  case 0:
    text[at] = 0;
    return; /* cut off */
  case 1:
    if (at < n) text[at] = (char)(1 + ii_rng_below(rng, 255));
    return; /* one byte */
  case 2:
    if (at < n) text[at] ^= (char)(1 << ii_rng_below(rng, 7));
    return; /* one bit */
  case 3:   /* put in */
    if (n + m >= ROOM) return;
    memmove(text + at + m, text + at, n - at + 1);
    memcpy(text + at, piece, m);
    return;
  case 4: /* take out */
    if (at + span > n) return;
    memmove(text + at, text + at + span, n - at - span + 1);
    return;
  default: /* twice */
    if (at + span > n || n + span >= ROOM) return;
    memmove(text + at + span, text + at, n - at + 1);
  }
}

static void read_config(const char *name, char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", II_SOURCE_CONFIGS, name);
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  size_t n = fread(text, 1, ROOM / 4, f);
  text[n] = 0;
  fclose(f);
}

static void test_damaged(void **state) {
  static const char *const originals[] = {"base_1k.cfg", "internimage_g_22kto1k_512.cfg",
                                          "cifar10.cfg", "base_22kto1k.cfg"};
  char folder[] = "/tmp/ii_test_fuzz_XXXXXX", path[64];
  static char text[ROOM + 64];
  int refused = 0;
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/fuzz.cfg", folder);
  for (int i = 0; i < 600; i++) {
    ii_rng rng = ii_rng_make(2, II_RNG_TEST, (uint64_t)i, 0);
    read_config(originals[i % 4], text);
    for (uint64_t k = 1 + ii_rng_below(&rng, 4); k > 0; k--) damage(text, &rng);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(text, 1, strlen(text), f);
    assert_int_equal(fclose(f), 0);
    ii_config cfg, back;
    ii_error err = {0};
    ii_status status = ii_config_load(&cfg, path, &err);
    if (status != II_OK) { /* one sentence that names the file (or the base that it names) */
      assert_int_equal(err.status, status);
      if (!strstr(err.text, ".cfg") || strchr(err.text, '\n')) fail_msg("%d: %s", i, err.text);
      refused++;
      continue;
    }
    char *saved = NULL;
    assert_int_equal(ii_config_text(&cfg, &saved, &err), II_OK);
    if (ii_config_parse_text(&back, saved, "saved", &err) != II_OK) fail_msg("%d: %s", i, err.text);
    assert_memory_equal(&cfg, &back, sizeof cfg);
    ii_config_check(&cfg, &err); /* either way, but it returns */
    free(saved);
  }
  unlink(path);
  rmdir(folder);
  assert_true(refused > 200 && refused < 600); /* the damage is neither always fatal nor harmless */
}

/* The same for what a damaged checkpoint hands over, and for --set. */
static void test_damaged_text_and_set(void **state) {
  static char text[ROOM + 64];
  ii_config cfg;
  ii_config_default(&cfg);
  for (int i = 0; i < 300; i++) {
    ii_rng rng = ii_rng_make(3, II_RNG_TEST, (uint64_t)i, 0);
    char *saved = NULL;
    ii_error err = {0};
    ii_config_default(&cfg);
    assert_int_equal(ii_config_text(&cfg, &saved, &err), II_OK);
    snprintf(text, sizeof text, "%s", saved);
    free(saved);
    for (uint64_t k = 1 + ii_rng_below(&rng, 4); k > 0; k--) damage(text, &rng);
    if (ii_config_parse_text(&cfg, text, "saved", &err) != II_OK)
      assert_ptr_equal(strstr(err.text, "saved"), err.text);
    snprintf(text, sizeof text, "%s", i % 2 ? "model.depths=[1, 2, 3, 4]" : "train.eps=1e-3");
    damage(text, &rng);
    ii_error_clear(&err);
    if (ii_config_set(&cfg, text, &err) != II_OK)
      assert_ptr_equal(strstr(err.text, "--set"), err.text);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_damaged),
                                     cmocka_unit_test(test_damaged_text_and_set)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
