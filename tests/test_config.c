/* The configuration: keys, types, ranges, errors with their place, bases, overrides, texts. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "autograd/rng.h"
#include "train/config_table.h"

static char folder[] = "/tmp/ii_test_config_XXXXXX";
static char start[4096]; /* where the test was started */

static int setup(void **state) {
  if (!getcwd(start, sizeof start) || !mkdtemp(folder) || chdir(folder) != 0) return 1;
  return mkdir("sub", 0755);
}

static int remove_all(const char *dir) {
  DIR *d = opendir(dir);
  if (!d) return 1;
  for (struct dirent *e; (e = readdir(d));) {
    char path[4096];
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    if (unlink(path) != 0) remove_all(path);
  }
  closedir(d);
  return rmdir(dir);
}

static int teardown(void **state) {
  return chdir(start) || remove_all(folder);
}

static void write_file(const char *name, const char *text) {
  FILE *f = fopen(name, "wb");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

static void assert_contains(const char *text, const char *part) {
  if (!strstr(text, part)) fail_msg("\"%s\" lacks \"%s\"", text, part);
}

static char *text_of(const ii_config *cfg) {
  char *text = NULL;
  ii_error err = {0};
  assert_int_equal(ii_config_text(cfg, &text, &err), II_OK);
  return text;
}

static void assert_same(const ii_config *a, const ii_config *b) {
  char *ta = text_of(a), *tb = text_of(b);
  assert_string_equal(ta, tb);
  assert_memory_equal(a, b, sizeof *a); /* unused bytes are zero, so this is exact equality */
  free(ta);
  free(tb);
}

static void assert_round_trip(const ii_config *cfg) {
  ii_config back;
  ii_error err = {0};
  char *text = text_of(cfg);
  if (ii_config_parse_text(&back, text, "saved", &err) != II_OK) fail_msg("%s", err.text);
  assert_same(cfg, &back);
  free(text);
}

static void set_ok(ii_config *cfg, const char *assignment) {
  ii_error err = {0};
  if (ii_config_set(cfg, assignment, &err) != II_OK) fail_msg("%s", err.text);
}

/* Parses text, which must be refused with a sentence that contains each of the parts. */
static void refuse(const char *text, ii_status status, const char *part1, const char *part2) {
  ii_config cfg, def;
  ii_error err = {0};
  ii_config_default(&def);
  assert_int_equal(ii_config_parse_text(&cfg, text, "x.cfg", &err), status);
  assert_contains(err.text, part1);
  assert_contains(err.text, part2);
  assert_same(&cfg, &def);
}

/* The defaults are those of the official config.py, or say in the help what they are. */
static void test_defaults(void **state) {
  ii_config cfg;
  ii_error err = {0};
  ii_config_default(&cfg);
  assert_int_equal(cfg.model.channels, 64);
  assert_int_equal(cfg.model.depths.count, 4);
  assert_int_equal(cfg.model.depths.v[2], 18);
  assert_int_equal(cfg.model.core_op, ii_model_core_op_DCNv3);
  assert_true(cfg.train.base_lr == 5e-4 && cfg.train.warmup_lr == 5e-7);
  assert_true(cfg.train.betas.v[1] == 0.999 && cfg.data.crop_ratio.v[1] == 4.0 / 3.0);
  assert_true(cfg.train.nesterov && !cfg.train.ema);
  assert_int_equal(ii_config_check(&cfg, &err), II_OK);
  assert_round_trip(&cfg);
}

/* Another value for a key that is not its present one and is in range. */
static void other_value(const ii_option *o, const ii_config *cfg, char *value, size_t size) {
  const void *now = (const char *)cfg + o->offset;
  double inside = o->min + 0.37 * (o->max - o->min);
  switch (o->kind) {
  case II_KIND_BOOL:
    snprintf(value, size, "%s", *(const bool *)now ? "false" : "true");
    return;
  case II_KIND_INT:
    snprintf(value, size, "%.0f", floor(inside));
    return;
  case II_KIND_DOUBLE:
    snprintf(value, size, "%.17g", inside);
    return;
  case II_KIND_STRING:
    snprintf(value, size, "some \"text\\");
    return;
  case II_KIND_ENUM:
    snprintf(value, size, "%s", o->choices[*(const int *)now == 0]);
    return;
  case II_KIND_INTS:
  case II_KIND_DOUBLES:
    break;
  }
  value[0] = 0;
  for (int64_t i = 0; i < o->nmax; i++)
    snprintf(value + strlen(value), size - strlen(value), "%s%.17g", i ? "," : "",
             o->kind == II_KIND_INTS ? o->max : inside);
}

static void test_every_key(void **state) {
  int64_t count = 0;
  for (char key[96]; ii_config_key(count, key, sizeof key); count++) {
    ii_config def, cfg;
    char value[256], assignment[400], before[512], after[512];
    ii_config_default(&def);
    cfg = def;
    other_value(&ii_config_options[count], &def, value, sizeof value);
    snprintf(assignment, sizeof assignment, "%s=%s", key, value);
    set_ok(&cfg, assignment);
    assert_true(ii_config_value(&def, key, before, sizeof before));
    assert_true(ii_config_value(&cfg, key, after, sizeof after));
    assert_string_not_equal(before, after);
    assert_round_trip(&cfg);
    for (int64_t other = 0; other < ii_config_option_count; other++) { /* and no other key moves */
      char name[96];
      ii_config_key(other, name, sizeof name);
      ii_config_value(&def, name, before, sizeof before);
      ii_config_value(&cfg, name, after, sizeof after);
      if (other != count) assert_string_equal(before, after);
    }
  }
  assert_int_equal(count, ii_config_option_count);
  char none[8] = "x";
  assert_false(ii_config_key(-1, none, sizeof none));
  assert_string_equal(none, "");
  assert_false(ii_config_value(&(ii_config){0}, "model.nothing", none, sizeof none));
}

/* Just outside its range, and of each wrong type, every key is refused. */
static void test_every_range_and_type(void **state) {
  static const char *const values[] = {"3", "0.5", "true", "\"zzz\"", "(1, (2, 3))", "{ a = 1; }"};
  static const unsigned allowed[] = {
      /* by kind, a bit for each of values that may be accepted */
      [II_KIND_BOOL] = 4, [II_KIND_INT] = 1,  [II_KIND_DOUBLE] = 3, [II_KIND_STRING] = 8,
      [II_KIND_ENUM] = 0, [II_KIND_INTS] = 0, [II_KIND_DOUBLES] = 0};
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    char text[256], where[96], name[96];
    snprintf(where, sizeof where, "x.cfg:2: ");
    ii_config_key(i, name, sizeof name);
    for (int v = 0; v < 6; v++) {
      snprintf(text, sizeof text, "%s = {\n  %s = %s; };\n", o->section, o->name, values[v]);
      if (!(allowed[o->kind] >> v & 1)) refuse(text, II_ERR_ARG, where, name);
    }
    if (o->kind != II_KIND_INT && o->kind != II_KIND_DOUBLE) continue;
    bool whole = o->kind == II_KIND_INT;
    double below = whole ? o->min - 1 : nextafter(o->min, -INFINITY) - 1e-300;
    double above = whole ? o->max + 1 : nextafter(o->max, INFINITY);
    snprintf(text, sizeof text, whole ? "%s = {\n%s = %.0f; };" : "%s = {\n%s = %.17g; };",
             o->section, o->name, below);
    refuse(text, II_ERR_ARG, where, name);
    snprintf(text, sizeof text, whole ? "%s = {\n%s = %.0fL; };" : "%s = {\n%s = %#.17g; };",
             o->section, o->name, above);
    refuse(text, II_ERR_ARG, where, name);
  }
}

static void test_unknown_keys(void **state) {
  refuse("model = {\n\n chanels = 3;\n};", II_ERR_ARG, "x.cfg:3: ", "nearest is model.channels");
  refuse("model = { epochs = 3; };", II_ERR_ARG, "x.cfg:1: ", "nearest is train.epochs");
  refuse("\nepochs = 3;", II_ERR_ARG, "x.cfg:2: there is no key epochs", "is train.epochs");
  refuse("trian = { base_lr = 1.0; };", II_ERR_ARG, "no key trian", "nearest");
  refuse("train = { lr_layer_decay_ration = 1; };", II_ERR_ARG, "x.cfg:1",
         "train.lr_layer_decay_ratio");
  refuse("data = { WORKERS = 1; };", II_ERR_ARG, "data.WORKERS", "data.workers");
  refuse("model = 5;", II_ERR_ARG, "x.cfg:1", "model must be a group");
  refuse("model = { model = { channels = 4; }; };", II_ERR_ARG, "no key model.model", "nearest");
}

static void test_syntax(void **state) {
  refuse("model = {\n channels = 64;\n channels = 32;\n};", II_ERR_FORMAT, "x.cfg:3", "duplicate");
  refuse("model = { };\nmodel = { };", II_ERR_FORMAT, "x.cfg:2", "duplicate");
  refuse("model = {\n channels = ;\n};", II_ERR_FORMAT, "x.cfg:2", "syntax");
  refuse("a = 1;\n\n/* never ends\nmodel = { channels = 32; };", II_ERR_FORMAT, "x.cfg:3",
         "no end");
  refuse("data = {\n root = \"a\";\n train_list = \"b;\n};", II_ERR_FORMAT, "x.cfg:3", "quote");
  refuse("model = {\n \"name\" = \"a\";\n};", II_ERR_FORMAT, "x.cfg:2", "cannot stand here");
  refuse("a = (((((((((1)))))))));", II_ERR_FORMAT, "x.cfg:1", "brackets");
  refuse("\n  @include \"/etc/passwd\"\n", II_ERR_FORMAT, "x.cfg:2", "base");
  refuse("base = \"internimage_t_1k.cfg\";", II_ERR_ARG, "x.cfg:1", "only possible in a file");
  /* whole numbers that libconfig would wrap round into the range */
  refuse("train = {\n seed = 4294967296; };", II_ERR_ARG, "x.cfg:2", "4294967296");
  refuse("train = { seed = 99999999999999999999999999; };", II_ERR_ARG, "x.cfg:1", "too large");
  refuse("train = { seed = 0x1000000000; };", II_ERR_ARG, "x.cfg:1", "too large");
  refuse("train = { seed = 4294967296L; };", II_ERR_ARG, "x.cfg:1", "out of range");
  refuse("train = { base_lr = 1e999; };", II_ERR_ARG, "x.cfg:1", "out of range");
  refuse("train = { base_lr = nan; };", II_ERR_FORMAT, "x.cfg:1", "syntax");
}

/* What may be written in more than one way. */
static void test_accepted(void **state) {
  ii_config cfg;
  ii_error err = {0};
  const char *text = "// a comment \"with\" 99999999999 and [ brackets\n"
                     "# another /* one\n/* and\n 99999999999 [ a third */\n"
                     "data : { root = \"a [b] /* 99999999999\" \"-c\"; crop_scale = [0.08, 1];\n"
                     "mean = (0, .5, 1) };\n"
                     "train = { base_lr = 1e-3, warmup_lr = 1E-6; min_lr = 0.1234567890123456789;\n"
                     "  betas = [0.5, 0.25]; clip_grad = 3; seed = 0x10; ema = TRUE;\n"
                     "  freeze_stages = []; };";
  if (ii_config_parse_text(&cfg, text, "x.cfg", &err) != II_OK) fail_msg("%s", err.text);
  assert_string_equal(cfg.data.root, "a [b] /* 99999999999-c");
  assert_true(cfg.data.crop_scale.v[0] == 0.08 && cfg.data.crop_scale.v[1] == 1);
  assert_true(cfg.data.mean.v[1] == 0.5 && cfg.data.mean.count == 3);
  assert_true(cfg.train.base_lr == 1e-3 && cfg.train.warmup_lr == 1e-6);
  assert_true(cfg.train.min_lr == 0.1234567890123456789 && cfg.train.clip_grad == 3);
  assert_int_equal(cfg.train.seed, 16);
  assert_true(cfg.train.ema);
  assert_int_equal(cfg.train.freeze_stages.count, 0);
  assert_round_trip(&cfg);
}

/* A key of older versions: in what a checkpoint stored it means nothing, elsewhere it is unknown.
 */
static void test_retired_key(void **state) {
  ii_config cfg;
  ii_error err = {0};
  const char *text = "train = { deterministic = true; base_lr = 0.5; };";
  if (ii_config_parse_text(&cfg, text, "old.h5", &err) != II_OK) fail_msg("%s", err.text);
  assert_true(cfg.train.base_lr == 0.5);
  assert_int_equal(ii_config_set(&cfg, "train.deterministic=true", &err), II_ERR_ARG);
}

static void test_round_trip(void **state) {
  ii_rng rng = ii_rng_make(7, II_RNG_TEST, 0, 0);
  ii_config cfg;
  ii_config_default(&cfg);
  for (int i = 0; i < 300; i++) {
    cfg.train.base_lr = exp(ii_rng_range(&rng, -40, 6));
    cfg.train.min_lr = nextafter((double)ii_rng_below(&rng, 1000), i % 2 ? 0 : 1000);
    cfg.train.save_every_minutes = (double)ii_rng_below(&rng, 100000);
    cfg.train.betas.v[1] = ii_rng_uniform(&rng) * 0.999;
    cfg.train.seed = (int64_t)ii_rng_below(&rng, 2147483648);
    memset(cfg.data.root, 0, sizeof cfg.data.root);
    size_t n = ii_rng_below(&rng, i % 10 == 0 ? II_CONFIG_STRING : 30);
    for (size_t k = 0; k < n; k++) cfg.data.root[k] = (char)(1 + ii_rng_below(&rng, 255));
    assert_round_trip(&cfg);
  }
}

static void test_bases(void **state) {
  ii_config cfg;
  ii_error err = {0};
  write_file("sub/a.cfg", "model = { channels = 16; cls_scale = 2.0; groups = [1, 2, 4, 8]; };");
  write_file("sub/b.cfg", "base = \"a\"; model = { channels = 32; name = \"b\"; };");
  write_file("c.cfg", "model = { name = \"c\"; };\nbase = \"sub/b.cfg\";\ntrain = { seed = 5; };");
  assert_int_equal(ii_config_load(&cfg, "c", &err), II_OK); /* c over b over a over defaults */
  assert_string_equal(cfg.model.name, "c");
  assert_int_equal(cfg.model.channels, 32);
  assert_true(cfg.model.cls_scale == 2);
  assert_int_equal(cfg.model.groups.v[3], 8);
  assert_int_equal(cfg.model.depths.v[2], 18);
  assert_int_equal(cfg.train.seed, 5);

  write_file("t.cfg", "base = \"internimage_t_1k.cfg\"; train = { epochs = 7; };");
  assert_int_equal(ii_config_load(&cfg, "./t.cfg", &err), II_OK); /* from configs/ */
  assert_int_equal(cfg.train.epochs, 7);
  assert_int_equal(cfg.model.num_classes, 1000);

  write_file("internimage_t_1k.cfg", "train = { epochs = 9; };");
  assert_int_equal(ii_config_load(&cfg, "internimage_t_1k", &err), II_OK); /* this folder first */
  assert_int_equal(cfg.train.epochs, 9);
  unlink("internimage_t_1k.cfg");
  assert_int_equal(ii_config_load(&cfg, "internimage_t_1k", &err), II_OK); /* then configs/ */
  assert_int_equal(cfg.train.epochs, 300);
}

static void load_refused(const char *name, ii_status status, const char *part1, const char *part2) {
  ii_config cfg, def;
  ii_error err = {0};
  ii_config_default(&def);
  assert_int_equal(ii_config_load(&cfg, name, &err), status);
  assert_contains(err.text, part1);
  assert_contains(err.text, part2);
  assert_same(&cfg, &def);
}

static void test_bad_bases(void **state) {
  write_file("self.cfg", "\nbase = \"self.cfg\";");
  load_refused("self.cfg", II_ERR_FORMAT, "self.cfg:2: ", "leads back");
  write_file("one.cfg", "base = \"two\";");
  write_file("two.cfg", "base = \"./sub/../one.cfg\";"); /* the same file under another name */
  load_refused("one", II_ERR_FORMAT, "two.cfg:1: ", "leads back");
  write_file("lost.cfg", "base = \"nowhere.cfg\";");
  load_refused("lost", II_ERR_IO, "lost.cfg:1: ", "nowhere.cfg");
  write_file("number.cfg", "base = 3;");
  load_refused("number", II_ERR_ARG, "number.cfg:1: ", "name of a file");
  write_file("typo.cfg", "model = {\n  chanels = 2; };");
  write_file("child.cfg", "base = \"typo\";");
  load_refused("child", II_ERR_ARG, "typo.cfg:2: ", "model.channels"); /* the place of the base */
  for (int i = 0; i < 20; i++) {
    char name[32], text[64];
    snprintf(name, sizeof name, "deep%d.cfg", i);
    snprintf(text, sizeof text, i < 19 ? "base = \"deep%d\";" : "train = { seed = 1; };", i + 1);
    write_file(name, text);
  }
  load_refused("deep0", II_ERR_FORMAT, "deep15.cfg:1: ", "more than 16");
  ii_config cfg;
  assert_int_equal(ii_config_load(&cfg, "deep4", NULL), II_OK); /* 16 files are possible */
  assert_int_equal(cfg.train.seed, 1);
}

static void test_bad_files(void **state) {
  load_refused("nothing_of_this_name", II_ERR_IO, "nothing_of_this_name", "configs/");
  load_refused("", II_ERR_IO, "config \"\"", "configs/");
  load_refused("sub", II_ERR_IO, "\"sub\"", "configs/"); /* a folder */
  FILE *f = fopen("zero.cfg", "wb");
  assert_int_equal(fwrite("train = {};\0", 1, 12, f), 12);
  fclose(f);
  load_refused("zero.cfg", II_ERR_FORMAT, "zero.cfg: ", "not a text file");
  f = fopen("large.cfg", "wb");
  for (int i = 0; i < 1100; i++) assert_int_equal(fprintf(f, "#%1000s\n", ""), 1002);
  fclose(f);
  load_refused("large.cfg", II_ERR_FORMAT, "large.cfg: ", "not a text file");
  char *deep = malloc(200001);
  memset(deep, '(', 200000);
  deep[200000] = 0;
  write_file("nested.cfg", deep);
  free(deep);
  load_refused("nested.cfg", II_ERR_FORMAT, "nested.cfg:1: ", "brackets");
}

static void test_set(void **state) {
  ii_config cfg;
  ii_config_default(&cfg);
  set_ok(&cfg, "model.depths=1,1,2,1");
  assert_int_equal(cfg.model.depths.v[2], 2);
  set_ok(&cfg, "model.depths=[2, 2, 3, 4]");
  assert_int_equal(cfg.model.depths.v[3], 4);
  set_ok(&cfg, "train.freeze_stages=0");
  assert_int_equal(cfg.train.freeze_stages.count, 1);
  set_ok(&cfg, "train.freeze_stages=");
  assert_int_equal(cfg.train.freeze_stages.count, 0);
  set_ok(&cfg, "data.crop_scale=0.2,1");
  assert_true(cfg.data.crop_scale.v[0] == 0.2 && cfg.data.crop_scale.v[1] == 1);
  set_ok(&cfg, "data.root=/a b/c=d.e#f//g");
  assert_string_equal(cfg.data.root, "/a b/c=d.e#f//g");
  set_ok(&cfg, "data.root=\"quoted\\\\\"");
  assert_string_equal(cfg.data.root, "quoted\\");
  set_ok(&cfg, "data.root=");
  assert_string_equal(cfg.data.root, "");
  set_ok(&cfg, "model.core_op=DCNv4");
  assert_int_equal(cfg.model.core_op, ii_model_core_op_DCNv4);
  set_ok(&cfg, "train.schedule=\"step\"");
  assert_int_equal(cfg.train.schedule, ii_train_schedule_step);
  set_ok(&cfg, "train.base_lr=1");
  assert_true(cfg.train.base_lr == 1);
  set_ok(&cfg, "train.ema=true");
  assert_true(cfg.train.ema);
}

static void test_bad_set(void **state) {
  static const struct {
    const char *assignment, *part;
  } cases[] = {{"train.epoch=3", "nearest is train.epochs"},
               {"epochs=3", "nearest is train.epochs"},
               {"train.epochs", "section.key=value"},
               {"=3", "section.key=value"},
               {"", "section.key=value"},
               {"train.epochs=", "train.epochs must be: integer"},
               {"train.epochs=1.5", "train.epochs is a number with a decimal point"},
               {"train.epochs=0", "goes from 1 to 100000"},
               {"train.epochs=4294967297", "train.epochs must be: integer"},
               {"train.epochs=3;seed=4", "train.epochs must be"},
               {"train.epochs=3; /*", "train.epochs must be"},
               {"train.ema=1", "train.ema is an integer; it must be: true or false"},
               {"train.optimizer=adam", "choose \"adamw\" or \"sgd\""},
               {"train.schedule=poly", "choose \"cosine\", \"linear\" or \"step\""},
               {"model.depths=1,2,3", "has 3 elements; it must be: list of 4 integers"},
               {"model.depths=1,2,3,x", "list of 4 integers"},
               {"data.root=a\nb", "more than one line"}};
  ii_config cfg, def;
  ii_config_default(&def);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ii_error err = {0};
    cfg = def;
    assert_int_equal(ii_config_set(&cfg, cases[i].assignment, &err), II_ERR_ARG);
    assert_contains(err.text, "--set");
    assert_contains(err.text, cases[i].part);
    assert_same(&cfg, &def);
  }
  char longer[2 * II_CONFIG_STRING] = "data.root=";
  memset(longer + 10, 'x', II_CONFIG_STRING - 1);
  set_ok(&cfg, longer);
  assert_round_trip(&cfg);
  longer[10 + II_CONFIG_STRING - 1] = 'x';
  assert_int_equal(ii_config_set(&cfg, longer, NULL), II_ERR_ARG);
}

static void test_checks(void **state) {
  static const struct {
    const char *set[3], *part;
  } cases[] = {
      {{"model.groups=4,8,16,31"}, "model.groups[3] = 31 does not divide the 512 channels"},
      {{"model.channels=63", "model.groups=1,1,1,1"}, "must be even"},
      {{"model.channels=2", "model.groups=1,1,1,1", "model.mlp_ratio=0.1"}, "model.mlp_ratio"},
      {{"model.kernel_size=4"}, "odd"},
      {{"model.dw_kernel_size=2"}, "odd"},
      {{"model.kernel_size=1", "model.remove_center=true"}, "model.remove_center"},
      {{"model.post_norm=true", "model.res_post_norm=true"}, "model.res_post_norm"},
      {{"model.layer_scale=1e-5", "model.res_post_norm=true"}, "model.layer_scale"},
      {{"model.core_op=DCNv4", "model.remove_center=true"}, "model.remove_center"},
      {{"model.mlp_fc2_bias=false"}, "model.core_op = DCNv4"},
      {{"model.dcn_output_bias=false"}, "model.core_op = DCNv4"},
      {{"model.level2_post_norm_block_ids=18"}, "model.depths[2] = 18"},
      {{"model.level2_post_norm_block_ids=5,5"}, "ascend"},
      {{"model.use_clip_projector=true", "model.clip_heads=3"}, "model.clip_heads = 3"},
      {{"model.use_clip_projector=true", "data.img_size=48"}, "multiple of 32"},
      {{"model.channels=2", "model.groups=1,1,1,1", "model.cls_scale=0.01"}, "model.cls_scale"},
      {{"model.meta_dims=4,4", "data.format=list"}, "[4, 3]"},
      {{"model.meta_dims=4,3"}, "data.format = list"},
      {{"model.num_classes=1"}, "model.num_classes"},
      {{"data.crop_scale=0.5,0.1"}, "[smallest, largest]"},
      {{"data.crop_ratio=2,1"}, "[smallest, largest]"},
      {{"data.format=list", "data.val_list="}, "data.val_list"},
      {{"data.batch_size=1", "data.img_size=32"}, "data.batch_size = 1"},
      {{"data.mixup=0.8", "data.batch_size=33"}, "data.batch_size = 33"},
      {{"data.cutmix=1", "data.batch_size=33"}, "must be even"},
      {{"data.auto_augment=rand-m9-x1"}, "data.auto_augment"},
      {{"data.color_jitter=0.4,0.4"}, "data.color_jitter"},
      {{"data.color_jitter=0.4,0.4,0.4,0.6"}, "hue = 0.6"},
      {{"train.epochs=3"}, "train.warmup_epochs = 20"},
      {{"train.optimizer=sgd", "train.momentum=0"}, "train.nesterov"},
      {{"train.freeze_stages=1,0"}, "train.freeze_stages"},
      {{"train.output_dir="}, "train.output_dir"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    ii_config cfg;
    ii_error err = {0};
    ii_config_default(&cfg);
    for (int k = 0; k < 3 && cases[i].set[k]; k++) set_ok(&cfg, cases[i].set[k]);
    assert_int_equal(ii_config_check(&cfg, &err), II_ERR_ARG);
    assert_contains(err.text, cases[i].part);
  }
}

/* Every shipped file loads; every one that is not only a base is a complete, valid run. */
static void test_shipped(void **state) {
  DIR *d = opendir(II_SOURCE_CONFIGS);
  assert_non_null(d);
  int complete = 0;
  for (struct dirent *e; (e = readdir(d));) {
    ii_config cfg;
    ii_error err = {0};
    if (!strstr(e->d_name, ".cfg")) continue;
    if (ii_config_load(&cfg, e->d_name, &err) != II_OK) fail_msg("%s", err.text);
    if (strncmp(e->d_name, "base_", 5) == 0) continue;
    if (ii_config_check(&cfg, &err) != II_OK) fail_msg("%s: %s", e->d_name, err.text);
    char output[300];
    snprintf(output, sizeof output, "runs/%.*s", (int)strlen(e->d_name) - 4, e->d_name);
    assert_string_equal(cfg.train.output_dir, output); /* no two runs share a folder */
    assert_round_trip(&cfg);
    complete++;
  }
  closedir(d);
  assert_true(complete >= 23);
}

static char *slurp(const char *path) {
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("%s is missing", path);
  char *text = calloc(1, 1 << 20);
  assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
  fclose(f);
  return text;
}

static void test_documentation(void **state) {
  char *text = NULL, key[100];
  size_t size = 0;
  FILE *f = open_memstream(&text, &size);
  ii_config_markdown(f);
  fclose(f);
  char *file = slurp(II_TEST_DATA "/../docs/config.md");
  assert_string_equal(text, file);
  free(text);
  free(file);

  f = open_memstream(&text, &size);
  ii_config_help(f);
  fclose(f);
  for (int64_t i = 0; ii_config_key(i, key, sizeof key); i++) assert_contains(text, key);
  assert_contains(text, "model.depths = [4, 4, 18, 4]  (list of 4 integers, 1 to 256)");
  assert_contains(text, "train.base_lr = 5e-4  (number, 0 to 1000)");
  assert_contains(text, "train.amp = auto  (auto, none, bf16, fp16)");
  free(text);
}

/* Every help text is a phrase of one line; every key is written once in the table. */
static void test_table(void **state) {
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    assert_true(strlen(o->help) > 10 && !strchr(o->help, '\n') && !strchr(o->help, '|'));
    assert_ptr_equal(ii_config_find(o->section, o->name), o);
    assert_true(o->nmax <= II_CONFIG_LIST);
    char nearest[96], key[96];
    ii_config_key(i, key, sizeof key);
    ii_config_nearest(key, nearest, sizeof nearest);
    assert_string_equal(nearest, key);
  }
}

/* Appends the C files of a folder but not the configuration's own. */
static void append_sources(FILE *to, const char *dir) {
  DIR *d = opendir(dir);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    const char *end = strrchr(e->d_name, '.');
    char path[4096];
    if (!end || strcmp(end, ".c") != 0 || strncmp(e->d_name, "config", 6) == 0) continue;
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    char *text = slurp(path);
    fputs(text, to);
    free(text);
  }
  closedir(d);
}

/* Every key is read by the programs: cfg->section.name or cfg.section.name stands somewhere. */
static void test_keys_are_live(void **state) {
  if (access(II_TEST_DATA "/../train/main.c", R_OK) != 0) skip(); /* no program yet */
  char *text = NULL, key[100];
  size_t size = 0;
  FILE *f = open_memstream(&text, &size);
  append_sources(f, II_TEST_DATA "/../train");
  append_sources(f, II_TEST_DATA "/../eval");
  fclose(f);
  for (int64_t i = 0; ii_config_key(i, key, sizeof key); i++) {
    bool used = false;
    for (const char *at = text; !used && (at = strstr(at, key)); at++) {
      char before = at > text ? at[-1] : ' ', after = at[strlen(key)];
      used = (before == '>' || before == '.') && after != '_' && !isalnum((unsigned char)after);
    }
    if (!used) fail_msg("%s is parsed, but train/ and eval/ never read it", key);
  }
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults),     cmocka_unit_test(test_every_key),
      cmocka_unit_test(test_unknown_keys), cmocka_unit_test(test_every_range_and_type),
      cmocka_unit_test(test_syntax),       cmocka_unit_test(test_accepted),
      cmocka_unit_test(test_retired_key),  cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_bases),        cmocka_unit_test(test_bad_bases),
      cmocka_unit_test(test_bad_files),    cmocka_unit_test(test_set),
      cmocka_unit_test(test_bad_set),      cmocka_unit_test(test_checks),
      cmocka_unit_test(test_shipped),      cmocka_unit_test(test_documentation),
      cmocka_unit_test(test_table),        cmocka_unit_test(test_keys_are_live),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
