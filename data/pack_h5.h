/* The HDF5 side of packs: 1-D arrays and numbers in the root group. Not for other folders.
 *
 * Files are written with checksummed metadata (HDF5 1.8 format and later), so that damage to it is
 * found by the library before it is used. One thread; nothing here is called for each image. */
#ifndef II_PACK_H5_H
#define II_PACK_H5_H
#include <hdf5.h>
#include <stdint.h>
#include "autograd/error.h"

typedef enum { II_PACK_U8, II_PACK_U32, II_PACK_I32, II_PACK_I64, II_PACK_F32 } ii_pack_type;

/* An open file and the checksum over what was put into or got from it with `summed`. */
typedef struct {
  hid_t id; /* below 0: not open */
  char *path;
  int64_t bytes; /* of an existing file */
  uint32_t crc;
} ii_pack_file;

/* Creates (overwriting) or opens for reading; the path is copied. Errors: II_ERR_IO,
 * II_ERR_FORMAT (damaged or not HDF5), II_ERR_MEMORY. */
ii_status ii_pack_h5_create(ii_pack_file *f, const char *path, ii_error *err);
ii_status ii_pack_h5_open(ii_pack_file *f, const char *path, ii_error *err);

/* Closes a file that was written and waits until it is on the disk. Errors: II_ERR_IO. */
ii_status ii_pack_h5_finish(ii_pack_file *f, ii_error *err);

/* Closes what is open and frees the path. */
void ii_pack_h5_close(ii_pack_file *f);

/* Writes n elements as a contiguous array; with summed, the checksum goes on over them. */
ii_status ii_pack_h5_put(ii_pack_file *f, const char *name, ii_pack_type type, const void *data,
                         int64_t n, bool summed, ii_error *err);

/* Reads a whole array into new memory (freed by the caller, with a zero byte after it; on an error
 * *data is NULL); the checksum goes on over it. */
ii_status ii_pack_h5_get(ii_pack_file *f, const char *name, ii_pack_type type, void **data,
                         int64_t *n, ii_error *err);

/* Where in the file the bytes of a contiguous array of bytes are, checked to lie inside of it. */
ii_status ii_pack_h5_place(ii_pack_file *f, const char *name, int64_t *offset, int64_t *n,
                           ii_error *err);

/* A number: an attribute of the file. */
ii_status ii_pack_h5_put_number(ii_pack_file *f, const char *name, uint64_t value, ii_error *err);
ii_status ii_pack_h5_get_number(ii_pack_file *f, const char *name, uint64_t *value, ii_error *err);

#endif
