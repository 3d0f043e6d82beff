/* Reading and the parts common to both directions; writing is in h5file_write.c. */
#include "train/h5file_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { BUFFER = 1 << 20, TEXT_MAX = 1 << 24 };

hid_t ii_h5_native(ii_h5_type t) {
  return t == II_H5_F32 ? H5T_NATIVE_FLOAT : t == II_H5_F64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT64;
}

/* ---- the checksum block ----------------------------------------------------------------------*/

ii_status ii_h5_header(int fd, const char *path, int64_t bytes, char out[II_H5_BLOCK],
                       ii_error *err) {
  uLong crc = crc32(0, NULL, 0);
  unsigned char *buffer = malloc(BUFFER);
  if (!buffer) return ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", path);
  for (int64_t at = II_H5_BLOCK; at < bytes;) {
    ssize_t n = pread(fd, buffer, BUFFER, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      free(buffer);
      return ii_error_set(err, II_ERR_IO, "%s cannot be read: %s", path,
                          n < 0 ? strerror(errno) : "it became shorter");
    }
    crc = crc32(crc, buffer, (uInt)n);
    at += n;
  }
  free(buffer);
  memset(out, 0, II_H5_BLOCK);
  snprintf(out, II_H5_BLOCK, "%s 1\nbytes %" PRId64 "\ncrc32 %08lx\n", II_H5_MAGIC, bytes,
           (unsigned long)crc);
  return II_OK;
}

/* Whether the file is ours, and if so whether it is whole. */
static ii_status check_block(int fd, const char *path, int64_t bytes, bool *ours, ii_error *err) {
  static const unsigned char hdf5[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  char found[II_H5_BLOCK] = {0}, wanted[II_H5_BLOCK];
  if (pread(fd, found, sizeof found, 0) < 0)
    return ii_error_set(err, II_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
  *ours = memcmp(found, hdf5, sizeof hdf5) != 0;
  if (!*ours) return II_OK;
  if (strncmp(found, II_H5_MAGIC, strlen(II_H5_MAGIC)) != 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s is not a checkpoint (or its beginning is damaged): no HDF5 signature",
                        path);
  II_TRY(ii_h5_header(fd, path, bytes, wanted, err));
  if (memcmp(found, wanted, sizeof found) != 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s is damaged or cut off: its checksum does not match its %" PRId64
                        " bytes; use another checkpoint",
                        path, bytes);
  return II_OK;
}

static ii_status check_file(const char *path, bool *ours, ii_error *err) {
  struct stat st;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ii_error_set(err, II_ERR_IO, "%s cannot be opened: %s", path, strerror(errno));
  ii_status s = II_OK;
  if (fstat(fd, &st) != 0)
    s = ii_error_set(err, II_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
  else if (!S_ISREG(st.st_mode))
    s = ii_error_set(err, II_ERR_IO, "%s is not a file", path);
  else
    s = check_block(fd, path, (int64_t)st.st_size, ours, err);
  close(fd);
  return s;
}

/* ---- opening ---------------------------------------------------------------------------------*/

ii_h5 *ii_h5_new(const char *path, ii_error *err) {
  ii_h5 *f = calloc(1, sizeof *f);
  if (f) f->path = strdup(path);
  if (!f || !f->path) {
    free(f);
    ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", path);
    return NULL;
  }
  f->id = -1;
  /* a file that could not be written to its end stays open inside HDF5, which would try, and crash,
   * again when the program ends; everything else is closed by hand */
  H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* our sentences instead of HDF5's stack dumps */
  return f;
}

void ii_h5_free(ii_h5 *f) {
  if (!f) return;
  free(f->path);
  free(f->temporary);
  free(f);
}

ii_status ii_h5_open(const char *path, ii_h5 **file, ii_error *err) {
  *file = NULL;
  bool ours = false;
  II_TRY(check_file(path, &ours, err));
  ii_h5 *f = ii_h5_new(path, err);
  if (!f) return II_ERR_MEMORY;
  f->ours = ours;
  f->id = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  if (f->id < 0) {
    ii_h5_free(f);
    return ii_error_set(err, II_ERR_FORMAT, "%s cannot be opened as an HDF5 file", path);
  }
  *file = f;
  return II_OK;
}

void ii_h5_close(ii_h5 *f) {
  if (!f) return;
  if (f->id >= 0) H5Fclose(f->id);
  ii_h5_free(f);
}

bool ii_h5_is_ours(const ii_h5 *f) {
  return f->ours;
}
const char *ii_h5_path(const ii_h5 *f) {
  return f->path;
}

/* ---- groups and data sets --------------------------------------------------------------------*/

static bool is_kind(hid_t at, const char *name, H5I_type_t kind) {
  hid_t o = H5Oopen(at, name, H5P_DEFAULT);
  bool yes = o >= 0 && H5Iget_type(o) == kind;
  if (o >= 0) H5Oclose(o);
  return yes;
}

bool ii_h5_has_group(ii_h5 *f, const char *group) {
  /* each part of the path in turn: a missing parent is an answer, not a failure */
  char part[256];
  size_t n = strlen(group);
  if (n >= sizeof part) return false;
  for (size_t i = 1; i <= n; i++) {
    if (group[i] != '/' && group[i] != 0) continue;
    memcpy(part, group, i);
    part[i] = 0;
    if (i > 1 && H5Lexists(f->id, part, H5P_DEFAULT) <= 0) return false;
  }
  return is_kind(f->id, group, H5I_GROUP);
}

typedef struct {
  char *text; /* names one after the other, each with its end */
  size_t size, capacity;
  int64_t count;
} name_list;

static bool add_name(name_list *l, const char *name, size_t n) {
  if (l->size + n + 1 > l->capacity) {
    size_t capacity = 2 * (l->size + n + 1) + 4096;
    char *text = realloc(l->text, capacity);
    if (!text) return false;
    l->text = text;
    l->capacity = capacity;
  }
  memcpy(l->text + l->size, name, n);
  l->text[l->size + n] = 0;
  l->size += n + 1;
  l->count++;
  return true;
}

/* Packs the list into one block: the pointers, then the texts. Frees the list. */
static ii_status pack_names(name_list *l, const char *path, char ***names, int64_t *count,
                            ii_error *err) {
  size_t head = (size_t)(l->count + 1) * sizeof(char *);
  char **out = malloc(head + l->size);
  if (out) {
    char *p = (char *)out + head;
    if (l->size) memcpy(p, l->text, l->size);
    for (int64_t i = 0; i < l->count; i++, p += strlen(p) + 1) out[i] = p;
    out[l->count] = NULL;
    *names = out;
    *count = l->count;
  }
  free(l->text);
  return out ? II_OK : ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", path);
}

static herr_t visit(hid_t group, const char *name, const H5L_info_t *info, void *user) {
  name_list *l = user;
  (void)info;
  if (!is_kind(group, name, H5I_DATASET)) return 0;
  return add_name(l, name, strlen(name)) ? 0 : -1;
}

ii_status ii_h5_list(ii_h5 *f, const char *group, char ***names, int64_t *count, ii_error *err) {
  name_list l = {0};
  hid_t g = H5Gopen2(f->id, group, H5P_DEFAULT);
  herr_t done = g < 0 ? -1 : H5Literate(g, H5_INDEX_NAME, H5_ITER_INC, NULL, visit, &l);
  if (g >= 0) H5Gclose(g);
  if (done < 0) {
    free(l.text);
    return ii_error_set(err, II_ERR_FORMAT, "%s: its group %s cannot be listed", f->path, group);
  }
  return pack_names(&l, f->path, names, count, err);
}

static hid_t open_dataset(ii_h5 *f, const char *group, const char *name, ii_error *err) {
  hid_t d = -1, g = H5Gopen2(f->id, group, H5P_DEFAULT);
  if (g >= 0 && is_kind(g, name, H5I_DATASET)) d = H5Dopen2(g, name, H5P_DEFAULT);
  if (g >= 0) H5Gclose(g);
  if (d < 0)
    ii_error_set(err, II_ERR_FORMAT, "%s: '%s' is not in its group %s", f->path, name, group);
  return d;
}

static bool read_shape(hid_t d, ii_h5_shape *shape) {
  hsize_t dim[H5S_MAX_RANK];
  hid_t space = H5Dget_space(d);
  int ndim = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
  bool good = ndim >= 0 && ndim <= II_H5_DIMS && H5Sget_simple_extent_type(space) != H5S_NULL &&
              H5Sget_simple_extent_dims(space, dim, NULL) == ndim;
  if (space >= 0) H5Sclose(space);
  *shape = (ii_h5_shape){.ndim = good ? ndim : 0};
  for (int64_t i = 0, numel = 1; good && i < ndim; i++) {
    /* no model is that large; and the size in bytes must fit into 64 bits */
    if (dim[i] > INT32_MAX || (dim[i] && numel > INT64_MAX / 16 / (int64_t)dim[i])) return false;
    shape->dim[i] = (int64_t)dim[i];
    numel *= shape->dim[i];
  }
  return good;
}

static bool is_number(hid_t d) {
  hid_t t = H5Dget_type(d);
  H5T_class_t kind = t < 0 ? H5T_NO_CLASS : H5Tget_class(t);
  if (t >= 0) H5Tclose(t);
  return kind == H5T_FLOAT || kind == H5T_INTEGER;
}

ii_status ii_h5_get_shape(ii_h5 *f, const char *group, const char *name, ii_h5_shape *shape,
                          ii_error *err) {
  hid_t d = open_dataset(f, group, name, err);
  if (d < 0) return II_ERR_FORMAT;
  bool good = is_number(d) && read_shape(d, shape);
  H5Dclose(d);
  if (good) return II_OK;
  return ii_error_set(err, II_ERR_FORMAT, "%s: '%s' in group %s is not a tensor of numbers",
                      f->path, name, group);
}

static bool same_shape(const ii_h5_shape *a, const ii_h5_shape *b) {
  bool same = a->ndim == b->ndim;
  for (int i = 0; same && i < a->ndim; i++) same = a->dim[i] == b->dim[i];
  return same;
}

ii_status ii_h5_read(ii_h5 *f, const char *group, const char *name, const ii_h5_shape *shape,
                     ii_h5_type wanted, void *data, ii_error *err) {
  ii_h5_shape found;
  II_TRY(ii_h5_get_shape(f, group, name, &found, err));
  if (!same_shape(&found, shape))
    return ii_error_set(err, II_ERR_FORMAT, "%s: '%s' in group %s has an unexpected shape", f->path,
                        name, group);
  hid_t d = open_dataset(f, group, name, err);
  if (d < 0) return II_ERR_FORMAT;
  herr_t done = ii_h5_numel(shape) == 0
                    ? 0
                    : H5Dread(d, ii_h5_native(wanted), H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
  H5Dclose(d);
  if (done >= 0) return II_OK;
  return ii_error_set(err, II_ERR_FORMAT, "%s: '%s' in group %s cannot be read", f->path, name,
                      group);
}

/* ---- texts -----------------------------------------------------------------------------------*/

/* Size of a fixed-size string type, 0 for anything else. */
static size_t text_size(hid_t type) {
  if (type < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) return 0;
  size_t n = H5Tget_size(type);
  return n <= TEXT_MAX ? n : 0;
}

ii_status ii_h5_read_texts(ii_h5 *f, const char *group, const char *name, char ***texts,
                           int64_t *count, ii_error *err) {
  ii_h5_shape shape = {0};
  name_list l = {0};
  hid_t d = open_dataset(f, group, name, err);
  if (d < 0) return II_ERR_FORMAT;
  hid_t type = H5Dget_type(d);
  size_t size = text_size(type);
  char *raw = NULL;
  bool good = size > 0 && read_shape(d, &shape) && shape.ndim == 1 &&
              (size_t)shape.dim[0] <= TEXT_MAX / size;
  if (good) raw = malloc(size * (size_t)shape.dim[0] + 1);
  good = raw && H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, raw) >= 0;
  for (int64_t i = 0; good && i < shape.dim[0]; i++) {
    const char *p = raw + (size_t)i * size;
    good = add_name(&l, p, strnlen(p, size));
  }
  free(raw);
  if (type >= 0) H5Tclose(type);
  H5Dclose(d);
  if (good) return pack_names(&l, f->path, texts, count, err);
  free(l.text);
  return ii_error_set(err, II_ERR_FORMAT, "%s: the texts '%s' cannot be read", f->path, name);
}

/* ---- attributes ------------------------------------------------------------------------------*/

bool ii_h5_has_attr(ii_h5 *f, const char *name) {
  return H5Aexists(f->id, name) > 0;
}

static ii_status attr_error(ii_h5 *f, const char *name, ii_error *err) {
  return ii_error_set(err, II_ERR_FORMAT,
                      "%s has no usable attribute '%s': not a checkpoint of "
                      "this program",
                      f->path, name);
}

static ii_status get_number(ii_h5 *f, const char *name, hid_t type, void *value, ii_error *err) {
  if (!ii_h5_has_attr(f, name)) return attr_error(f, name, err);
  hid_t a = H5Aopen(f->id, name, H5P_DEFAULT), space = a < 0 ? -1 : H5Aget_space(a);
  hid_t stored = a < 0 ? -1 : H5Aget_type(a);
  H5T_class_t kind = stored < 0 ? H5T_NO_CLASS : H5Tget_class(stored);
  bool good = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
              (kind == H5T_FLOAT || kind == H5T_INTEGER) && H5Aread(a, type, value) >= 0;
  if (stored >= 0) H5Tclose(stored);
  if (space >= 0) H5Sclose(space);
  if (a >= 0) H5Aclose(a);
  return good ? II_OK : attr_error(f, name, err);
}

ii_status ii_h5_get_i64(ii_h5 *f, const char *name, int64_t *value, ii_error *err) {
  return get_number(f, name, H5T_NATIVE_INT64, value, err);
}

ii_status ii_h5_get_f64(ii_h5 *f, const char *name, double *value, ii_error *err) {
  return get_number(f, name, H5T_NATIVE_DOUBLE, value, err);
}

ii_status ii_h5_get_text(ii_h5 *f, const char *name, char **value, ii_error *err) {
  if (!ii_h5_has_attr(f, name)) return attr_error(f, name, err);
  hid_t a = H5Aopen(f->id, name, H5P_DEFAULT), space = a < 0 ? -1 : H5Aget_space(a);
  hid_t type = a < 0 ? -1 : H5Aget_type(a);
  size_t size = text_size(type);
  bool good = size > 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1;
  char *text = good ? calloc(1, size + 1) : NULL;
  good = text && H5Aread(a, type, text) >= 0;
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  if (a >= 0) H5Aclose(a);
  if (!good) {
    free(text);
    return attr_error(f, name, err);
  }
  *value = text;
  return II_OK;
}
