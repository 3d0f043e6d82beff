#include "data/skip_list.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/checksum.h"
#include "data/dataset_build.h"

typedef struct {
  char *name;
  int64_t bytes;
  uint32_t crc;
  bool found;
} entry;

typedef struct {
  entry *v;
  int64_t n, capacity;
  bool escaped; /* the file has the line II_SKIP_ESCAPES */
} entries;

static int by_name(const void *a, const void *b) {
  return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static const char PLAIN[] = "\\\t\n\r#", ESCAPED[] = "\\tnr#";

void ii_skip_write_text(FILE *f, const char *text) {
  for (const char *p = text; *p; p++) {
    const char *at = strchr(PLAIN, *p);
    if (at && (*p != '#' || p == text))
      fprintf(f, "\\%c", ESCAPED[at - PLAIN]);
    else
      fputc(*p, f);
  }
}

/* In place. False for what ii_skip_write_text does not write. */
static bool unescape(char *text) {
  char *out = text;
  for (const char *p = text; *p; p++) {
    char c = *p;
    if (c == '\\') {
      const char *at = *++p ? strchr(ESCAPED, *p) : NULL;
      if (!at) return false;
      c = PLAIN[at - ESCAPED];
    }
    *out++ = c;
  }
  *out = 0;
  return true;
}

static ii_status add_line(entries *e, char *line, const char *path, int64_t number, ii_error *err) {
  char *field[3] = {line, NULL, NULL}, *p = line, *end1, *end2;
  for (int i = 1; i < 3 && p; i++) {
    p = strchr(p, '\t');
    if (p) *p++ = 0, field[i] = p;
  }
  if (p && (p = strchr(p, '\t')) != NULL) *p = 0;
  entry x = {0};
  bool good = field[2] && *line && (!e->escaped || unescape(line));
  if (good) {
    errno = 0;
    x.bytes = strtoll(field[1], &end1, 10);
    x.crc = (uint32_t)strtoul(field[2], &end2, 16);
    good = errno == 0 && end1 != field[1] && !*end1 && end2 == field[2] + 8 && !*end2;
  }
  if (!good)
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s:%lld: expected 'name size checksum reason' separated by tabs", path,
                        (long long)number);
  II_TRY(ii_dataset_grow(&e->v, &e->capacity, e->n + 1, sizeof *e->v, err));
  x.name = strdup(line);
  if (!x.name) return ii_error_set(err, II_ERR_MEMORY, "no memory for a skip list");
  e->v[e->n++] = x;
  return II_OK;
}

static ii_status read_list(entries *e, const char *path, ii_error *err) {
  FILE *file = fopen(path, "r");
  if (!file)
    return ii_error_set(err, II_ERR_IO, "cannot open the skip list '%s': %s", path,
                        strerror(errno));
  char *line = NULL;
  size_t size = 0;
  ii_status s = II_OK;
  ssize_t n;
  for (int64_t number = 1; s == II_OK && (n = getline(&line, &size, file)) >= 0; number++) {
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    if (n > 0 && line[0] != '#')
      s = add_line(e, line, path, number, err);
    else if (!strcmp(line, II_SKIP_ESCAPES))
      e->escaped = true;
  }
  if (s == II_OK && ferror(file))
    s = ii_error_set(err, II_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  free(line);
  fclose(file);
  if (e->n > 0) qsort(e->v, (size_t)e->n, sizeof *e->v, by_name);
  return s;
}

/* Whether image i has the bytes it had when it was scanned; an unreadable one counts as empty. */
static bool is_same(const ii_dataset *d, int64_t i, const entry *x, ii_bytes *buffer) {
  ii_error none = {0};
  const uint8_t *bytes;
  int64_t n;
  ii_status s = ii_dataset_read(d, i, buffer, &bytes, &n, &none);
  if (s != II_OK) return x->bytes == 0 || d->packed;
  return n == x->bytes && ii_crc32c(0, bytes, n) == x->crc;
}

static ii_status filter(ii_dataset *d, entries *e, ii_bytes *buffer, ii_skip_result *r,
                        ii_error *err) {
  char name[II_PATH_MAX];
  int64_t kept = 0;
  int64_t *keep = malloc((size_t)d->count * sizeof *keep);
  if (!keep) return ii_error_set(err, II_ERR_MEMORY, "no memory for a skip list");
  for (int64_t i = 0; i < d->count; i++) {
    const entry key = {.name = name};
    ii_dataset_name(d, i, name);
    entry *x = e->n ? bsearch(&key, e->v, (size_t)e->n, sizeof *e->v, by_name) : NULL;
    bool skip = x && is_same(d, i, x, buffer);
    if (x) x->found = true;
    r->skipped += skip;
    r->changed += x && !skip;
    if (!skip) keep[kept++] = i;
  }
  for (int64_t i = 0; i < e->n; i++) r->unknown += !e->v[i].found;
  r->listed = e->n;
  if (kept == 0) {
    free(keep);
    return ii_error_set(err, II_ERR_FORMAT, "it lists every image of the data set");
  }
  d->kept = keep, d->kept_count = kept;
  return II_OK;
}

const ii_skip_result *ii_dataset_skip_result(const ii_dataset *d) {
  return &d->skip;
}

ii_status ii_dataset_skip(ii_dataset *d, const char *path, ii_error *err) {
  entries e = {0};
  ii_bytes buffer = {0};
  II_ASSERT(!d->kept, "a second skip list, '%s'", path);
  ii_status s = read_list(&e, path, err);
  if (s == II_OK && filter(d, &e, &buffer, &d->skip, err) != II_OK)
    s = ii_error_prefix(err, "skip list '%s'", path);
  for (int64_t i = 0; i < e.n; i++) free(e.v[i].name);
  free(e.v);
  ii_bytes_free(&buffer);
  return s;
}
