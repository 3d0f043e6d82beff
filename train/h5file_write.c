#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "train/h5file_priv.h"

/* The system's reason, which HDF5 keeps inside the text of its innermost error. */
static herr_t find_reason(unsigned n, const H5E_error2_t *e, void *user) {
  static const char mark[] = "error message = '";
  char *reason = user;
  const char *at = e->desc ? strstr(e->desc, mark) : NULL;
  (void)n;
  if (!at || *reason) return 0;
  at += sizeof mark - 1;
  snprintf(reason, 128, "%.*s", (int)strcspn(at, "'"), at);
  return 0;
}

static ii_status write_error(ii_h5 *f, const char *what, ii_error *err) {
  char reason[128] = "";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, find_reason, reason);
  return ii_error_set(err, II_ERR_IO, "%s cannot be written (%s): %s", f->path, what,
                      *reason ? reason : "check free space and permissions");
}

ii_status ii_h5_create(const char *path, ii_h5 **file, ii_error *err) {
  *file = NULL;
  ii_h5 *f = ii_h5_new(path, err);
  if (!f) return II_ERR_MEMORY;
  f->ours = true;
  f->temporary = malloc(strlen(path) + 5);
  hid_t how = H5Pcreate(H5P_FILE_CREATE);
  if (!f->temporary || how < 0) {
    if (how >= 0) H5Pclose(how);
    ii_h5_free(f);
    return ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", path);
  }
  strcpy(f->temporary, path);
  strcat(f->temporary, ".tmp");
  /* open first by hand: HDF5 does not say why a file cannot be created */
  int fd = open(f->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    ii_error_set(err, II_ERR_IO, "%s cannot be created: %s", f->temporary, strerror(errno));
  } else {
    close(fd);
    if (H5Pset_userblock(how, II_H5_BLOCK) >= 0)
      f->id = H5Fcreate(f->temporary, H5F_ACC_TRUNC, how, H5P_DEFAULT);
    if (f->id < 0) write_error(f, "at the beginning", err);
  }
  H5Pclose(how);
  if (f->id < 0) {
    if (fd >= 0) unlink(f->temporary);
    ii_h5_free(f);
    return II_ERR_IO;
  }
  *file = f;
  return II_OK;
}

ii_status ii_h5_group(ii_h5 *f, const char *group, ii_error *err) {
  hid_t g = H5Gcreate2(f->id, group, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  if (g < 0 || H5Gclose(g) < 0) return write_error(f, group, err);
  return II_OK;
}

/* Adds a data set of the types given; closes neither type nor space. */
static ii_status put(ii_h5 *f, const char *group, const char *name, hid_t stored, hid_t given,
                     hid_t space, const void *data, ii_error *err) {
  hid_t g = H5Gopen2(f->id, group, H5P_DEFAULT), how = H5Pcreate(H5P_DATASET_CREATE), d = -1;
  /* without times the file is a function of its contents */
  if (g >= 0 && how >= 0 && space >= 0 && H5Pset_obj_track_times(how, 0) >= 0)
    d = H5Dcreate2(g, name, stored, space, H5P_DEFAULT, how, H5P_DEFAULT);
  bool good = d >= 0 && H5Dwrite(d, given, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
  if (!good) write_error(f, name, err);
  if (d >= 0 && H5Dclose(d) < 0 && good) good = write_error(f, name, err) == II_OK;
  if (how >= 0) H5Pclose(how);
  if (g >= 0) H5Gclose(g);
  return good ? II_OK : II_ERR_IO;
}

ii_status ii_h5_write(ii_h5 *f, const char *group, const char *name, ii_h5_type stored,
                      ii_h5_type given, const ii_h5_shape *shape, const void *data, ii_error *err) {
  hsize_t dim[II_H5_DIMS];
  for (int i = 0; i < shape->ndim; i++) dim[i] = (hsize_t)shape->dim[i];
  hid_t space = shape->ndim ? H5Screate_simple(shape->ndim, dim, NULL) : H5Screate(H5S_SCALAR);
  hid_t type = stored == II_H5_F32   ? H5T_IEEE_F32LE
               : stored == II_H5_F64 ? H5T_IEEE_F64LE
                                     : H5T_STD_I64LE;
  ii_status s = put(f, group, name, type, ii_h5_native(given), space, data, err);
  if (space >= 0) H5Sclose(space);
  return s;
}

/* A fixed-size UTF-8 string type; closed by the caller. */
static hid_t text_type(size_t size) {
  hid_t t = H5Tcopy(H5T_C_S1);
  if (t >= 0 && (H5Tset_size(t, size) < 0 || H5Tset_cset(t, H5T_CSET_UTF8) < 0)) {
    H5Tclose(t);
    return -1;
  }
  return t;
}

ii_status ii_h5_write_texts(ii_h5 *f, const char *group, const char *name, int64_t n,
                            const char *const *text, ii_error *err) {
  size_t size = 1;
  II_ASSERT(n > 0, "%lld texts", (long long)n);
  for (int64_t i = 0; i < n; i++)
    if (strlen(text[i]) + 1 > size) size = strlen(text[i]) + 1;
  char *raw = calloc((size_t)n, size);
  if (!raw) return ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", f->path);
  for (int64_t i = 0; i < n; i++) strcpy(raw + (size_t)i * size, text[i]);
  hsize_t dim = (hsize_t)n;
  hid_t space = H5Screate_simple(1, &dim, NULL), type = text_type(size);
  ii_status s = put(f, group, name, type, type, space, raw, err);
  if (type >= 0) H5Tclose(type);
  if (space >= 0) H5Sclose(space);
  free(raw);
  return s;
}

static ii_status set_attr(ii_h5 *f, const char *name, hid_t type, const void *value,
                          ii_error *err) {
  hid_t space = H5Screate(H5S_SCALAR);
  hid_t a = space < 0 ? -1 : H5Acreate2(f->id, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  bool good = a >= 0 && H5Awrite(a, type, value) >= 0;
  if (!good) write_error(f, name, err);
  if (a >= 0) H5Aclose(a);
  if (space >= 0) H5Sclose(space);
  return good ? II_OK : II_ERR_IO;
}

ii_status ii_h5_set_i64(ii_h5 *f, const char *name, int64_t value, ii_error *err) {
  return set_attr(f, name, H5T_NATIVE_INT64, &value, err);
}

ii_status ii_h5_set_f64(ii_h5 *f, const char *name, double value, ii_error *err) {
  return set_attr(f, name, H5T_NATIVE_DOUBLE, &value, err);
}

ii_status ii_h5_set_text(ii_h5 *f, const char *name, const char *value, ii_error *err) {
  hid_t type = text_type(strlen(value) + 1);
  ii_status s = set_attr(f, name, type, value, err);
  if (type >= 0) H5Tclose(type);
  return s;
}

/* ---- making it durable -----------------------------------------------------------------------*/

static ii_status seal(ii_h5 *f, ii_error *err) {
  char block[II_H5_BLOCK];
  struct stat st;
  int fd = open(f->temporary, O_RDWR | O_CLOEXEC);
  if (fd < 0)
    return ii_error_set(err, II_ERR_IO, "%s cannot be opened again: %s", f->temporary,
                        strerror(errno));
  ii_status s = II_OK;
  if (fstat(fd, &st) != 0)
    s = ii_error_set(err, II_ERR_IO, "%s: %s", f->temporary, strerror(errno));
  else
    s = ii_h5_header(fd, f->temporary, (int64_t)st.st_size, block, err);
  if (s == II_OK && (pwrite(fd, block, sizeof block, 0) != (ssize_t)sizeof block || fsync(fd) != 0))
    s = ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", f->temporary, strerror(errno));
  if (close(fd) != 0 && s == II_OK)
    s = ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", f->temporary, strerror(errno));
  return s;
}

/* A rename is durable once its folder is. */
static ii_status sync_folder(const char *path, ii_error *err) {
  char *copy = strdup(path);
  if (!copy) return ii_error_set(err, II_ERR_MEMORY, "%s: out of memory", path);
  int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  free(copy);
  /* some network file systems refuse to sync a folder; the file itself is safe by then */
  bool good = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL || errno == EBADF);
  int why = errno;
  if (fd >= 0) close(fd);
  if (good) return II_OK;
  return ii_error_set(err, II_ERR_IO, "the folder of %s cannot be synced: %s", path, strerror(why));
}

ii_status ii_h5_commit(ii_h5 *f, ii_error *err) {
  ii_status s = II_OK;
  if (H5Fclose(f->id) < 0) s = write_error(f, "at the end", err);
  f->id = -1;
  if (s == II_OK) s = seal(f, err);
  if (s == II_OK && rename(f->temporary, f->path) != 0)
    s = ii_error_set(err, II_ERR_IO, "%s cannot be renamed to %s: %s", f->temporary, f->path,
                     strerror(errno));
  if (s != II_OK)
    unlink(f->temporary);
  else
    s = sync_folder(f->path, err);
  ii_h5_free(f);
  return s;
}

void ii_h5_abandon(ii_h5 *f) {
  if (!f) return;
  if (f->id >= 0) H5Fclose(f->id);
  unlink(f->temporary);
  ii_h5_free(f);
}
