/* Where a data set comes from, for programs that open any kind of them. */
#ifndef II_SOURCE_H
#define II_SOURCE_H
#include "data/dataset.h"

typedef enum {
  II_SOURCE_NONE,
  II_SOURCE_FOLDER,       /* path: folder with one sub-folder per class */
  II_SOURCE_LIST,         /* path: list file, root: where its paths start */
  II_SOURCE_PACKED,       /* path: NAME.h5 */
  II_SOURCE_IMAGENET_VAL, /* path: flat folder */
  II_SOURCE_INAT          /* path: train2018.json or val2018.json, root: where its paths start */
} ii_source_kind;

typedef struct {
  ii_source_kind kind;
  const char *path;
  const char *root;       /* NULL: the folder of the list or JSON file */
  const char *classes;    /* folder: class list; NULL: the folders are the classes */
  const char *truth;      /* flat ImageNet: of ii_dataset_open_imagenet_val; NULL: search above */
  const char *locations;  /* iNaturalist: NULL for none */
  const char *skip_list;  /* NULL: none */
  const char *crop_index; /* of ii_dataset_use_crop_index; NULL: none */
  int64_t num_classes;    /* list: as in ii_dataset_open_list */
  bool in_memory;         /* packed: as in ii_dataset_open_packed */
} ii_source;

/* If argv[*i] is an option of a source, takes it and its value into *source, moves *i to the value
 * and returns II_OK with *taken true. Errors: II_ERR_ARG (no value, a second source). */
ii_status ii_source_option(ii_source *source, int argc, char **argv, int *i, bool *taken,
                           ii_error *err);

/* The help lines of those options, each with its newline. */
const char *ii_source_help(void);

/* Opens it. Errors: those of the functions that open data sets; II_ERR_ARG without a source. */
ii_status ii_source_open(const ii_source *source, ii_dataset **dataset, ii_error *err);

#endif
