#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "data/dataset_build.h"

#define MAX_LINE (II_PATH_MAX + 256)

ii_status ii_dataset_grow(void *p, int64_t *capacity, int64_t n, size_t element, ii_error *err) {
  void **at = p;
  if (n <= *capacity) return II_OK;
  int64_t room = *capacity * 2 > n ? *capacity * 2 : n < 64 ? 64 : n;
  void *more = realloc(*at, (size_t)room * element);
  if (!more) return ii_error_set(err, II_ERR_MEMORY, "no memory for the list of images");
  *at = more, *capacity = room;
  return II_OK;
}

ii_status ii_dataset_add(ii_dataset *d, const char *name, int32_t label, const ii_place *place,
                         ii_error *err) {
  int64_t length = (int64_t)strlen(name) + 1, capacity = d->capacity;
  II_TRY(ii_dataset_grow(&d->text, &d->text_capacity, d->text_size + length, 1, err));
  II_TRY(ii_dataset_grow(&d->name_at, &capacity, d->count + 1, sizeof *d->name_at, err));
  II_TRY(ii_dataset_grow(&d->label, &d->capacity, d->count + 1, sizeof *d->label, err));
  if (place) {
    II_TRY(ii_dataset_grow(&d->place, &d->place_capacity, d->count + 1, sizeof *d->place, err));
    d->place[d->count] = *place;
  }
  memcpy(d->text + d->text_size, name, (size_t)length);
  d->name_at[d->count] = d->text_size;
  d->label[d->count] = label;
  d->text_size += length;
  d->count++;
  return II_OK;
}

typedef struct {
  ii_dataset *d;
  const char *file;
  int64_t line, num_classes; /* num_classes 0: not given */
  int fields;                /* of the first line: 2 or 5 */
  ii_error *err;
} reader;

__attribute__((format(printf, 2, 3))) static ii_status bad(reader *r, const char *fmt, ...) {
  char text[512];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return ii_error_set(r->err, II_ERR_FORMAT, "%s:%lld: %s", r->file, (long long)r->line, text);
}

/* Cuts the line in place; returns how many fields there are (6 means too many). */
static int split(char *line, char *field[6]) {
  bool tabs = strchr(line, '\t') != NULL;
  int n = 0;
  char *p = line;
  for (;;) {
    if (!tabs) p += strspn(p, " ");
    if (!tabs && !*p) return n;
    if (n == 6) return n;
    field[n++] = p;
    p += strcspn(p, tabs ? "\t" : " ");
    if (!*p) return n;
    *p++ = 0;
  }
}

static ii_status parse_number(reader *r, const char *text, const char *what, double lo, double hi,
                              double *out) {
  *out = NAN;
  if (!*text || strcmp(text, "-") == 0 || strcasecmp(text, "nan") == 0) return II_OK;
  char *end;
  double v = strtod(text, &end);
  if (end == text || *end || !(v >= lo && v <= hi))
    return bad(r, "%s '%.40s' is not a number in %g..%g (nor '-' for missing)", what, text, lo, hi);
  *out = v;
  return II_OK;
}

static ii_status parse_place(reader *r, char *const field[3], ii_place *place) {
  double month, lat, lon;
  II_TRY(parse_number(r, field[0], "the month", 1, 12, &month));
  II_TRY(parse_number(r, field[1], "the latitude", -90, 90, &lat));
  II_TRY(parse_number(r, field[2], "the longitude", -180, 180, &lon));
  if (!isnan(month) && month != floor(month))
    return bad(r, "the month '%.40s' is not a whole number", field[0]);
  *place = (ii_place){isnan(month) ? 0 : (int32_t)month, (float)lat, (float)lon};
  return II_OK;
}

static ii_status parse_label(reader *r, const char *text, int32_t *label) {
  char *end;
  errno = 0;
  long v = strtol(text, &end, 10);
  if (end == text || *end)
    return bad(r, "'%.60s' is not a label (a path with spaces needs tabs between the fields)",
               text);
  if (errno || v < 0 || v >= INT32_MAX || (r->num_classes > 0 && v >= r->num_classes)) {
    if (r->num_classes > 0)
      return bad(r, "the label %.40s is not in 0..%lld", text, (long long)r->num_classes - 1);
    return bad(r, "the label %.40s is not in 0..%d", text, INT32_MAX - 1);
  }
  *label = (int32_t)v;
  return II_OK;
}

static ii_status parse_line(reader *r, char *line) {
  char *field[6] = {NULL};
  int n = split(line, field);
  if (n == 0) return II_OK;
  if (n != 2 && n != 5)
    return bad(r, "expected 'path label' or 'path label month lat lon', found %s%d field%s",
               n == 6 ? "more than " : "", n == 6 ? 5 : n, n == 1 ? "" : "s");
  if (r->fields == 0) r->fields = n;
  if (n != r->fields)
    return bad(r, "this line has %d fields, the lines before have %d", n, r->fields);
  if (!*field[0]) return bad(r, "the path is empty");
  if (strlen(field[0]) + strlen(r->d->root) + 2 > II_PATH_MAX)
    return bad(r, "the path is too long");
  int32_t label = 0;
  ii_place place;
  II_TRY(parse_label(r, field[1], &label));
  if (n == 5) II_TRY(parse_place(r, field + 2, &place));
  if (label >= r->d->num_classes) r->d->num_classes = label + 1;
  return ii_dataset_add(r->d, field[0], label, n == 5 ? &place : NULL, r->err);
}

static ii_status read_lines(reader *r, FILE *file) {
  char line[MAX_LINE];
  while (fgets(line, sizeof line, file)) {
    r->line++;
    size_t n = strlen(line);
    bool whole = n > 0 && line[n - 1] == '\n';
    if (!whole && !feof(file)) {
      bool zero = n + 1 < sizeof line;
      return bad(r, zero ? "the line has a zero byte; this is not a text file"
                         : "the line is too long");
    }
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    II_TRY(parse_line(r, line));
  }
  if (ferror(file))
    return ii_error_set(r->err, II_ERR_IO, "cannot read '%s': %s", r->file, strerror(errno));
  if (r->d->count == 0)
    return ii_error_set(r->err, II_ERR_FORMAT, "the list '%s' has no images", r->file);
  if (r->num_classes > 0) r->d->num_classes = r->num_classes;
  return II_OK;
}

ii_status ii_dataset_open_list(const char *list, const char *root, int64_t num_classes,
                               ii_dataset **dataset, ii_error *err) {
  FILE *file = fopen(list, "r");
  if (!file)
    return ii_error_set(err, II_ERR_IO, "cannot open the list '%s': %s", list, strerror(errno));
  ii_dataset *d = calloc(1, sizeof *d);
  if (d) d->root = strdup(root);
  ii_status status = II_OK;
  if (!d || !d->root) status = ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  reader r = {.d = d, .file = list, .num_classes = num_classes, .err = err};
  if (status == II_OK) status = read_lines(&r, file);
  fclose(file);
  if (status != II_OK)
    ii_dataset_free(d);
  else
    *dataset = d;
  return status;
}
