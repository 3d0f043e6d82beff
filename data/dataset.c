#include "data/dataset.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/checksum.h"
#include "data/dataset_build.h"

ii_status ii_names_add(ii_names *n, const char *name, ii_error *err) {
  II_TRY(ii_dataset_grow(&n->names, &n->capacity, n->count + 1, sizeof *n->names, err));
  n->names[n->count] = strdup(name);
  if (!n->names[n->count]) return ii_error_set(err, II_ERR_MEMORY, "no memory for file names");
  n->count++;
  return II_OK;
}

void ii_names_free(ii_names *n) {
  for (int64_t i = 0; i < n->count; i++) free(n->names[i]);
  free(n->names);
  *n = (ii_names){0};
}

void ii_dataset_free(ii_dataset *d) {
  if (!d) return;
  ii_packed_free(d->packed);
  ii_crop_index_free(d->crops);
  ii_names_free(&d->classes);
  free(d->root);
  free(d->kept);
  free(d->text);
  free(d->name_at);
  free(d->label);
  free(d->place);
  free(d->ignored_first);
  free(d);
}

int64_t ii_dataset_size(const ii_dataset *d) {
  return d->kept ? d->kept_count : d->count;
}
int64_t ii_dataset_num_classes(const ii_dataset *d) {
  return d->num_classes;
}
bool ii_dataset_has_meta(const ii_dataset *d) {
  return d->place != NULL;
}

const char *ii_dataset_class_name(const ii_dataset *d, int64_t i) {
  II_ASSERT(i >= 0 && i < d->num_classes, "class %lld of %lld", (long long)i,
            (long long)d->num_classes);
  return d->classes.names ? d->classes.names[i] : NULL;
}

int64_t ii_dataset_ignored(const ii_dataset *d, const char **first) {
  if (first) *first = d->ignored_first;
  return d->ignored;
}

/* Which of the stored images is image i. */
static int64_t stored(const ii_dataset *d, int64_t i) {
  II_ASSERT(i >= 0 && i < ii_dataset_size(d), "image %lld of %lld", (long long)i,
            (long long)ii_dataset_size(d));
  return d->kept ? d->kept[i] : i;
}

int32_t ii_dataset_label(const ii_dataset *d, int64_t i) {
  return d->label[stored(d, i)];
}

/* lengths were checked when the data set was read */
void ii_dataset_name(const ii_dataset *d, int64_t i, char *out) {
  i = stored(d, i);
  const char *name = d->text + d->name_at[i];
  if (d->in_class_folders)
    snprintf(out, II_PATH_MAX, "%s/%s", d->classes.names[d->label[i]], name);
  else
    snprintf(out, II_PATH_MAX, "%s", name);
}

void ii_dataset_path(const ii_dataset *d, int64_t i, char *out) {
  char name[II_PATH_MAX];
  ii_dataset_name(d, i, name);
  if (!d->packed && name[0] == '/')
    snprintf(out, II_PATH_MAX, "%s", name);
  else if (snprintf(out, II_PATH_MAX, "%s%c%s", d->root, d->packed ? ':' : '/', name) < 0)
    out[0] = 0;
}

ii_status ii_dataset_read(const ii_dataset *d, int64_t i, ii_bytes *buffer, const uint8_t **bytes,
                          int64_t *n, ii_error *err) {
  char path[II_PATH_MAX];
  if (d->packed) return ii_packed_read(d, stored(d, i), buffer, bytes, n, err);
  ii_dataset_path(d, i, path);
  II_TRY(ii_bytes_read(buffer, path, err));
  *bytes = buffer->data, *n = buffer->size;
  return II_OK;
}

const uint8_t *ii_dataset_packed_index(const ii_dataset *d, int64_t i, const uint8_t *bytes,
                                       int64_t *index_n) {
  const int64_t k = stored(d, i);
  *index_n = d->packed ? d->packed->index_size[k] : 0;
  return *index_n > 0 ? bytes + d->packed->size[k] : NULL;
}

bool ii_dataset_is_recoded(const ii_dataset *d, int64_t i) {
  return d->packed && d->packed->recoded[stored(d, i)];
}

const ii_place *ii_dataset_place(const ii_dataset *d, int64_t i) {
  return d->place ? &d->place[stored(d, i)] : NULL;
}

void ii_dataset_meta(const ii_dataset *d, int64_t i, float out[II_META_VALUES]) {
  i = stored(d, i);
  memset(out, 0, II_META_VALUES * sizeof *out);
  if (!d->place) return;
  ii_place p = d->place[i];
  if (p.month > 0) {
    double angle = 2.0 * M_PI * p.month / 12.0;
    out[0] = (float)sin(angle), out[1] = (float)cos(angle);
  }
  if (isnan(p.lat) || isnan(p.lon) || p.lat == 0 || p.lon == 0) return;
  double lat = p.lat * M_PI / 180.0, lon = p.lon * M_PI / 180.0;
  out[4] = (float)(cos(lat) * cos(lon));
  out[5] = (float)(cos(lat) * sin(lon));
  out[6] = (float)sin(lat);
}

uint32_t ii_dataset_fingerprint(const ii_dataset *d) {
  uint32_t crc = 0;
  for (int64_t i = 0; i < ii_dataset_size(d); i++) {
    const int64_t k = stored(d, i);
    const char *name = d->text + d->name_at[k];
    const uint8_t label[4] = {(uint8_t)d->label[k], (uint8_t)(d->label[k] >> 8),
                              (uint8_t)(d->label[k] >> 16), (uint8_t)(d->label[k] >> 24)};
    if (d->in_class_folders) {
      const char *class = d->classes.names[d->label[k]];
      crc = ii_crc32c(crc, class, (int64_t)strlen(class));
      crc = ii_crc32c(crc, "/", 1);
    }
    crc = ii_crc32c(crc, name, (int64_t)strlen(name) + 1); /* with its end */
    crc = ii_crc32c(crc, label, sizeof label);
  }
  return crc;
}

ii_status ii_dataset_check_same_classes(const ii_dataset *a, const ii_dataset *b, ii_error *err) {
  if (a->classes.names && b->classes.names) {
    int64_t n = a->num_classes < b->num_classes ? a->num_classes : b->num_classes;
    for (int64_t i = 0; i < n; i++)
      if (strcmp(a->classes.names[i], b->classes.names[i]) != 0)
        return ii_error_set(err, II_ERR_FORMAT,
                            "class %lld is '%s' in '%s' but '%s' in '%s'; both folders must have "
                            "the same class folders",
                            (long long)i, a->classes.names[i], a->root, b->classes.names[i],
                            b->root);
  }
  if (a->num_classes != b->num_classes)
    return ii_error_set(err, II_ERR_FORMAT,
                        "'%s' has %lld classes but '%s' has %lld; both must have the same", a->root,
                        (long long)a->num_classes, b->root, (long long)b->num_classes);
  return II_OK;
}
