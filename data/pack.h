/* Packed data sets: the bytes of many image files in a few large HDF5 files.
 *
 * A pack is an index NAME.h5 and its shards NAME-<id>-00000.h5, ... beside it. Both are HDF5 files
 * with 1-D contiguous arrays in the root group and unsigned 64-bit numbers as attributes of it:
 *
 *   index:  numbers version, id, images, classes, shards, places, crc32c;
 *           class_names u8 (each name with a zero byte; empty if the classes have no names),
 *           shard_names u8 (likewise), shard_images i64 [shards]
 *   shard:  numbers version, id, number, images, crc32c;
 *           size u32 [images], label i32 [images], image_crc32c u32 [images],
 *           index_size u32 [images], index_crc32c u32 [images],
 *           names u8 (each with a zero byte),
 *           places f32 [images * 3] (month, latitude, longitude; empty if there are none; NaN is
 *           missing), recoded u8 [images] (1: the bytes are not those of the original file),
 *           block_images i64 [blocks];
 *           block_00000 u8, ...: the images' files, one after the other, each with its crop index
 *           of index_size bytes (0: none) right behind it (data/jpeg_index.h)
 *
 * crc32c is that of the file's arrays except the blocks, in the order above (of an index: of
 * class_names, shard_names, shard_images). Images are in the order of the data set they were made
 * from, so that training on a pack gives the same batches.
 *
 * Reading: the index is read once; after that images are read with positioned reads at the places
 * HDF5 tells for the blocks, by any number of threads, and HDF5 is not involved. */
#ifndef II_PACK_H
#define II_PACK_H
#include "data/dataset.h"

typedef struct {
  int64_t shard_bytes; /* a shard ends when it has so many bytes of images; 0: 4 GiB */
  int64_t max_side;    /* JPEG and PNG images whose longer side is above are made smaller (bicubic,
                        * aspect kept) and stored as JPEG, unless that has more bytes; 0: none */
  int quality;         /* of those JPEG files: 1..100; 0: 90 */
  bool no_crop_index;  /* without the crop indexes of JPEG images (data/jpeg_index.h): a pack from
                        * which whole images are taken is smaller so */
  int threads;         /* that read and encode; 0: one per processor */
  /* Called now and then with the number of images stored; false stops. May be NULL. */
  bool (*tick)(void *context, int64_t done, int64_t total);
  /* Called for each image that was to be made smaller but cannot be decoded; it is stored as it is.
   * May be NULL. */
  void (*on_bad)(void *context, const char *path, const char *reason);
  void *context;
} ii_pack_options;

typedef struct {
  int64_t images, bytes, shards;
  int64_t reencoded, undecodable; /* with max_side */
  int64_t indexed, index_bytes;   /* images with a crop index; bytes counts the images alone */
} ii_pack_result;

/* Packs a data set (which may be a pack itself) as `path`, which must end in .h5. Shards are
 * complete and on the disk before the index takes its name in one step: killed at any moment, what
 * was at `path` before is still there and whole. Shards of the old pack, and those that a killed
 * run left behind, are removed afterwards. Errors: II_ERR_ARG, II_ERR_IO, II_ERR_FORMAT,
 * II_ERR_MEMORY, II_ERR_INTERRUPTED; then nothing is left of the new pack. */
ii_status ii_pack_write(const ii_dataset *dataset, const char *path, const ii_pack_options *options,
                        ii_pack_result *result, ii_error *err);

/* Opens a pack as a data set. Every array is checked against the checksums, and every image's place
 * against the files; the images themselves are checked when they are read. With in_memory all
 * shards are first copied into shared memory (/dev/shm), once for all processes of the machine that
 * ask for it, which then read from there; the last of them to close takes it away again.
 * Errors: II_ERR_IO, II_ERR_FORMAT (damaged, shards missing or of another pack), II_ERR_MEMORY. */
ii_status ii_dataset_open_packed(const char *path, bool in_memory, ii_dataset **dataset,
                                 ii_error *err);

/* How many of its images have other bytes than the files they were made from (made smaller); 0 for
 * a data set that is no pack. */
int64_t ii_dataset_recoded(const ii_dataset *dataset);

/* How many of its images have a crop index, and the bytes of these; 0 for a data set that is no
 * pack. */
int64_t ii_dataset_packed_indexes(const ii_dataset *dataset, int64_t *bytes);

#endif
