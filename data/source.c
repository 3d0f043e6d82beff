#include "data/source.h"
#include <stdio.h>
#include <string.h>
#include "data/pack.h"
#include "data/skip_list.h"

static const struct {
  const char *option;
  ii_source_kind kind;
} kinds[] = {
    {"--folder", II_SOURCE_FOLDER}, {"--list", II_SOURCE_LIST}, {"--packed", II_SOURCE_PACKED}};
enum { KINDS = sizeof kinds / sizeof *kinds };

const char *ii_source_help(void) {
  return "  --folder DIR         image folder: DIR/<class>/*.jpg\n"
         "  --list FILE          list file: a path and a class number per line\n"
         "  --packed NAME.h5     a pack\n"
         "  --root DIR           where the paths of a list start (default: the list's folder)\n"
         "  --skip-list FILE     leave out the images that `scan` has found unusable\n";
}

ii_status ii_source_option(ii_source *s, int argc, char **argv, int *i, bool *taken,
                           ii_error *err) {
  const char *name = argv[*i], **value = NULL;
  *taken = true;
  if (strcmp(name, "--root") == 0) value = &s->root;
  if (strcmp(name, "--skip-list") == 0) value = &s->skip_list;
  for (int k = 0; k < KINDS; k++) {
    if (strcmp(name, kinds[k].option) != 0) continue;
    if (s->kind != II_SOURCE_NONE)
      return ii_error_set(err, II_ERR_ARG, "%s: one data set at a time", name);
    s->kind = kinds[k].kind;
    value = &s->path;
  }
  if (!value) {
    *taken = false;
    return II_OK;
  }
  if (*i + 1 >= argc) return ii_error_set(err, II_ERR_ARG, "%s needs a value", name);
  *value = argv[++*i];
  return II_OK;
}

static ii_status open_any(const ii_source *s, ii_dataset **dataset, ii_error *err) {
  char folder[II_PATH_MAX];
  const char *slash = strrchr(s->path, '/');
  switch (s->kind) {
  case II_SOURCE_NONE:
    break;
  case II_SOURCE_FOLDER:
    return ii_dataset_open_folder(s->path, dataset, err);
  case II_SOURCE_LIST:
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - s->path) : 1,
             slash ? s->path : ".");
    return ii_dataset_open_list(s->path, s->root ? s->root : folder, s->num_classes, dataset, err);
  case II_SOURCE_PACKED:
    return ii_dataset_open_packed(s->path, s->in_memory, dataset, err);
  }
  return ii_error_set(err, II_ERR_ARG, "no data set of kind %d", (int)s->kind);
}

ii_status ii_source_open(const ii_source *s, ii_dataset **dataset, ii_error *err) {
  *dataset = NULL;
  if (s->kind == II_SOURCE_NONE)
    return ii_error_set(err, II_ERR_ARG, "name a data set: --folder, --list or --packed");
  II_TRY(open_any(s, dataset, err));
  if (!s->skip_list) return II_OK;
  ii_status status = ii_dataset_skip(*dataset, s->skip_list, err);
  if (status == II_OK) return II_OK;
  ii_dataset_free(*dataset);
  *dataset = NULL;
  return status;
}
