#include "data/source.h"
#include <stdio.h>
#include <string.h>
#include "data/crop_index.h"
#include "data/pack.h"
#include "data/skip_list.h"

static const struct {
  const char *option;
  ii_source_kind kind;
} kinds[] = {{"--folder", II_SOURCE_FOLDER},
             {"--list", II_SOURCE_LIST},
             {"--packed", II_SOURCE_PACKED},
             {"--imagenet-val", II_SOURCE_IMAGENET_VAL},
             {"--inat", II_SOURCE_INAT}};
enum { KINDS = sizeof kinds / sizeof *kinds };

const char *ii_source_help(void) {
  return "  --folder DIR         image folder: DIR/<class>/*.jpg\n"
         "  --list FILE          list file: a path and a class number per line\n"
         "  --packed NAME.h5     a pack\n"
         "  --imagenet-val DIR   the flat folder of ImageNet's validation images\n"
         "  --inat FILE          train2018.json or val2018.json of iNaturalist\n"
         "  --root DIR           where the paths of a list or JSON file start (default: its "
         "folder)\n"
         "  --classes FILE       class names of --folder in the order of their numbers\n"
         "  --truth PATH         for --imagenet-val: the development kit's folder data, or a file "
         "of\n"
         "                       images and synsets (default: looked for beside DIR)\n"
         "  --locations FILE     for --inat: train2018_locations.json or val2018_locations.json\n"
         "  --skip-list FILE     leave out the images that `scan` has found unusable\n";
}

ii_status ii_source_option(ii_source *s, int argc, char **argv, int *i, bool *taken,
                           ii_error *err) {
  const char *name = argv[*i], **value = NULL;
  *taken = true;
  const struct {
    const char *name, **value;
  } texts[] = {{"--root", &s->root},
               {"--skip-list", &s->skip_list},
               {"--classes", &s->classes},
               {"--truth", &s->truth},
               {"--locations", &s->locations}};
  for (size_t k = 0; k < sizeof texts / sizeof *texts; k++)
    if (strcmp(name, texts[k].name) == 0) value = texts[k].value;
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

/* The folder a path lies in. */
static void folder_of(const char *path, char *out) {
  const char *slash = strrchr(path, '/');
  snprintf(out, II_PATH_MAX, "%.*s",
           !slash          ? 1
           : slash == path ? 1
                           : (int)(slash - path),
           slash ? path : ".");
}

static ii_status open_imagenet_val(const ii_source *s, ii_dataset **dataset, ii_error *err) {
  char above[II_PATH_MAX], truth[II_PATH_MAX];
  if (s->truth) return ii_dataset_open_imagenet_val(s->path, s->truth, dataset, err);
  folder_of(s->path, above);
  if (ii_imagenet_find_truth(above, truth))
    return ii_dataset_open_imagenet_val(s->path, truth, dataset, err);
  return ii_error_set(
      err, II_ERR_IO,
      "the classes of the images in '%s' are not known: put "
      "ILSVRC2012_devkit_t12/ or LOC_val_solution.csv into '%s', or name where they "
      "are (data.ground_truth, --truth)",
      s->path, above);
}

static ii_status open_any(const ii_source *s, ii_dataset **dataset, ii_error *err) {
  char folder[II_PATH_MAX];
  const char *root = s->root ? s->root : folder;
  folder_of(s->path, folder);
  switch (s->kind) {
  case II_SOURCE_NONE:
    break;
  case II_SOURCE_FOLDER:
    return ii_dataset_open_folder(s->path, s->classes, dataset, err);
  case II_SOURCE_LIST:
    return ii_dataset_open_list(s->path, root, s->num_classes, dataset, err);
  case II_SOURCE_PACKED:
    return ii_dataset_open_packed(s->path, s->in_memory, dataset, err);
  case II_SOURCE_IMAGENET_VAL:
    return open_imagenet_val(s, dataset, err);
  case II_SOURCE_INAT:
    return ii_dataset_open_inat(s->path, s->locations, root, dataset, err);
  }
  return ii_error_set(err, II_ERR_ARG, "no data set of kind %d", (int)s->kind);
}

ii_status ii_source_open(const ii_source *s, ii_dataset **dataset, ii_error *err) {
  *dataset = NULL;
  if (s->kind == II_SOURCE_NONE)
    return ii_error_set(err, II_ERR_ARG,
                        "name a data set: --folder, --list, --packed, --imagenet-val or --inat");
  II_TRY(open_any(s, dataset, err));
  ii_status status = II_OK;
  if (s->skip_list) status = ii_dataset_skip(*dataset, s->skip_list, err);
  if (status == II_OK && s->crop_index)
    status = ii_dataset_use_crop_index(*dataset, s->crop_index, err);
  if (status == II_OK) return II_OK;
  ii_dataset_free(*dataset);
  *dataset = NULL;
  return status;
}
