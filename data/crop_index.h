/* Crop indexes of image files: what data/jpeg_index.h makes of each JPEG file of a data set, kept
 * in one file beside it, so that training decodes only what a crop needs. The program `scan` makes
 * it.
 *
 * An HDF5 file as packs are (data/pack.h), with, for each image that has an index, in the order of
 * the data set:
 *
 *   numbers crop_index_version, images (of the data set), entries, crc32c;
 *   file_size u32, file_crc32c u32: of the image file as it was;
 *   size u32, index_crc32c u32: of its index; names u8 (ii_dataset_name, each with a zero byte);
 *   block_images i64 [blocks]; block_00000 u8, ...: the indexes, one after the other
 *
 * crc32c is that of the arrays except the blocks, in this order. An index is read with a positioned
 * read where HDF5 says that its block is, by any number of threads, without HDF5. */
#ifndef II_CROP_INDEX_H
#define II_CROP_INDEX_H
#include "data/dataset.h"

/* ---- using one -------------------------------------------------------------------------------*/

/* From now on ii_dataset_crop_index finds what the file has for the images of the data set, by
 * their names. After a skip list, before the data set is used, and once. Errors: II_ERR_ARG (a
 * pack), II_ERR_IO, II_ERR_FORMAT (damaged; nothing for any image), II_ERR_MEMORY. */
ii_status ii_dataset_use_crop_index(ii_dataset *dataset, const char *path, ii_error *err);

/* How many images of the data set have an entry; 0 without a crop index. */
int64_t ii_dataset_crop_indexed(const ii_dataset *dataset);

typedef enum {
  II_CROP_INDEX_NONE,   /* there is none for this image */
  II_CROP_INDEX_FOUND,  /* buffer has it */
  II_CROP_INDEX_STALE,  /* the image file has other bytes than when it was scanned */
  II_CROP_INDEX_DAMAGED /* the entry cannot be read, or is not what was written */
} ii_crop_index_state;

/* The index of image i, whose file has the n bytes at `bytes`, read into *buffer (overwritten,
 * memory reused) if it is for exactly these bytes. From any thread. Never an error: without it the
 * image is decoded as any other. */
ii_crop_index_state ii_dataset_crop_index(const ii_dataset *dataset, int64_t i,
                                          const uint8_t *bytes, int64_t n, ii_bytes *buffer);

/* ---- making one ------------------------------------------------------------------------------*/

typedef struct ii_crop_writer ii_crop_writer;

/* Begins a file for the data set, which must outlive the writer, under the temporary name
 * `path`.tmp. Memory: 100 MiB at most for indexes on their way to the disk, and about 60 bytes per
 * image. Errors: II_ERR_ARG (a pack; path too long), II_ERR_IO (another process writes it, or
 * it is a folder), II_ERR_MEMORY. */
ii_status ii_crop_writer_new(const ii_dataset *dataset, const char *path, ii_crop_writer **writer,
                             ii_error *err);

/* Image i has a file of n bytes at `bytes` and an index of index_n bytes, from malloc, which the
 * writer takes; index_n 0: none. From any thread; exactly once for each image, and every image must
 * come: a thread that is far ahead of the others waits for the images in between. */
void ii_crop_writer_add(ii_crop_writer *writer, int64_t i, const uint8_t *bytes, int64_t n,
                        uint8_t *index, int64_t index_n);

/* The first error of ii_crop_writer_add (II_OK: none), from any thread. */
ii_status ii_crop_writer_check(ii_crop_writer *writer, ii_error *err);

typedef struct {
  int64_t entries, bytes; /* images with an index, and the bytes of all indexes */
} ii_crop_summary;

/* After all images: completes the file, waits until it is on the disk, and gives it its name in one
 * step. The same images give the same file. Errors: that of ii_crop_writer_check, II_ERR_IO. */
ii_status ii_crop_writer_finish(ii_crop_writer *writer, ii_crop_summary *summary, ii_error *err);

/* Frees it; what is not finished is removed from the disk. NULL is allowed. */
void ii_crop_writer_free(ii_crop_writer *writer);

#endif
