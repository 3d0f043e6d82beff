/* Inside of a dataset, for the files that build it. Not for other folders. */
#ifndef II_DATASET_BUILD_H
#define II_DATASET_BUILD_H
#include "data/dataset.h"

typedef struct {
  char **names;
  int64_t count, capacity;
} ii_names;

typedef struct {
  int32_t month;  /* 0: missing */
  float lat, lon; /* degrees; NaN: missing */
} ii_place;

struct ii_dataset {
  char *root;
  ii_names classes; /* names NULL for a list file */
  int64_t num_classes;
  int64_t count, capacity;
  char *text; /* all file names, one after the other, each with its end */
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

#endif
