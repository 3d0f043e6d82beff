/* HDF5 files that are either whole or not there, and that cannot be damaged unnoticed.
 *
 * A file of ours begins with a block of 512 bytes (HDF5's user block, which HDF5 tools skip) that
 * states the length and the CRC-32 of all that follows. It is checked before HDF5 sees a byte: the
 * HDF5 library itself is not safe against damaged files. Files are written under a temporary name
 * in the same folder, synced, renamed, and the folder is synced: a reader, or a restart after a
 * crash, finds the old file or the new one, never half of one.
 *
 * HDF5 files of others (no such block) can be read too, without that protection.
 *
 * Every function fails with one sentence that names the file. HDF5's own error printing is off
 * while these functions run. One thread at a time: the HDF5 of distributions is not thread-safe. */
#ifndef II_H5FILE_H
#define II_H5FILE_H
#include <stdbool.h>
#include <stdint.h>
#include "autograd/error.h"

typedef struct ii_h5 ii_h5; /* an open file */

typedef enum { II_H5_F32, II_H5_F64, II_H5_I64 } ii_h5_type;

#define II_H5_DIMS 8
typedef struct {
  int ndim; /* 0: a scalar */
  int64_t dim[II_H5_DIMS];
} ii_h5_shape;

static inline int64_t ii_h5_numel(const ii_h5_shape *s) {
  int64_t n = 1;
  for (int i = 0; i < s->ndim; i++) n *= s->dim[i];
  return n;
}

/* ---- writing ---------------------------------------------------------------------------------*/

/* Begins a file that will be called path; until ii_h5_commit it is path + ".tmp" (overwritten).
 * Errors: II_ERR_IO. */
ii_status ii_h5_create(const char *path, ii_h5 **file, ii_error *err);

/* Adds the group "/name" or "/name/sub". Its parent exists. */
ii_status ii_h5_group(ii_h5 *file, const char *group, ii_error *err);

/* Adds a data set of `stored` numbers, converted from data, numel(shape) numbers of type given.
 * Names may contain dots, not slashes. */
ii_status ii_h5_write(ii_h5 *file, const char *group, const char *name, ii_h5_type stored,
                      ii_h5_type given, const ii_h5_shape *shape, const void *data, ii_error *err);

/* Adds n texts as one data set of fixed-size strings. n > 0. */
ii_status ii_h5_write_texts(ii_h5 *file, const char *group, const char *name, int64_t n,
                            const char *const *text, ii_error *err);

/* Attributes of the root group. */
ii_status ii_h5_set_i64(ii_h5 *file, const char *name, int64_t value, ii_error *err);
ii_status ii_h5_set_f64(ii_h5 *file, const char *name, double value, ii_error *err);
ii_status ii_h5_set_text(ii_h5 *file, const char *name, const char *value, ii_error *err);

/* Finishes the file, makes it durable and gives it its name. Frees *file in every case; after an
 * error nothing is left of it. */
ii_status ii_h5_commit(ii_h5 *file, ii_error *err);

/* Drops an unfinished file. NULL is allowed. */
void ii_h5_abandon(ii_h5 *file);

/* ---- reading ---------------------------------------------------------------------------------*/

/* Opens a file for reading, after checking length and checksum if it is one of ours.
 * Errors: II_ERR_IO (missing, unreadable), II_ERR_FORMAT (damaged, cut off, not HDF5). */
ii_status ii_h5_open(const char *path, ii_h5 **file, ii_error *err);
void ii_h5_close(ii_h5 *file); /* NULL is allowed */

/* False for an HDF5 file without our checksum block. */
bool ii_h5_is_ours(const ii_h5 *file);
const char *ii_h5_path(const ii_h5 *file);

/* Whether there is such a group ("/", "/model", "/optimizer/exp_avg"). */
bool ii_h5_has_group(ii_h5 *file, const char *group);

/* The names of the data sets directly in a group, in byte order. *names (malloc, one block: free it
 * alone) is overwritten. Errors: II_ERR_FORMAT, II_ERR_MEMORY. */
ii_status ii_h5_list(ii_h5 *file, const char *group, char ***names, int64_t *count, ii_error *err);

/* The shape of a data set of numbers. Errors: II_ERR_FORMAT (missing, or not numbers). */
ii_status ii_h5_get_shape(ii_h5 *file, const char *group, const char *name, ii_h5_shape *shape,
                          ii_error *err);

/* Reads a data set, which must have exactly this shape, into data, converted to `wanted`. */
ii_status ii_h5_read(ii_h5 *file, const char *group, const char *name, const ii_h5_shape *shape,
                     ii_h5_type wanted, void *data, ii_error *err);

/* Reads a data set of texts as ii_h5_list gives names. */
ii_status ii_h5_read_texts(ii_h5 *file, const char *group, const char *name, char ***texts,
                           int64_t *count, ii_error *err);

/* Attributes of the root group. Errors: II_ERR_FORMAT. The text is malloced. */
bool ii_h5_has_attr(ii_h5 *file, const char *name);
ii_status ii_h5_get_i64(ii_h5 *file, const char *name, int64_t *value, ii_error *err);
ii_status ii_h5_get_f64(ii_h5 *file, const char *name, double *value, ii_error *err);
ii_status ii_h5_get_text(ii_h5 *file, const char *name, char **value, ii_error *err);

#endif
