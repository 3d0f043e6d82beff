/* iNaturalist 2017 and 2018: JSON in the manner of COCO, and places and dates in a file apart. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/dataset_build.h"

typedef struct {
  ii_dataset *d;
  const char *path;
  json_t *file, *locations; /* locations NULL: none */
  json_int_t *category_ids; /* [num_classes]: in the order of the file */
  ii_error *err;
} reader;

static ii_status bad(const reader *r, const char *what, size_t i) {
  return ii_error_set(r->err, II_ERR_FORMAT, "'%s' is not as iNaturalist's files are: %s %llu",
                      r->path, what, (unsigned long long)i);
}

static ii_status load(const char *path, json_t **out, ii_error *err) {
  json_error_t e;
  *out = json_load_file(path, 0, &e);
  return *out ? II_OK
              : ii_error_set(err, e.line < 0 ? II_ERR_IO : II_ERR_FORMAT,
                             "cannot read '%s': %s (line %d)", path, e.text, e.line);
}

/* Labels are the ranks of the categories in the file. */
static ii_status read_categories(reader *r) {
  json_t *list = json_object_get(r->file, "categories");
  const size_t n = json_array_size(list);
  if (n == 0 || n > INT32_MAX) return bad(r, "number of categories:", n);
  r->category_ids = malloc(n * sizeof *r->category_ids);
  if (!r->category_ids) return ii_error_set(r->err, II_ERR_MEMORY, "no memory for classes");
  for (size_t i = 0; i < n; i++) {
    json_t *c = json_array_get(list, i), *id = json_object_get(c, "id");
    const char *name = json_string_value(json_object_get(c, "name"));
    if (!json_is_integer(id) || !name) return bad(r, "category", i);
    r->category_ids[i] = json_integer_value(id);
    II_TRY(ii_names_add(&r->d->classes, name, r->err));
  }
  r->d->num_classes = (int64_t)n;
  return II_OK;
}

static int64_t label_of(const reader *r, json_int_t id) {
  const int64_t n = r->d->num_classes;
  if (id >= 0 && id < n && r->category_ids[id] == id) return id; /* as in the official files */
  for (int64_t i = 0; i < n; i++)
    if (r->category_ids[i] == id) return i;
  return -1;
}

/* Month of "2017-08-23..." or 0; a place that is null is NaN. */
static ii_place place_of(json_t *location) {
  ii_place p = {.lat = NAN, .lon = NAN};
  json_t *lat = json_object_get(location, "lat"), *lon = json_object_get(location, "lon");
  const char *date = json_string_value(json_object_get(location, "date"));
  int year, month;
  if (date && sscanf(date, "%d-%d", &year, &month) == 2 && month >= 1 && month <= 12)
    p.month = month;
  if (json_is_number(lat)) p.lat = (float)json_number_value(lat);
  if (json_is_number(lon)) p.lon = (float)json_number_value(lon);
  return p;
}

/* Image, annotation and location number i belong together; the ids must say so too. */
static ii_status add_image(reader *r, size_t i) {
  json_t *image = json_array_get(json_object_get(r->file, "images"), i);
  json_t *note = json_array_get(json_object_get(r->file, "annotations"), i);
  json_t *where = r->locations ? json_array_get(r->locations, i) : NULL;
  json_t *id = json_object_get(image, "id"), *of = json_object_get(note, "image_id");
  json_t *where_id = json_object_get(where, "id"), *c = json_object_get(note, "category_id");
  const char *name = json_string_value(json_object_get(image, "file_name"));
  if (!name || !*name || strlen(name) + strlen(r->d->root) + 2 > II_PATH_MAX)
    return bad(r, "image", i);
  if (!json_is_integer(id) || !json_is_integer(of) || !json_is_integer(c) ||
      json_integer_value(id) != json_integer_value(of))
    return bad(r, "annotation", i);
  if (where_id && json_integer_value(where_id) != json_integer_value(id))
    return bad(r, "the locations are those of other images from number", i);
  const int64_t label = label_of(r, json_integer_value(c));
  if (label < 0) return bad(r, "unknown category of annotation", i);
  const ii_place place = place_of(where);
  return ii_dataset_add(r->d, name, (int32_t)label, r->locations ? &place : NULL, r->err);
}

static ii_status read_all(reader *r, const char *locations) {
  II_TRY(load(r->path, &r->file, r->err));
  if (locations) II_TRY(load(locations, &r->locations, r->err));
  II_TRY(read_categories(r));
  const size_t n = json_array_size(json_object_get(r->file, "images"));
  if (n == 0) return bad(r, "number of images:", n);
  if (json_array_size(json_object_get(r->file, "annotations")) != n)
    return bad(r, "there are not as many annotations as images:", n);
  if (r->locations && json_array_size(r->locations) != n)
    return ii_error_set(r->err, II_ERR_FORMAT, "'%s' has %llu places for %llu images", locations,
                        (unsigned long long)json_array_size(r->locations), (unsigned long long)n);
  for (size_t i = 0; i < n; i++) II_TRY(add_image(r, i));
  return II_OK;
}

ii_status ii_dataset_open_inat(const char *json, const char *locations, const char *root,
                               ii_dataset **dataset, ii_error *err) {
  ii_dataset *d = calloc(1, sizeof *d);
  if (d) d->root = strdup(root);
  reader r = {.d = d, .path = json, .err = err};
  ii_status s = d && d->root ? read_all(&r, locations)
                             : ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  json_decref(r.file);
  json_decref(r.locations);
  free(r.category_ids);
  if (s != II_OK)
    ii_dataset_free(d);
  else
    *dataset = d;
  return s;
}
