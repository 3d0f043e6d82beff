/* Inside of a dataset, for the files that build it. Not for other folders. */
#ifndef II_DATASET_BUILD_H
#define II_DATASET_BUILD_H
#include "data/skip_list.h"

typedef struct {
  char **names;
  int64_t count, capacity;
} ii_names;

typedef struct {
  int32_t month;  /* 0: missing */
  float lat, lon; /* degrees; NaN: missing */
} ii_place;

/* The images of a packed data set: where each lies. */
typedef struct {
  int fd;
  char *path;
  int64_t bytes;         /* of the file */
  const uint8_t *memory; /* the whole file, or NULL */
  int memory_fd;
} ii_shard;

typedef struct {
  ii_shard *shards;
  int64_t shard_count;
  int32_t *shard;       /* [count] */
  int64_t *at;          /* [count]: in the shard's file */
  uint32_t *size, *crc; /* [count] */
  uint32_t *index_size; /* [count]: crop index behind the image, 0: none */
  uint32_t *index_crc;  /* [count] */
  uint8_t *recoded;     /* [count]: 1 if the bytes are not those of the file it came from */
} ii_packed;

/* The entries of a crop index for the images of the data set. */
typedef struct ii_crop_index ii_crop_index;
void ii_crop_index_free(ii_crop_index *index); /* NULL is allowed */

struct ii_dataset {
  char *root; /* folder, or the pack's file */
  ii_packed *packed;
  int64_t *kept; /* [kept_count]: with a skip list, which of the images below there are; or NULL */
  int64_t kept_count;
  ii_skip_result skip;
  ii_crop_index *crops;  /* or NULL */
  ii_names classes;      /* names NULL for a list file */
  bool in_class_folders; /* the names below are those inside the class's folder */
  int64_t num_classes;
  int64_t count, capacity; /* images read */
  char *text;              /* all file names, one after the other, each with its end */
  int64_t text_size, text_capacity;
  int64_t *name_at; /* [count]: where in text */
  int32_t *label;   /* [count] */
  ii_place *place;  /* [count] or NULL */
  int64_t place_capacity;
  int64_t ignored;
  char *ignored_first;
};

/* Adds an image (place may be NULL). Errors: II_ERR_MEMORY. */
ii_status ii_dataset_add(ii_dataset *d, const char *name, int32_t label, const ii_place *place,
                         ii_error *err);

/* Makes *p (of *capacity elements) hold at least n, keeping the content. Errors: II_ERR_MEMORY. */
ii_status ii_dataset_grow(void *p, int64_t *capacity, int64_t n, size_t element, ii_error *err);

/* Adds a name, copied. Errors: II_ERR_MEMORY. */
ii_status ii_names_add(ii_names *names, const char *name, ii_error *err);
void ii_names_free(ii_names *names); /* *names is {0} again */

/* Month, latitude and longitude of image i; NULL when the data set has none. */
const ii_place *ii_dataset_place(const ii_dataset *d, int64_t i);

/* Whether image i is of a pack that has not the bytes of the original file. */
bool ii_dataset_is_recoded(const ii_dataset *d, int64_t i);

/* The bytes of stored image i (not counted through `kept`), as ii_dataset_read; index_size more
 * bytes behind them are its crop index, checked too. */
ii_status ii_packed_read(const ii_dataset *d, int64_t i, ii_bytes *buffer, const uint8_t **bytes,
                         int64_t *n, ii_error *err);
void ii_packed_free(ii_packed *packed); /* NULL is allowed */

#endif
