/* Reads the source tree: folders include each other one way only, file names are unique, and
 * libraries neither print nor exit. */
#include <ctype.h>
#include <ftw.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define ROOT II_TEST_DATA "/.."

/* kernels <- autograd <- layers <- models <- optim <- train <- eval; a program may also use the
 * library above its own folder. data stands alone. */
static const char *const order[] = {"kernels", "autograd", "layers", "models",
                                    "optim",   "train",    "eval"};
enum { ORDER = sizeof order / sizeof *order };

enum { MAX_FILES = 2000 };
typedef struct {
  char path[512]; /* from the root: autograd/pool.c */
} file;
static file files[MAX_FILES];
static int n_files;

static bool ends(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && !strcmp(s + n - m, end);
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static int visit(const char *path, const struct stat *st, int type, struct FTW *where) {
  const char *from_root = path + strlen(ROOT) + 1;
  if (type != FTW_F || from_root[0] == '.') return 0;
  bool source = ends(path, ".c") || ends(path, ".h") || ends(path, ".def") || ends(path, ".cu") ||
                ends(path, ".cfg");
  if (!source) return 0;
  if (n_files == MAX_FILES || strlen(from_root) >= sizeof files->path) return 1;
  strcpy(files[n_files++].path, from_root);
  return 0;
}

static int read_tree(void **state) {
  static const char *const folders[] = {"kernels", "autograd", "layers", "models",
                                        "optim",   "train",    "eval",   "data",
                                        "tests",   "bench",    "configs"};
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", ROOT, folders[i]);
    struct stat st;
    if (stat(path, &st) == 0 && nftw(path, visit, 16, FTW_PHYS)) return 1;
  }
  return n_files < 50; /* the tree was not found */
}

static char *read_file(const char *from_root) {
  char path[1024];
  snprintf(path, sizeof path, "%s/%s", ROOT, from_root);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("%s cannot be read", path);
  size_t n = 0, capacity = 1 << 16;
  char *text = malloc(capacity + 1);
  for (size_t got; text && (got = fread(text + n, 1, capacity - n, f)) > 0;) {
    n += got;
    if (n == capacity) text = realloc(text, (capacity *= 2) + 1);
  }
  fclose(f);
  assert_non_null(text);
  text[n] = 0;
  return text;
}

static bool is_code(const char *path) {
  return ends(path, ".c") || ends(path, ".h") || ends(path, ".def") || ends(path, ".cu");
}

static bool in_folder(const char *path, const char *folder) {
  size_t n = strlen(folder);
  return !strncmp(path, folder, n) && path[n] == '/';
}

static int level(const char *path) {
  for (int i = 0; i < ORDER; i++)
    if (in_folder(path, order[i])) return i;
  return -1;
}

static bool is_main(const char *path) {
  return !strncmp(base_name(path), "main", 4) && ends(path, ".c");
}

/* Whether a file may include another of the tree. */
static bool may_include(const char *from, const char *to) {
  if (in_folder(from, "data"))
    return in_folder(to, "data") || !strcmp(to, "autograd/error.h") ||
           !strcmp(to, "autograd/rng.h");
  int f = level(from), t = level(to);
  if (t < 0) return in_folder(to, "data") && f >= level("train/");
  if (in_folder(from, "train") && is_main(from)) return true;
  return t <= f;
}

static void includes_go_one_way(void **state) {
  int seen = 0, wrong = 0;
  for (int i = 0; i < n_files; i++) {
    const char *path = files[i].path;
    if (!is_code(path) || (level(path) < 0 && !in_folder(path, "data"))) continue;
    char *text = read_file(path);
    for (char *line = text; line; line = strchr(line, '\n')) {
      while (isspace((unsigned char)*line)) line++;
      char name[256];
      if (sscanf(line, "# include \"%255[^\"]\"", name) != 1) continue;
      struct stat st;
      char there[1024];
      snprintf(there, sizeof there, "%s/%s", ROOT, name);
      seen++;
      if (!strchr(name, '/')) {
        print_error("%s: name the folder of \"%s\"\n", path, name);
        wrong++;
      } else if (stat(there, &st) == 0 && !may_include(path, name)) {
        print_error("%s must not include %s\n", path, name);
        wrong++;
      }
    }
    free(text);
  }
  assert_true(seen > 50);
  if (wrong) fail_msg("%d includes break the order of the folders", wrong);
}

static void the_rules_are_rules(void **state) {
  assert_true(may_include("autograd/ops.h", "kernels/kernels.h"));
  assert_false(may_include("kernels/kernels.h", "autograd/error.h"));
  assert_false(may_include("kernels/cpu/add.c", "data/image.h"));
  assert_false(may_include("layers/basic.c", "models/model.h"));
  assert_true(may_include("models/x.c", "layers/basic.h"));
  assert_false(may_include("optim/ema.c", "train/trainer.h"));
  assert_false(may_include("train/trainer.c", "eval/evaluate.h"));
  assert_true(may_include("eval/evaluate.c", "train/trainer.h"));
  assert_true(may_include("train/trainer.c", "data/loader.h"));
  assert_false(may_include("models/x.c", "data/loader.h"));
  assert_true(may_include("data/loader.c", "autograd/rng.h"));
  assert_false(may_include("data/loader.c", "autograd/tensor.h"));
  assert_false(may_include("data/loader.c", "train/config.h"));
}

static void file_names_are_unique(void **state) {
  int wrong = 0;
  for (int i = 0; i < n_files; i++)
    for (int j = 0; j < i; j++)
      if (!strcmp(base_name(files[i].path), base_name(files[j].path)) &&
          strcmp(base_name(files[i].path), "main.c")) {
        print_error("%s and %s have the same name\n", files[i].path, files[j].path);
        wrong++;
      }
  if (wrong) fail_msg("%d file names are used twice", wrong);
}

/* Blanks out comments and the insides of strings and characters, keeping lines. */
static void strip(char *s) {
  enum { CODE, LINE, BLOCK, STRING, CHARACTER } in = CODE;
  for (; *s; s++) {
    char c = *s, next = s[1];
    if (in == CODE) {
      if (c == '/' && next == '/')
        in = LINE;
      else if (c == '/' && next == '*') {
        in = BLOCK;
        *s++ = ' '; /* so that the comment does not end at its own star */
      } else if (c == '"')
        in = STRING;
      else if (c == '\'')
        in = CHARACTER;
      if (in == LINE || in == BLOCK) *s = ' ';
      continue;
    }
    if (in == LINE && c == '\n')
      in = CODE;
    else if (in == BLOCK && c == '*' && next == '/') {
      *s++ = ' ';
      in = CODE;
    } else if ((in == STRING && c == '"') || (in == CHARACTER && c == '\'')) {
      in = CODE;
      continue;
    } else if ((in == STRING || in == CHARACTER) && c == '\\' && next)
      *s++ = ' ';
    if (*s != '\n') *s = ' ';
  }
}

static bool is_word(char c) {
  return isalnum((unsigned char)c) || c == '_';
}

/* Where a call of one of the functions, or a standard stream, is in stripped code; NULL: nowhere.
 */
static const char *find_forbidden(const char *code, const char **what) {
  static const char *const calls[] = {"printf", "vprintf",    "puts",  "putchar", "perror",
                                      "exit",   "_exit",      "_Exit", "abort",   "assert",
                                      "system", "quick_exit", "err",   "errx",    "dprintf"};
  static const char *const streams[] = {"stdout", "stderr"};
  for (const char *p = code; *p;) {
    if (!is_word(*p)) {
      p++;
      continue;
    }
    size_t n = 0;
    while (is_word(p[n])) n++;
    const char *after = p + n;
    while (*after == ' ') after++;
    bool member = p > code && (p[-1] == '.' || (p[-1] == '>' && p > code + 1 && p[-2] == '-'));
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
      if (!member && *after == '(' && strlen(calls[i]) == n && !strncmp(p, calls[i], n))
        return *what = calls[i], p;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
      if (strlen(streams[i]) == n && !strncmp(p, streams[i], n)) return *what = streams[i], p;
    p += n;
  }
  return NULL;
}

static void libraries_neither_print_nor_exit(void **state) {
  int wrong = 0;
  for (int i = 0; i < n_files; i++) {
    const char *path = files[i].path, *what;
    bool library = level(path) >= 0 || in_folder(path, "data");
    /* error.c has the one assertion, which prints and aborts */
    if (!library || !is_code(path) || is_main(path) || !strcmp(path, "autograd/error.c")) continue;
    char *text = read_file(path);
    strip(text);
    const char *at = find_forbidden(text, &what);
    if (at) {
      int line = 1;
      for (const char *p = text; p < at; p++) line += *p == '\n';
      print_error("%s:%d: %s in a library\n", path, line, what);
      wrong++;
    }
    free(text);
  }
  if (wrong) fail_msg("%d library files print or exit", wrong);
}

static void the_scanner_sees(void **state) {
  static const struct {
    const char *code;
    bool bad;
  } cases[] = {
      {"int f(void) { printf(\"x\"); }", true},
      {"  exit (1);", true},
      {"fputs(x, stderr);", true},
      {"a = snprintf(b, 3, c);", false},
      {"/* printf(1) */ // exit(1)\nx = 1;", false},
      {"s = \"exit(1) \\\" abort()\";", false},
      {"c = '\"'; abort();", true},
      {"__attribute__((format(printf, 3, 4)))", false},
      {"p->exit(1); my_exit(2); exits(3);", false},
      {"/**/abort();", true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[200];
    const char *what;
    strcpy(text, cases[i].code);
    strip(text);
    if ((find_forbidden(text, &what) != NULL) != cases[i].bad) fail_msg("%s", cases[i].code);
  }
}

/* The pages call the scripts by name. */
static void scripts_can_be_run(void **state) {
  glob_t found;
  (void)state;
  assert_int_equal(glob(ROOT "/scripts/*.sh", 0, NULL, &found), 0);
  for (size_t i = 0; i < found.gl_pathc; i++)
    if (access(found.gl_pathv[i], X_OK)) fail_msg("%s is not executable", found.gl_pathv[i]);
  globfree(&found);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_rules_are_rules),
      cmocka_unit_test(includes_go_one_way),
      cmocka_unit_test(file_names_are_unique),
      cmocka_unit_test(the_scanner_sees),
      cmocka_unit_test(libraries_neither_print_nor_exit),
      cmocka_unit_test(scripts_can_be_run),
  };
  return cmocka_run_group_tests(tests, read_tree, NULL);
}
