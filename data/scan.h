/* Decoding every image of a data set once, to find those that cannot be used. */
#ifndef II_SCAN_H
#define II_SCAN_H
#include "data/crop_index.h"

typedef struct {
  int threads;              /* 0: one per processor */
  ii_decode_options decode; /* what counts as usable */
  ii_crop_writer *crops;    /* gets the indexes of the usable JPEG files; NULL: none are made */
  bool (*tick)(void *context, int64_t done); /* now and then; false stops. May be NULL */
  void *context;
} ii_scan_options;

typedef struct {
  int64_t sample;
  int64_t bytes; /* 0 if it cannot be read */
  uint32_t crc;  /* CRC-32C of the bytes */
  char reason[II_ERROR_TEXT];
} ii_scan_bad;

typedef struct {
  int64_t images, bytes;
  int64_t jpeg, png, misnamed; /* usable ones; misnamed: the name's ending says the other format */
  int64_t turned;              /* usable ones with an EXIF orientation other than upright */
  int64_t min_side, max_side;  /* of the usable images, in pixels */
  int64_t max_pixels;
  ii_scan_bad *bad; /* [bad_count], in the order of the data set */
  int64_t bad_count;
} ii_scan_report;

/* Scans; free the report with ii_scan_free. The result does not depend on the number of threads.
 * Memory: for each thread one file and one image (at most decode.max_pixels), and the report;
 * with crops also what ii_jpeg_index_make and the writer take.
 * With crops all images have been added when there is no error; ii_crop_writer_finish is the
 * caller's. Errors: II_ERR_MEMORY, II_ERR_IO (threads; crops), II_ERR_INTERRUPTED; bad images are
 * no error. */
ii_status ii_scan(const ii_dataset *dataset, const ii_scan_options *options, ii_scan_report *report,
                  ii_error *err);
void ii_scan_free(ii_scan_report *report);

/* Writes the skip list (data/skip_list.h), in one step over what was there. Errors: II_ERR_IO. */
ii_status ii_scan_write_list(const ii_dataset *dataset, const ii_scan_report *report,
                             const char *path, ii_error *err);

/* Progress in one line, e.g. "[=====>    ]  53 %  5301/10000  812/s  0:06 left", in out [size]. */
void ii_progress_text(int64_t done, int64_t total, double seconds, char *out, int64_t size);

#endif
