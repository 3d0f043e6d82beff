/* Reading configurations: files with their bases, text, and --set. libconfig does the syntax; what
 * a value may be is checked here against the table, with file and line. */
#include "train/config_table.h"
#include <ctype.h>
#include <errno.h>
#include <libconfig.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES = 1 << 20, BASES = 16 }; /* far more than a config needs */

/* Where a value was written, for messages. line 0: a command-line override, which has no lines. */
typedef struct {
  const char *source;
  int line;
} place;

static ii_status fail(ii_error *err, ii_status status, place at, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* One line, whatever names and values from outside it quotes. */
static ii_status fail(ii_error *err, ii_status status, place at, const char *fmt, ...) {
  char text[II_ERROR_TEXT];
  int n = at.line > 0 ? snprintf(text, sizeof text, "%.500s:%d: ", at.source, at.line)
                      : snprintf(text, sizeof text, "%.500s: ", at.source);
  va_list args;
  va_start(args, fmt);
  vsnprintf(text + n, sizeof text - (size_t)n, fmt, args);
  va_end(args);
  for (char *c = text; *c; c++)
    if ((unsigned char)*c < 32) *c = '?';
  return ii_error_set(err, status, "%s", text);
}

/* ---- values ---------------------------------------------------------------------------------- */

static const char *type_text(const config_setting_t *s) {
  switch (config_setting_type(s)) {
  case CONFIG_TYPE_INT:
  case CONFIG_TYPE_INT64:
    return "an integer";
  case CONFIG_TYPE_FLOAT:
    return "a number with a decimal point";
  case CONFIG_TYPE_STRING:
    return "a text";
  case CONFIG_TYPE_BOOL:
    return "true or false";
  case CONFIG_TYPE_GROUP:
    return "a group { }";
  default:
    return "a list";
  }
}

static ii_status wrong_type(const ii_option *o, const config_setting_t *s, place at,
                            ii_error *err) {
  char wanted[128];
  ii_config_kind_text(o, wanted, sizeof wanted);
  return fail(err, II_ERR_ARG, at, "%s.%s is %s; it must be: %s", o->section, o->name, type_text(s),
              wanted);
}

static ii_status check_range(const ii_option *o, double x, place at, ii_error *err) {
  if (x >= o->min && x <= o->max) return II_OK;
  return fail(err, II_ERR_ARG, at, "%s.%s = %.10g is out of range; it goes from %.10g to %.10g",
              o->section, o->name, x, o->min, o->max);
}

static ii_status read_int(const ii_option *o, const config_setting_t *s, place at, int64_t *to,
                          ii_error *err) {
  int type = config_setting_type(s);
  if (type != CONFIG_TYPE_INT && type != CONFIG_TYPE_INT64) return wrong_type(o, s, at, err);
  int64_t x = type == CONFIG_TYPE_INT ? config_setting_get_int(s) : config_setting_get_int64(s);
  II_TRY(check_range(o, (double)x, at, err));
  *to = x;
  return II_OK;
}

/* A whole number is welcome where any number is wanted: 5 for 5.0. */
static ii_status read_double(const ii_option *o, const config_setting_t *s, place at, double *to,
                             ii_error *err) {
  double x;
  switch (config_setting_type(s)) {
  case CONFIG_TYPE_INT:
    x = config_setting_get_int(s);
    break;
  case CONFIG_TYPE_INT64:
    x = (double)config_setting_get_int64(s);
    break;
  case CONFIG_TYPE_FLOAT:
    x = config_setting_get_float(s);
    break;
  default:
    return wrong_type(o, s, at, err);
  }
  II_TRY(check_range(o, x, at, err));
  *to = x;
  return II_OK;
}

static ii_status store_string(const ii_option *o, const char *text, place at, char *to,
                              ii_error *err) {
  size_t n = strlen(text);
  if (n >= II_CONFIG_STRING)
    return fail(err, II_ERR_ARG, at, "%s.%s is longer than %d bytes", o->section, o->name,
                II_CONFIG_STRING - 1);
  memset(to, 0, II_CONFIG_STRING);
  memcpy(to, text, n);
  return II_OK;
}

static ii_status store_choice(const ii_option *o, const char *text, place at, int *to,
                              ii_error *err) {
  char list[128] = "";
  size_t n = 0;
  for (int i = 0; o->choices[i]; i++) {
    if (!strcmp(text, o->choices[i])) return *to = i, II_OK;
    const char *before = i == 0 ? "" : o->choices[i + 1] ? ", " : " or ";
    if (n < sizeof list)
      n += (size_t)snprintf(list + n, sizeof list - n, "%s\"%s\"", before, o->choices[i]);
  }
  return fail(err, II_ERR_ARG, at, "%s.%s cannot be \"%.100s\"; choose %s", o->section, o->name,
              text, list);
}

static ii_status read_list(const ii_option *o, const config_setting_t *s, place at, void *to,
                           ii_error *err) {
  ii_int_list ints = {0};
  ii_double_list doubles = {0};
  int type = config_setting_type(s);
  bool whole = o->kind == II_KIND_INTS;
  if (type != CONFIG_TYPE_ARRAY && type != CONFIG_TYPE_LIST) return wrong_type(o, s, at, err);
  int64_t count = config_setting_length(s);
  if (count < o->nmin || count > o->nmax) {
    char wanted[128];
    ii_config_kind_text(o, wanted, sizeof wanted);
    return fail(err, II_ERR_ARG, at, "%s.%s has %d elements; it must be: %s", o->section, o->name,
                (int)count, wanted);
  }
  for (int64_t i = 0; i < count; i++) {
    const config_setting_t *e = config_setting_get_elem(s, (unsigned)i);
    if (whole)
      II_TRY(read_int(o, e, at, &ints.v[i], err));
    else
      II_TRY(read_double(o, e, at, &doubles.v[i], err));
  }
  ints.count = doubles.count = count;
  if (whole)
    *(ii_int_list *)to = ints;
  else
    *(ii_double_list *)to = doubles;
  return II_OK;
}

static ii_status read_value(ii_config *cfg, const ii_option *o, const config_setting_t *s, place at,
                            ii_error *err) {
  void *to = ii_config_member(cfg, o);
  switch (o->kind) {
  case II_KIND_BOOL:
    if (config_setting_type(s) != CONFIG_TYPE_BOOL) return wrong_type(o, s, at, err);
    *(bool *)to = config_setting_get_bool(s);
    return II_OK;
  case II_KIND_INT:
    return read_int(o, s, at, to, err);
  case II_KIND_DOUBLE:
    return read_double(o, s, at, to, err);
  case II_KIND_STRING:
  case II_KIND_ENUM:
    if (config_setting_type(s) != CONFIG_TYPE_STRING) return wrong_type(o, s, at, err);
    if (o->kind == II_KIND_ENUM) return store_choice(o, config_setting_get_string(s), at, to, err);
    return store_string(o, config_setting_get_string(s), at, to, err);
  case II_KIND_INTS:
  case II_KIND_DOUBLES:
    break;
  }
  return read_list(o, s, at, to, err);
}

static ii_status unknown_key(const char *section, const char *name, place at, ii_error *err) {
  char key[160], nearest[160];
  snprintf(key, sizeof key, "%.70s%s%.70s", section, *section ? "." : "", name);
  ii_config_nearest(key, nearest, sizeof nearest);
  return fail(err, II_ERR_ARG, at, "there is no key %s; the nearest is %s", key, nearest);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* What libconfig lets through in silence is refused before it sees the text: whole numbers beyond
 * 32 bits (it wraps them round), comments and texts that never end (they take all that follows
 * away), and @include (repeated keys make it useless; base replaces it). So are texts in places
 * where its parser would lose their memory, and nesting that no config needs. Brackets of lists
 * become parentheses, between which libconfig allows to mix 1 and 0.5. */
enum { NESTING = 8 };

typedef struct {
  char *at;
  place where;
  char open[NESTING]; /* the brackets that are open, the innermost last */
  int depth;
  char last; /* last character before this one that is not space or comment */
} scanner;

static ii_status skip_string(scanner *s, ii_error *err) {
  bool in_list = s->depth > 0 && s->open[s->depth - 1] == '(';
  bool expected = strchr(in_list ? "=:\"(," : "=:\"", s->last) != NULL;
  if (!expected || !s->last)
    return fail(err, II_ERR_FORMAT, s->where, "syntax error: a text in quotes cannot stand here");
  for (s->at++; *s->at && *s->at != '"' && *s->at != '\n'; s->at++)
    if (*s->at == '\\' && s->at[1] && s->at[1] != '\n') s->at++;
  if (*s->at != '"')
    return fail(err, II_ERR_FORMAT, s->where, "this text has no closing double quote on its line");
  s->at++;
  return II_OK;
}

static ii_status skip_comment(scanner *s, ii_error *err) {
  if (s->at[0] == '/' && s->at[1] == '*') {
    place begin = s->where;
    char *end = strstr(s->at + 2, "*/");
    if (!end) return fail(err, II_ERR_FORMAT, begin, "this comment /* has no end */");
    for (; s->at < end; s->at++) s->where.line += *s->at == '\n';
    s->at = end + 2;
  } else {
    s->at += strcspn(s->at, "\n");
  }
  return II_OK;
}

static ii_status skip_word(scanner *s, ii_error *err) {
  char *begin = s->at;
  while (isalnum((unsigned char)*s->at) || *s->at == '_' || *s->at == '.') s->at++;
  size_t n = (size_t)(s->at - begin);
  bool whole = strspn(begin, "0123456789") == n;
  bool hex = begin[0] == '0' && (begin[1] == 'x' || begin[1] == 'X');
  errno = 0;
  if ((whole && (strtoll(begin, NULL, 10) > INT_MAX || errno)) || (hex && n > 9))
    return fail(err, II_ERR_ARG, s->where, "%.*s is too large a number", n > 40 ? 40 : (int)n,
                begin);
  return II_OK;
}

static ii_status skip_sign(scanner *s, ii_error *err) {
  if (*s->at == '[') *s->at = '(';
  if (*s->at == ']') *s->at = ')';
  char c = *s->at;
  if (c == '(' || c == '{') {
    if (s->depth == NESTING)
      return fail(err, II_ERR_FORMAT, s->where, "more than %d brackets are open", NESTING);
    s->open[s->depth++] = c;
  } else if ((c == ')' || c == '}') && s->depth > 0) {
    s->depth--; /* libconfig sees to it that they match */
  }
  s->where.line += c == '\n';
  s->at++;
  return II_OK;
}

static ii_status prepare_text(char *text, const char *source, ii_error *err) {
  scanner s = {.at = text, .where = {source, 1}};
  bool line_begins = true;
  while (*s.at) {
    char c = *s.at;
    bool space = isspace((unsigned char)c);
    bool comment = c == '#' || (c == '/' && (s.at[1] == '/' || s.at[1] == '*'));
    if (line_begins && strncmp(s.at, "@include", 8) == 0)
      return fail(err, II_ERR_FORMAT, s.where, "@include is not possible; write base = \"FILE\";");
    line_begins = c == '\n' || (line_begins && space);
    if (comment)
      II_TRY(skip_comment(&s, err));
    else if (c == '"')
      II_TRY(skip_string(&s, err));
    else if (isalnum((unsigned char)c) || c == '_' || c == '.')
      II_TRY(skip_word(&s, err));
    else
      II_TRY(skip_sign(&s, err));
    if (!comment && !space) s.last = s.at[-1];
  }
  return II_OK;
}

/* Parses text (changed on the way) into *tree, which the caller destroys in any case. */
static ii_status parse(config_t *tree, char *text, const char *source, ii_error *err) {
  II_TRY(prepare_text(text, source, err));
  if (config_read_string(tree, text)) return II_OK;
  place at = {source, config_error_line(tree)};
  return fail(err, II_ERR_FORMAT, at, "%s", config_error_text(tree));
}

/* Keys that configurations in older checkpoints have, and that mean nothing any more:
 * train.deterministic asked for what GPUs always do now. */
static bool is_retired(const char *section, const char *name) {
  return !strcmp(section, "train") && !strcmp(name, "deterministic");
}

static ii_status apply_section(ii_config *cfg, const config_setting_t *group, bool stored,
                               const char *source, ii_error *err) {
  const char *section = config_setting_name(group);
  place at = {source, (int)config_setting_source_line(group)};
  if (!ii_config_is_section(section)) return unknown_key("", section, at, err);
  if (!config_setting_is_group(group))
    return fail(err, II_ERR_ARG, at, "%s must be a group: %s = { key = value; };", section,
                section);
  for (int i = 0; i < config_setting_length(group); i++) {
    const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
    at.line = (int)config_setting_source_line(s);
    const ii_option *o = ii_config_find(section, config_setting_name(s));
    if (!o && stored && is_retired(section, config_setting_name(s))) continue;
    if (!o) return unknown_key(section, config_setting_name(s), at, err);
    II_TRY(read_value(cfg, o, s, at, err));
  }
  return II_OK;
}

/* Overrides *cfg with every section of the tree; base, where allowed, has been dealt with. Where it
 * is not, the tree was stored by this program, or an older one. */
static ii_status apply(ii_config *cfg, const config_t *tree, const char *source, bool base_allowed,
                       ii_error *err) {
  const config_setting_t *root = config_root_setting(tree);
  for (int i = 0; i < config_setting_length(root); i++) {
    const config_setting_t *s = config_setting_get_elem(root, (unsigned)i);
    bool base = strcmp(config_setting_name(s), "base") == 0;
    place at = {source, (int)config_setting_source_line(s)};
    if (base && !base_allowed) return fail(err, II_ERR_ARG, at, "base is only possible in a file");
    if (!base) II_TRY(apply_section(cfg, s, !base_allowed, source, err));
  }
  return II_OK;
}

ii_status ii_config_parse_text(ii_config *cfg, const char *text, const char *source,
                               ii_error *err) {
  ii_config_default(cfg);
  char *copy = strdup(text);
  if (!copy) return ii_error_set(err, II_ERR_MEMORY, "%s: no memory to read it", source);
  ii_config result = *cfg;
  config_t tree;
  config_init(&tree);
  ii_status status = parse(&tree, copy, source, err);
  if (status == II_OK) status = apply(&result, &tree, source, false, err);
  config_destroy(&tree);
  free(copy);
  if (status == II_OK) *cfg = result;
  return status;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Gives the contents of a file with a final 0, to be freed. */
static ii_status read_file(const char *path, char **text, ii_error *err) {
  FILE *f = fopen(path, "rb");
  if (!f) return ii_error_set(err, II_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
  char *buf = malloc(FILE_BYTES + 1);
  size_t n = buf ? fread(buf, 1, FILE_BYTES + 1, f) : 0;
  bool failed = ferror(f);
  fclose(f);
  ii_status status = II_OK;
  if (!buf)
    status = ii_error_set(err, II_ERR_MEMORY, "%s: no memory to read it", path);
  else if (failed)
    status = ii_error_set(err, II_ERR_IO, "%s: cannot be read", path);
  else if (n > FILE_BYTES || memchr(buf, 0, n))
    status = ii_error_set(err, II_ERR_FORMAT, "%s: this is not a text file with a config", path);
  if (status != II_OK) {
    free(buf);
    return status;
  }
  buf[n] = 0;
  *text = buf;
  return II_OK;
}

/* folder with name, then with name.cfg, when it is a regular file. folder is empty or ends in /. */
static bool try_place(const char *folder, const char *name, char path[PATH_MAX]) {
  static const char *const endings[] = {"", ".cfg"};
  for (int i = 0; i < 2; i++) {
    struct stat st;
    int n = snprintf(path, PATH_MAX, "%s%s%s", folder, name, endings[i]);
    if (n < PATH_MAX && stat(path, &st) == 0 && S_ISREG(st.st_mode)) return true;
  }
  return false;
}

/* Finds a config: in folder, then in the places where the program's own configs may be. */
static bool find_file(const char *folder, const char *name, char path[PATH_MAX]) {
  char program[PATH_MAX] = "", beside[PATH_MAX];
  if (*name == '/') return try_place("", name, path);
  if (try_place(folder, name, path) || try_place("configs/", name, path)) return true;
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n > 0) {
    program[n] = 0;
    char *slash = strrchr(program, '/');
    if (slash) *slash = 0;
    static const char *const relative[] = {"configs/", "../configs/"};
    for (int i = 0; i < 2; i++) {
      int m = snprintf(beside, sizeof beside, "%s/%s", program, relative[i]);
      if (m < PATH_MAX && try_place(beside, name, path)) return true;
    }
  }
  return try_place(II_SOURCE_CONFIGS "/", name, path);
}

/* The files that are being loaded, each the base of the one before it. */
typedef struct {
  ii_config *cfg;
  char real[BASES][PATH_MAX];
  int depth;
} loading;

static ii_status load_file(loading *l, const char *path, ii_error *err);

/* Loads the file that the setting base, at a place in the file at path, names. */
static ii_status load_base(loading *l, const config_setting_t *base, const char *path,
                           ii_error *err) {
  char folder[PATH_MAX] = "", found[PATH_MAX], real[PATH_MAX];
  place at = {path, (int)config_setting_source_line(base)};
  const char *name = config_setting_get_string(base);
  if (!name || !*name)
    return fail(err, II_ERR_ARG, at, "base must be the name of a file in double quotes");
  const char *slash = strrchr(path, '/');
  if (slash) snprintf(folder, sizeof folder, "%.*s", (int)(slash - path + 1), path);
  if (!find_file(folder, name, found) || !realpath(found, real))
    return fail(err, II_ERR_IO, at, "base \"%.300s\" is neither beside this file nor in configs/",
                name);
  for (int i = 0; i < l->depth; i++)
    if (strcmp(l->real[i], real) == 0)
      return fail(err, II_ERR_FORMAT, at, "base \"%.300s\" leads back to itself", name);
  if (l->depth == BASES)
    return fail(err, II_ERR_FORMAT, at, "more than %d files build on each other", BASES);
  return load_file(l, found, err);
}

static ii_status load_file(loading *l, const char *path, ii_error *err) {
  if (!realpath(path, l->real[l->depth++]))
    return ii_error_set(err, II_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
  char *text = NULL;
  II_TRY(read_file(path, &text, err));
  config_t tree;
  config_init(&tree);
  ii_status status = parse(&tree, text, path, err);
  free(text);
  const config_setting_t *base = status == II_OK ? config_lookup(&tree, "base") : NULL;
  if (base) status = load_base(l, base, path, err);
  if (status == II_OK) status = apply(l->cfg, &tree, path, true, err);
  config_destroy(&tree);
  return status;
}

ii_status ii_config_load(ii_config *cfg, const char *name, ii_error *err) {
  char path[PATH_MAX];
  ii_config_default(cfg);
  if (!*name || !find_file("", name, path))
    return ii_error_set(err, II_ERR_IO,
                        "config \"%.300s\" is neither in the current folder nor in configs/ (%s), "
                        "with or without .cfg",
                        name, II_SOURCE_CONFIGS);
  ii_config result = *cfg;
  loading *l = calloc(1, sizeof *l);
  if (!l) return ii_error_set(err, II_ERR_MEMORY, "%s: no memory to read it", path);
  l->cfg = &result;
  ii_status status = load_file(l, path, err);
  free(l);
  if (status == II_OK) *cfg = result;
  return status;
}

/* ---- --set ----------------------------------------------------------------------------------- */

/* Reads value, which follows the syntax of files, through libconfig. */
static ii_status set_parsed(ii_config *cfg, const ii_option *o, const char *value, place at,
                            ii_error *err) {
  bool list = o->kind == II_KIND_INTS || o->kind == II_KIND_DOUBLES;
  size_t n = strlen(value);
  if (list && n >= 2 && value[0] == '[' && value[n - 1] == ']') {
    value++;
    n -= 2;
  }
  char *text = malloc(n + 16);
  if (!text) return ii_error_set(err, II_ERR_MEMORY, "%s: no memory to read it", at.source);
  sprintf(text, list ? "v = (%.*s);" : "v = %.*s;", (int)n, value);
  config_t tree;
  config_init(&tree);
  char wanted[128];
  ii_config_kind_text(o, wanted, sizeof wanted);
  ii_status status = parse(&tree, text, at.source, NULL);
  const config_setting_t *root = config_root_setting(&tree);
  if (status != II_OK || config_setting_length(root) != 1)
    status = fail(err, II_ERR_ARG, at, "%s.%s must be: %s", o->section, o->name, wanted);
  else
    status = read_value(cfg, o, config_setting_get_elem(root, 0), at, err);
  config_destroy(&tree);
  free(text);
  return status;
}

ii_status ii_config_set(ii_config *cfg, const char *assignment, ii_error *err) {
  char source[160], section[80] = "", name[80] = "";
  snprintf(source, sizeof source, "--set %.140s", assignment);
  place at = {source, 0};
  const char *equals = strchr(assignment, '=');
  const char *dot = strchr(assignment, '.');
  if (!equals || equals == assignment)
    return fail(err, II_ERR_ARG, at, "write --set section.key=value");
  if (strpbrk(assignment, "\n\r"))
    return ii_error_set(err, II_ERR_ARG, "--set: the value has more than one line");
  bool dotted = dot && dot < equals;
  if (dotted) snprintf(section, sizeof section, "%.*s", (int)(dot - assignment), assignment);
  const char *begin = dotted ? dot + 1 : assignment;
  snprintf(name, sizeof name, "%.*s", (int)(equals - begin), begin);
  const ii_option *o = ii_config_find(section, name);
  if (!o) return unknown_key(section, name, at, err);
  const char *value = equals + 1;
  void *to = ii_config_member(cfg, o);
  bool quoted = *value == '"';
  if (o->kind == II_KIND_STRING && !quoted) return store_string(o, value, at, to, err);
  if (o->kind == II_KIND_ENUM && !quoted) return store_choice(o, value, at, to, err);
  return set_parsed(cfg, o, value, at, err);
}
