#include "data/class_list.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ii_status read_text(const char *path, ii_names *names, ii_error *err) {
  FILE *f = fopen(path, "r");
  if (!f)
    return ii_error_set(err, II_ERR_IO, "cannot open the class list '%s': %s", path,
                        strerror(errno));
  char *line = NULL;
  size_t size = 0;
  ii_status s = II_OK;
  for (int64_t number = 1; s == II_OK && getline(&line, &size, f) >= 0; number++) {
    line[strcspn(line, " \t\r\n")] = 0;
    s = *line && !strchr(line, '/')
            ? ii_names_add(names, line, err)
            : ii_error_set(err, II_ERR_FORMAT, "%s:%lld: expected the name of a class", path,
                           (long long)number);
  }
  if (s == II_OK && ferror(f))
    s = ii_error_set(err, II_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  free(line);
  fclose(f);
  return s;
}

static ii_status sort_json(const char *path, json_t *object, const char **sorted, size_t n,
                           ii_error *err) {
  const char *name;
  json_t *value;
  json_object_foreach(object, name, value) {
    const json_int_t i = json_is_integer(value) ? json_integer_value(value) : -1;
    if (i < 0 || i >= (json_int_t)n || sorted[i] || strchr(name, '/'))
      return ii_error_set(err, II_ERR_FORMAT,
                          "'%s': class '%.100s' should have one number of its own in 0..%lld", path,
                          name, (long long)n - 1);
    sorted[i] = name;
  }
  return II_OK;
}

static ii_status read_json(const char *path, ii_names *names, ii_error *err) {
  json_error_t e;
  json_t *object = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
  if (!object)
    return ii_error_set(err, e.line < 0 ? II_ERR_IO : II_ERR_FORMAT,
                        "cannot read the class list '%s': %s (line %d)", path, e.text, e.line);
  const size_t n = json_object_size(object);
  const char **sorted = calloc(n + 1, sizeof *sorted);
  ii_status s = sorted ? sort_json(path, object, sorted, n, err)
                       : ii_error_set(err, II_ERR_MEMORY, "no memory for class names");
  for (size_t i = 0; s == II_OK && i < n; i++) s = ii_names_add(names, sorted[i], err);
  free(sorted);
  json_decref(object);
  return s;
}

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static ii_status check_names(const char *path, const ii_names *names, ii_error *err) {
  const size_t n = (size_t)names->count;
  if (n == 0) return ii_error_set(err, II_ERR_FORMAT, "the class list '%s' is empty", path);
  char **sorted = malloc(n * sizeof *sorted);
  if (!sorted) return ii_error_set(err, II_ERR_MEMORY, "no memory for class names");
  memcpy(sorted, names->names, n * sizeof *sorted);
  qsort(sorted, n, sizeof *sorted, by_bytes);
  ii_status s = II_OK;
  for (size_t i = 1; s == II_OK && i < n; i++)
    if (strcmp(sorted[i], sorted[i - 1]) == 0)
      s = ii_error_set(err, II_ERR_FORMAT, "the class list '%s' has '%.100s' twice", path,
                       sorted[i]);
  free(sorted);
  return s;
}

ii_status ii_class_list_read(const char *path, ii_names *names, ii_error *err) {
  const size_t n = strlen(path);
  const bool json = n > 5 && strcmp(path + n - 5, ".json") == 0;
  II_TRY(json ? read_json(path, names, err) : read_text(path, names, err));
  return check_names(path, names, err);
}
