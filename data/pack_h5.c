#include "data/pack_h5.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/checksum.h"

static const size_t element[] = {1, 4, 4, 8, 4};

static hid_t stored_type(ii_pack_type t) {
  const hid_t types[] = {H5T_STD_U8LE, H5T_STD_U32LE, H5T_STD_I32LE, H5T_STD_I64LE, H5T_IEEE_F32LE};
  return types[t];
}

static hid_t native_type(ii_pack_type t) {
  const hid_t types[] = {H5T_NATIVE_UINT8, H5T_NATIVE_UINT32, H5T_NATIVE_INT32, H5T_NATIVE_INT64,
                         H5T_NATIVE_FLOAT};
  return types[t];
}

/* Access properties: checksummed metadata; no file locks, which some cluster file systems lack. */
static hid_t access_properties(void) {
  hid_t how = H5Pcreate(H5P_FILE_ACCESS);
  if (how < 0) return how;
  H5Pset_libver_bounds(how, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
#if H5_VERSION_GE(1, 10, 7)
  H5Pset_file_locking(how, false, true);
#endif
  return how;
}

static ii_status begin(ii_pack_file *f, const char *path, ii_error *err) {
  /* a file that could not be closed for lack of room would be closed again at exit, and HDF5 1.10
   * crashes at that; no effect once the library is in use */
  H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* our sentences instead of HDF5's stack dumps */
  *f = (ii_pack_file){.id = -1, .path = strdup(path)};
  return f->path ? II_OK : ii_error_set(err, II_ERR_MEMORY, "no memory for '%s'", path);
}

ii_status ii_pack_h5_create(ii_pack_file *f, const char *path, ii_error *err) {
  II_TRY(begin(f, path, err));
  /* open first by hand: HDF5 does not say why a file cannot be created */
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    ii_error_set(err, II_ERR_IO, "cannot create '%s': %s", path, strerror(errno));
    ii_pack_h5_close(f);
    return II_ERR_IO;
  }
  close(fd);
  hid_t how = access_properties(), root = H5Pcreate(H5P_FILE_CREATE);
  H5Pset_obj_track_times(root, 0);
  f->id = H5Fcreate(path, H5F_ACC_TRUNC, root, how);
  H5Pclose(root);
  H5Pclose(how);
  if (f->id >= 0) return II_OK;
  ii_pack_h5_close(f);
  return ii_error_set(err, II_ERR_IO, "cannot create '%s' as an HDF5 file", path);
}

ii_status ii_pack_h5_open(ii_pack_file *f, const char *path, ii_error *err) {
  struct stat st;
  II_TRY(begin(f, path, err));
  ii_status s = II_OK;
  if (stat(path, &st) != 0)
    s = ii_error_set(err, II_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  else if (!S_ISREG(st.st_mode))
    s = ii_error_set(err, II_ERR_IO, "'%s' is not a regular file", path);
  if (s == II_OK) {
    f->bytes = st.st_size;
    hid_t how = access_properties();
    f->id = H5Fopen(path, H5F_ACC_RDONLY, how);
    H5Pclose(how);
    if (f->id < 0)
      s = ii_error_set(err, II_ERR_FORMAT,
                       "'%s' is damaged, cut off or not an HDF5 file; pack the data set again",
                       path);
  }
  if (s != II_OK) ii_pack_h5_close(f);
  return s;
}

ii_status ii_pack_h5_finish(ii_pack_file *f, ii_error *err) {
  bool good = H5Fclose(f->id) >= 0;
  f->id = -1;
  int fd = good ? open(f->path, O_RDONLY | O_CLOEXEC) : -1;
  good = fd >= 0 && fsync(fd) == 0;
  if (!good)
    ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", f->path,
                 errno ? strerror(errno) : "check the free space");
  if (fd >= 0) close(fd);
  return good ? II_OK : II_ERR_IO;
}

void ii_pack_h5_close(ii_pack_file *f) {
  if (f->id >= 0) H5Fclose(f->id);
  free(f->path);
  *f = (ii_pack_file){.id = -1};
}

ii_status ii_pack_h5_put(ii_pack_file *f, const char *name, ii_pack_type type, const void *data,
                         int64_t n, bool summed, ii_error *err) {
  hsize_t dim = (hsize_t)n;
  hid_t space = H5Screate_simple(1, &dim, NULL), how = H5Pcreate(H5P_DATASET_CREATE), d = -1;
  /* without times the file is a function of its contents */
  bool good = space >= 0 && how >= 0 && H5Pset_obj_track_times(how, 0) >= 0 &&
              H5Pset_layout(how, H5D_CONTIGUOUS) >= 0 &&
              H5Pset_fill_time(how, H5D_FILL_TIME_NEVER) >= 0;
  if (good) d = H5Dcreate2(f->id, name, stored_type(type), space, H5P_DEFAULT, how, H5P_DEFAULT);
  good = d >= 0 &&
         (n == 0 || H5Dwrite(d, native_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  if (d >= 0 && H5Dclose(d) < 0) good = false;
  if (how >= 0) H5Pclose(how);
  if (space >= 0) H5Sclose(space);
  if (!good)
    return ii_error_set(err, II_ERR_IO, "cannot write '%s' (%s); check the free space", f->path,
                        name);
  if (summed) f->crc = ii_crc32c(f->crc, data, n * (int64_t)element[type]);
  return II_OK;
}

static ii_status damaged(const ii_pack_file *f, const char *name, ii_error *err) {
  return ii_error_set(err, II_ERR_FORMAT,
                      "'%s' is damaged or not part of a pack ('%s' is not as it should be); pack "
                      "the data set again",
                      f->path, name);
}

/* Opens a 1-D contiguous array that lies inside the file; closed by the caller if >= 0. */
static hid_t open_array(ii_pack_file *f, const char *name, ii_pack_type type, int64_t *offset,
                        int64_t *n) {
  hsize_t dim = 0;
  hid_t d = H5Dopen2(f->id, name, H5P_DEFAULT);
  if (d < 0) return -1;
  hid_t space = H5Dget_space(d), how = H5Dget_create_plist(d), t = H5Dget_type(d);
  bool good = space >= 0 && how >= 0 && t >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
              H5Sget_simple_extent_dims(space, &dim, NULL) == 1 &&
              H5Pget_layout(how) == H5D_CONTIGUOUS && H5Pget_external_count(how) == 0 &&
              H5Tequal(t, stored_type(type)) > 0;
  haddr_t at = good && dim > 0 ? H5Dget_offset(d) : 0;
  good = good && at != HADDR_UNDEF && dim <= (hsize_t)f->bytes / element[type] &&
         at <= (haddr_t)f->bytes - dim * element[type];
  *offset = (int64_t)at, *n = (int64_t)dim;
  if (space >= 0) H5Sclose(space);
  if (how >= 0) H5Pclose(how);
  if (t >= 0) H5Tclose(t);
  if (good) return d;
  H5Dclose(d);
  return -1;
}

ii_status ii_pack_h5_get(ii_pack_file *f, const char *name, ii_pack_type type, void **data,
                         int64_t *n, ii_error *err) {
  int64_t offset;
  *data = NULL;
  hid_t d = open_array(f, name, type, &offset, n);
  if (d < 0) return damaged(f, name, err);
  const size_t bytes = (size_t)*n * element[type];
  char *out = malloc(bytes + 1);
  bool good =
      out && (*n == 0 || H5Dread(d, native_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0);
  H5Dclose(d);
  if (!out) return ii_error_set(err, II_ERR_MEMORY, "no memory for the index of '%s'", f->path);
  if (!good) {
    free(out);
    return ii_error_set(err, II_ERR_IO, "cannot read '%s' (%s)", f->path, name);
  }
  out[bytes] = 0;
  f->crc = ii_crc32c(f->crc, out, (int64_t)bytes);
  *data = out;
  return II_OK;
}

ii_status ii_pack_h5_place(ii_pack_file *f, const char *name, int64_t *offset, int64_t *n,
                           ii_error *err) {
  hid_t d = open_array(f, name, II_PACK_U8, offset, n);
  if (d < 0) return damaged(f, name, err);
  H5Dclose(d);
  return II_OK;
}

ii_status ii_pack_h5_put_number(ii_pack_file *f, const char *name, uint64_t value, ii_error *err) {
  hid_t space = H5Screate(H5S_SCALAR), a = -1;
  if (space >= 0) a = H5Acreate2(f->id, name, H5T_STD_U64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  bool good = a >= 0 && H5Awrite(a, H5T_NATIVE_UINT64, &value) >= 0;
  if (a >= 0 && H5Aclose(a) < 0) good = false;
  if (space >= 0) H5Sclose(space);
  return good ? II_OK : ii_error_set(err, II_ERR_IO, "cannot write '%s' (%s)", f->path, name);
}

ii_status ii_pack_h5_get_number(ii_pack_file *f, const char *name, uint64_t *value, ii_error *err) {
  hid_t a = H5Aopen(f->id, name, H5P_DEFAULT);
  hid_t t = a >= 0 ? H5Aget_type(a) : -1, space = a >= 0 ? H5Aget_space(a) : -1;
  bool good = t >= 0 && space >= 0 && H5Tequal(t, H5T_STD_U64LE) > 0 &&
              H5Sget_simple_extent_npoints(space) == 1 && H5Aread(a, H5T_NATIVE_UINT64, value) >= 0;
  if (t >= 0) H5Tclose(t);
  if (space >= 0) H5Sclose(space);
  if (a >= 0) H5Aclose(a);
  return good ? II_OK : damaged(f, name, err);
}
