/* Reading HDF5: every call is checked, every size is looked at before it is used. */
#include "tests/golden_check.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ELEMENTS ((int64_t)1 << 28)

hid_t gc_open_file(gc *g) {
  hid_t f = H5Fopen(g->file, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (f < 0) gc_die(g, "the file is damaged or cut off: HDF5 cannot open it");
  return f;
}

hid_t gc_open_group(gc *g, hid_t parent, const char *name) {
  hid_t group = H5Gopen2(parent, name, H5P_DEFAULT);
  if (group < 0) gc_die(g, "%s is not a group, or the file is damaged there", name);
  return group;
}

bool gc_has(hid_t group, const char *name) {
  return H5Lexists(group, name, H5P_DEFAULT) > 0;
}

bool gc_has_attr(hid_t group, const char *name) {
  return H5Aexists(group, name) > 0;
}

char **gc_names(gc *g, hid_t group, int64_t *count) {
  H5G_info_t info;
  if (H5Gget_info(group, &info) < 0 || info.nlinks > 1000000)
    gc_die(g, "the file is damaged: a group cannot be listed");
  char **names = gc_alloc(g, (size_t)info.nlinks, sizeof *names);
  for (hsize_t i = 0; i < info.nlinks; i++) {
    ssize_t n = H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, NULL, 0, H5P_DEFAULT);
    if (n <= 0 || n >= GC_NAME) gc_die(g, "the file is damaged: a name cannot be read");
    names[i] = gc_alloc(g, (size_t)n + 1, 1);
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, names[i], (size_t)n + 1,
                           H5P_DEFAULT) != n)
      gc_die(g, "the file is damaged: a name cannot be read");
  }
  *count = (int64_t)info.nlinks;
  return names;
}

void gc_only(gc *g, hid_t group, const char *known) {
  int64_t count;
  char **names = gc_names(g, group, &count);
  for (int64_t i = 0; i < count; i++) {
    bool found = false;
    char *copy = gc_alloc(g, strlen(known) + 1, 1), *rest = copy;
    strcpy(copy, known);
    for (char *w; !found && (w = strtok_r(rest, " ", &rest));) {
      size_t n = strlen(w);
      found = w[n - 1] == '*' ? strncmp(w, names[i], n - 1) == 0 : strcmp(w, names[i]) == 0;
    }
    if (!found)
      gc_die(g, "%s is nothing that a case of kind \"%s\" has, so it cannot be checked", names[i],
             g->kind);
  }
}

static int64_t read_shape(gc *g, hid_t space, const char *name, int *ndim, int64_t *dim) {
  hsize_t d[GC_DIMS];
  *ndim = H5Sget_simple_extent_ndims(space);
  if (*ndim < 0 || *ndim > GC_DIMS || H5Sget_simple_extent_dims(space, d, NULL) < 0)
    gc_die(g, "%s: its shape cannot be read; the file is damaged", name);
  int64_t n = 1;
  for (int i = 0; i < *ndim; i++) {
    if (d[i] > (hsize_t)MAX_ELEMENTS) gc_die(g, "%s is too large; the file is damaged", name);
    dim[i] = (int64_t)d[i];
    n *= dim[i];
    if (n > MAX_ELEMENTS) gc_die(g, "%s is too large; the file is damaged", name);
  }
  return n;
}

gc_array gc_read(gc *g, hid_t group, const char *name) {
  gc_array a = {0};
  hid_t set = gc_has(group, name) ? H5Dopen2(group, name, H5P_DEFAULT) : -1;
  if (set < 0) gc_die(g, "data set %s is missing or damaged", name);
  hid_t space = H5Dget_space(set), type = H5Dget_type(set);
  H5T_class_t class = H5Tget_class(type);
  if (class != H5T_FLOAT && class != H5T_INTEGER) gc_die(g, "%s does not hold numbers", name);
  a.single = class == H5T_FLOAT && H5Tget_size(type) == 4;
  a.n = read_shape(g, space, name, &a.ndim, a.dim);
  a.v = gc_alloc(g, (size_t)a.n, sizeof *a.v);
  if (a.n && H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, a.v) < 0)
    gc_die(g, "%s cannot be read; the file is damaged or cut off", name);
  H5Tclose(type);
  H5Sclose(space);
  H5Dclose(set);
  return a;
}

/* One string of fixed or variable size out of a data set or attribute. */
typedef herr_t (*read_fn)(hid_t object, hid_t type, void *to);
static herr_t read_set(hid_t object, hid_t type, void *to) {
  return H5Dread(object, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, to);
}
static herr_t read_attr(hid_t object, hid_t type, void *to) {
  return H5Aread(object, type, to);
}

static char *read_string(gc *g, hid_t object, hid_t type, hid_t space, const char *name,
                         read_fn read) {
  int ndim;
  int64_t dim[GC_DIMS];
  if (H5Tget_class(type) != H5T_STRING || read_shape(g, space, name, &ndim, dim) != 1)
    gc_die(g, "%s is not a string", name);
  char *text;
  if (H5Tis_variable_str(type) > 0) {
    char *p = NULL;
    if (read(object, type, &p) < 0) gc_die(g, "%s cannot be read; the file is damaged", name);
    text = gc_alloc(g, p ? strlen(p) + 1 : 1, 1);
    if (p) strcpy(text, p);
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, &p);
  } else {
    size_t size = H5Tget_size(type);
    if (size > (size_t)1 << 26) gc_die(g, "%s is too large; the file is damaged", name);
    text = gc_alloc(g, size + 1, 1);
    if (read(object, type, text) < 0) gc_die(g, "%s cannot be read; the file is damaged", name);
  }
  return text;
}

char *gc_read_text(gc *g, hid_t group, const char *name) {
  hid_t set = gc_has(group, name) ? H5Dopen2(group, name, H5P_DEFAULT) : -1;
  if (set < 0) gc_die(g, "data set %s is missing or damaged", name);
  hid_t type = H5Dget_type(set), space = H5Dget_space(set);
  char *text = read_string(g, set, type, space, name, read_set);
  H5Sclose(space);
  H5Tclose(type);
  H5Dclose(set);
  return text;
}

void gc_shape(gc *g, const gc_array *a, const char *name, int ndim, const int64_t *dim) {
  bool same = a->ndim == ndim;
  for (int i = 0; same && i < ndim; i++) same = a->dim[i] == dim[i];
  if (!same) gc_die(g, "%s has not the shape that the other data sets ask for", name);
}

int gc_numbers(gc *g, hid_t group, const char *name, double *out, int max) {
  if (!gc_has_attr(group, name)) return 0;
  hid_t attr = H5Aopen(group, name, H5P_DEFAULT);
  if (attr < 0) gc_die(g, "attribute %s is damaged", name);
  hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
  int ndim, n = 0;
  int64_t dim[GC_DIMS];
  if (H5Tget_class(type) == H5T_STRING) {
    if (strcmp(read_string(g, attr, type, space, name, read_attr), "None") != 0)
      gc_die(g, "attribute %s is neither a number nor None", name);
  } else {
    int64_t count = read_shape(g, space, name, &ndim, dim);
    if (count > max)
      gc_die(g, "attribute %s has %lld numbers, at most %d are expected", name, (long long)count,
             max);
    n = (int)count;
    if (n && H5Aread(attr, H5T_NATIVE_DOUBLE, out) < 0) gc_die(g, "attribute %s is damaged", name);
  }
  H5Sclose(space);
  H5Tclose(type);
  H5Aclose(attr);
  return n;
}

double gc_number_or(gc *g, hid_t group, const char *name, double other) {
  double v;
  return gc_numbers(g, group, name, &v, 1) == 1 ? v : other;
}

double gc_number(gc *g, hid_t group, const char *name) {
  double v = gc_number_or(g, group, name, NAN);
  if (!isfinite(v)) gc_die(g, "attribute %s is missing or not a number", name);
  return v;
}

int64_t gc_integer(gc *g, hid_t group, const char *name, int64_t min, int64_t max) {
  double v = gc_number(g, group, name);
  if (v != floor(v) || v < (double)min || v > (double)max)
    gc_die(g, "attribute %s is %g, which cannot be", name, v);
  return (int64_t)v;
}

char *gc_text(gc *g, hid_t group, const char *name) {
  if (!gc_has_attr(group, name)) return gc_alloc(g, 1, 1);
  hid_t attr = H5Aopen(group, name, H5P_DEFAULT);
  if (attr < 0) gc_die(g, "attribute %s is damaged", name);
  hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
  char *text = read_string(g, attr, type, space, name, read_attr);
  H5Sclose(space);
  H5Tclose(type);
  H5Aclose(attr);
  return text;
}

bool gc_listed(const char *list, const char *word) {
  size_t n = strlen(word);
  for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
    if (strncmp(p, word, n) == 0 && (p[n] == ',' || p[n] == 0)) return true;
  return false;
}

double gc_error(const gc *g, const double *got, const gc_array *want, double floor) {
  double scale = fmax(gc_max_abs(want->v, want->n), floor), worst = 0;
  double rounding = want->single && g->dtype == II_F64 ? 0x1p-24 * (1 + 1e-6) : 0;
  for (int64_t i = 0; i < want->n; i++) {
    double d = fabs(got[i] - want->v[i]) - rounding * fabs(want->v[i]);
    if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
  }
  return scale > 0 ? worst / scale : worst;
}

double gc_bound(const gc *g, double f32, double f64) {
  return g->dtype == II_F64 ? f64 : f32;
}
