/* For h5file*.c alone. */
#ifndef II_H5FILE_PRIV_H
#define II_H5FILE_PRIV_H
#include <hdf5.h>
#include "train/h5file.h"

#define II_H5_BLOCK 512 /* HDF5 wants a power of two from 512 on */
#define II_H5_MAGIC "internimage-checkpoint"

struct ii_h5 {
  hid_t id;
  bool ours;
  char *path;
  char *temporary; /* the name while it is written; NULL for a file that is read */
};

ii_h5 *ii_h5_new(const char *path, ii_error *err);
void ii_h5_free(ii_h5 *f);
hid_t ii_h5_native(ii_h5_type t);

/* What the checksum block of the open file of this length must be. */
ii_status ii_h5_header(int fd, const char *path, int64_t bytes, char out[II_H5_BLOCK],
                       ii_error *err);

#endif
