/* options.def as data: defaults, look-up, and every text that is generated from it. */
#include "train/config_table.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define II_ROW(s, n, k, ...)                                                                       \
  {.section = #s, .name = #n, .kind = k, .offset = offsetof(ii_config, s.n), __VA_ARGS__},
#define II_SECTION(s, h)
#define II_SECTION_END(s)
#define II_BOOL(s, n, d, h) II_ROW(s, n, II_KIND_BOOL, .def = #d, .help = h)
#define II_INT(s, n, d, lo, hi, h)                                                                 \
  II_ROW(s, n, II_KIND_INT, .def = #d, .min = lo, .max = hi, .help = h)
#define II_DOUBLE(s, n, d, lo, hi, h)                                                              \
  II_ROW(s, n, II_KIND_DOUBLE, .def = #d, .min = lo, .max = hi, .help = h)
#define II_STRING(s, n, d, h) II_ROW(s, n, II_KIND_STRING, .def = d, .help = h)
#define II_ENUM2(s, n, d, a, b, h)                                                                 \
  II_ROW(s, n, II_KIND_ENUM, .def = #d, .choices = {#a, #b}, .help = h)
#define II_ENUM3(s, n, d, a, b, c, h)                                                              \
  II_ROW(s, n, II_KIND_ENUM, .def = #d, .choices = {#a, #b, #c}, .help = h)
#define II_ENUM4(s, n, e, a, b, c, d, h)                                                           \
  II_ROW(s, n, II_KIND_ENUM, .def = #e, .choices = {#a, #b, #c, #d}, .help = h)
#define II_ENUM5(s, n, x, a, b, c, d, e, h)                                                        \
  II_ROW(s, n, II_KIND_ENUM, .def = #x, .choices = {#a, #b, #c, #d, #e}, .help = h)
#define II_INTS(s, n, n0, n1, lo, hi, d, h)                                                        \
  II_ROW(s, n, II_KIND_INTS, .def = d, .nmin = n0, .nmax = n1, .min = lo, .max = hi, .help = h)
#define II_DOUBLES(s, n, n0, n1, lo, hi, d, h)                                                     \
  II_ROW(s, n, II_KIND_DOUBLES, .def = d, .nmin = n0, .nmax = n1, .min = lo, .max = hi, .help = h)
const ii_option ii_config_options[] = {
#include "train/options.def"
};
#undef II_SECTION
#undef II_SECTION_END
#undef II_BOOL
#undef II_INT
#undef II_DOUBLE
#undef II_STRING
#undef II_ENUM2
#undef II_ENUM3
#undef II_ENUM4
#undef II_ENUM5
#undef II_INTS
#undef II_DOUBLES
const int64_t ii_config_option_count = sizeof ii_config_options / sizeof *ii_config_options;

/* The help of the sections, in order. */
static const struct {
  const char *name, *help;
} sections[] = {
#define II_SECTION(s, h) {#s, h},
#define II_SECTION_END(s)
#define II_BOOL(s, n, d, h)
#define II_INT(s, n, d, lo, hi, h)
#define II_DOUBLE(s, n, d, lo, hi, h)
#define II_STRING(s, n, d, h)
#define II_ENUM2(s, n, d, a, b, h)
#define II_ENUM3(s, n, d, a, b, c, h)
#define II_ENUM4(s, n, e, a, b, c, d, h)
#define II_ENUM5(s, n, x, a, b, c, d, e, h)
#define II_INTS(s, n, n0, n1, lo, hi, d, h)
#define II_DOUBLES(s, n, n0, n1, lo, hi, d, h)
#include "train/options.def"
};
enum { SECTIONS = sizeof sections / sizeof *sections };

void *ii_config_member(ii_config *cfg, const ii_option *option) {
  return (char *)cfg + option->offset;
}

bool ii_config_is_section(const char *section) {
  for (int i = 0; i < SECTIONS; i++)
    if (strcmp(sections[i].name, section) == 0) return true;
  return false;
}

const ii_option *ii_config_find(const char *section, const char *name) {
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    if (strcmp(o->section, section) == 0 && strcmp(o->name, name) == 0) return o;
  }
  return NULL;
}

/* Defaults. The table is a constant, so a default that cannot be read is a programmer's error. */

static double default_number(const ii_option *o, const char **at) {
  char *end;
  double x = strtod(*at, &end);
  II_ASSERT(end != *at && x >= o->min && x <= o->max, "default of %s.%s: %s", o->section, o->name,
            o->def);
  *at = end + strspn(end, ", ");
  return x;
}

static void set_default(ii_config *cfg, const ii_option *o) {
  void *to = ii_config_member(cfg, o);
  const char *at = o->def;
  switch (o->kind) {
  case II_KIND_BOOL:
    *(bool *)to = strcmp(at, "true") == 0;
    return;
  case II_KIND_INT:
    *(int64_t *)to = (int64_t)default_number(o, &at);
    return;
  case II_KIND_DOUBLE:
    *(double *)to = default_number(o, &at);
    return;
  case II_KIND_STRING:
    snprintf(to, II_CONFIG_STRING, "%s", at);
    return;
  case II_KIND_ENUM:
    for (int i = 0; o->choices[i]; i++)
      if (strcmp(o->choices[i], at) == 0) *(int *)to = i;
    return;
  case II_KIND_INTS: {
    ii_int_list *list = to;
    while (*at) list->v[list->count++] = (int64_t)default_number(o, &at);
    return;
  }
  case II_KIND_DOUBLES: {
    ii_double_list *list = to;
    while (*at) list->v[list->count++] = default_number(o, &at);
    return;
  }
  }
}

void ii_config_default(ii_config *cfg) {
  memset(cfg, 0, sizeof *cfg);
  for (int64_t i = 0; i < ii_config_option_count; i++) set_default(cfg, &ii_config_options[i]);
}

/* The nearest key: Levenshtein distance, letters in lower case. */

enum { NAME_LENGTH = 63 }; /* of a name that is compared; the rest of a longer one is ignored */

static int distance(const char *a, const char *b) {
  int n = (int)strnlen(a, NAME_LENGTH), m = (int)strnlen(b, NAME_LENGTH);
  int row[NAME_LENGTH + 1];
  for (int j = 0; j <= m; j++) row[j] = j;
  for (int i = 1; i <= n; i++) {
    int diagonal = row[0];
    row[0] = i;
    for (int j = 1; j <= m; j++) {
      bool same = tolower((unsigned char)a[i - 1]) == tolower((unsigned char)b[j - 1]);
      int best = diagonal + !same;
      if (row[j] + 1 < best) best = row[j] + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      diagonal = row[j];
      row[j] = best;
    }
  }
  return row[m];
}

void ii_config_nearest(const char *key, char *nearest, size_t size) {
  const char *dot = strchr(key, '.');
  const char *bare = dot ? dot + 1 : key;
  int best = -1;
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    char full[2 * NAME_LENGTH];
    snprintf(full, sizeof full, "%s.%s", o->section, o->name);
    int d = distance(key, full);
    /* the right name in a wrong or missing section is as near as one wrong letter */
    int elsewhere = 1 + distance(bare, o->name);
    if (elsewhere < d) d = elsewhere;
    if (best < 0 || d < best) {
      best = d;
      snprintf(nearest, size, "%s", full);
    }
  }
}

/* Values as text. */

typedef struct { /* a growing string; text is NULL when memory ran out */
  char *text;
  size_t length, capacity;
} writer;

static void put(writer *w, const char *piece) {
  size_t n = strlen(piece);
  if (!w->text) return;
  if (w->length + n + 1 > w->capacity) {
    size_t capacity = 2 * (w->length + n + 1);
    char *text = realloc(w->text, capacity);
    if (!text) {
      free(w->text);
      w->text = NULL;
      return;
    }
    w->text = text;
    w->capacity = capacity;
  }
  memcpy(w->text + w->length, piece, n + 1);
  w->length += n;
}

static writer writer_new(void) {
  writer w = {.text = malloc(256), .capacity = 256};
  if (w.text) w.text[0] = 0;
  return w;
}

/* The shortest decimal that reads back as exactly x. */
static void put_double(writer *w, double x) {
  char buf[40];
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(buf, sizeof buf, "%.*g", digits, x);
    if (strtod(buf, NULL) == x) break;
  }
  if (fabs(x) < 1e15 && x == floor(x)) snprintf(buf, sizeof buf, "%.1f", x); /* not 2e+01 */
  put(w, buf);
}

static void put_string(writer *w, const char *s) {
  put(w, "\"");
  for (; *s; s++) {
    char c[8] = {*s, 0};
    if (*s == '"' || *s == '\\')
      snprintf(c, sizeof c, "\\%c", *s);
    else if ((unsigned char)*s < 32)
      snprintf(c, sizeof c, "\\x%02x", (unsigned)*s);
    put(w, c);
  }
  put(w, "\"");
}

static void put_int(writer *w, int64_t x) {
  char buf[32];
  snprintf(buf, sizeof buf, "%lld", (long long)x);
  put(w, buf);
}

static void put_value(writer *w, const ii_config *cfg, const ii_option *o) {
  const void *from = (const char *)cfg + o->offset;
  switch (o->kind) {
  case II_KIND_BOOL:
    put(w, *(const bool *)from ? "true" : "false");
    return;
  case II_KIND_INT:
    put_int(w, *(const int64_t *)from);
    return;
  case II_KIND_DOUBLE:
    put_double(w, *(const double *)from);
    return;
  case II_KIND_STRING:
    put_string(w, from);
    return;
  case II_KIND_ENUM:
    put_string(w, o->choices[*(const int *)from]);
    return;
  case II_KIND_INTS:
  case II_KIND_DOUBLES:
    break;
  }
  int64_t count = *(const int64_t *)from; /* the first member of both lists */
  put(w, "[");
  for (int64_t i = 0; i < count; i++) {
    if (i) put(w, ", ");
    if (o->kind == II_KIND_INTS)
      put_int(w, ((const ii_int_list *)from)->v[i]);
    else
      put_double(w, ((const ii_double_list *)from)->v[i]);
  }
  put(w, "]");
}

ii_status ii_config_text(const ii_config *cfg, char **text, ii_error *err) {
  writer w = writer_new();
  const char *section = "";
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    if (strcmp(section, o->section) != 0) {
      if (*section) put(&w, "};\n");
      section = o->section;
      put(&w, section);
      put(&w, " = {\n");
    }
    put(&w, "  ");
    put(&w, o->name);
    put(&w, " = ");
    put_value(&w, cfg, o);
    put(&w, ";\n");
  }
  put(&w, "};\n");
  *text = w.text;
  if (!w.text) return ii_error_set(err, II_ERR_MEMORY, "no memory for the text of the config");
  return II_OK;
}

bool ii_config_key(int64_t i, char *name, size_t size) {
  if (size) name[0] = 0;
  if (i < 0 || i >= ii_config_option_count) return false;
  snprintf(name, size, "%s.%s", ii_config_options[i].section, ii_config_options[i].name);
  return true;
}

bool ii_config_value(const ii_config *cfg, const char *key, char *value, size_t size) {
  for (int64_t i = 0; i < ii_config_option_count; i++) {
    const ii_option *o = &ii_config_options[i];
    size_t n = strlen(o->section);
    if (strncmp(key, o->section, n) != 0 || key[n] != '.' || strcmp(key + n + 1, o->name) != 0)
      continue;
    writer w = writer_new();
    put_value(&w, cfg, o);
    if (w.text) snprintf(value, size, "%s", w.text);
    free(w.text);
    return w.text != NULL;
  }
  return false;
}

/* Documentation. */

void ii_config_kind_text(const ii_option *o, char *text, size_t size) {
  size_t n = 0;
  double lo = o->min, hi = o->max;
  switch (o->kind) {
  case II_KIND_BOOL:
    snprintf(text, size, "true or false");
    return;
  case II_KIND_INT:
    snprintf(text, size, "integer, %.10g to %.10g", lo, hi);
    return;
  case II_KIND_DOUBLE:
    snprintf(text, size, "number, %.10g to %.10g", lo, hi);
    return;
  case II_KIND_STRING:
    snprintf(text, size, "text");
    return;
  case II_KIND_ENUM:
    for (int i = 0; o->choices[i] && n < size; i++)
      n += (size_t)snprintf(text + n, size - n, "%s%s", i ? ", " : "", o->choices[i]);
    return;
  case II_KIND_INTS:
  case II_KIND_DOUBLES:
    break;
  }
  char count[48];
  if (o->nmin == o->nmax)
    snprintf(count, sizeof count, "%d", (int)o->nmin);
  else
    snprintf(count, sizeof count, "%d to %d", (int)o->nmin, (int)o->nmax);
  snprintf(text, size, "list of %s %s, %.10g to %.10g", count,
           o->kind == II_KIND_INTS ? "integers" : "numbers", lo, hi);
}

static void default_text(const ii_option *o, char *text, size_t size) {
  bool list = o->kind == II_KIND_INTS || o->kind == II_KIND_DOUBLES;
  if (list)
    snprintf(text, size, "[%s]", o->def);
  else if (o->kind == II_KIND_STRING)
    snprintf(text, size, "\"%s\"", o->def);
  else
    snprintf(text, size, "%s", o->def);
}

void ii_config_help(FILE *to) {
  char kind[128], def[96];
  for (int s = 0; s < SECTIONS; s++) {
    fprintf(to, "\n%s: %s\n", sections[s].name, sections[s].help);
    for (int64_t i = 0; i < ii_config_option_count; i++) {
      const ii_option *o = &ii_config_options[i];
      if (strcmp(o->section, sections[s].name) != 0) continue;
      ii_config_kind_text(o, kind, sizeof kind);
      default_text(o, def, sizeof def);
      fprintf(to, "  %s.%s = %s  (%s)\n      %s\n", o->section, o->name, def, kind, o->help);
    }
  }
}

void ii_config_markdown(FILE *to) {
  fprintf(to, "# Configuration keys\n\n"
              "<!-- Made from train/options.def by the train program; do not edit. -->\n\n"
              "A run is described by a `.cfg` file in libconfig syntax:\n\n"
              "```\n"
              "base = \"internimage_t_1k.cfg\";   # loaded first, then overridden key by key\n"
              "model = { num_classes = 0; };          # as many as the data has\n"
              "data = { root = \"/data/flowers\"; batch_size = 64; };\n"
              "train = { epochs = 30; warmup_epochs = 2; };\n"
              "```\n\n"
              "`--config NAME` looks for NAME in the current folder, then in `configs/`, with or "
              "without `.cfg`;\na `base` is looked for beside the file that names it, then in "
              "`configs/`.\n`--set section.key=value` overrides any key, "
              "e.g. `--set train.epochs=30 --set model.depths=1,1,2,1`.\n"
              "A whole number is accepted where a number is wanted. Unknown keys, wrong types, "
              "values out of range\nand keys given twice are refused with file and line.\n");
  char kind[128], def[96];
  for (int s = 0; s < SECTIONS; s++) {
    fprintf(to, "\n## %s\n\n%s\n\n| key | default | values | meaning |\n|---|---|---|---|\n",
            sections[s].name, sections[s].help);
    for (int64_t i = 0; i < ii_config_option_count; i++) {
      const ii_option *o = &ii_config_options[i];
      if (strcmp(o->section, sections[s].name) != 0) continue;
      ii_config_kind_text(o, kind, sizeof kind);
      default_text(o, def, sizeof def);
      fprintf(to, "| `%s.%s` | `%s` | %s | %s |\n", o->section, o->name, def, kind, o->help);
    }
  }
}
