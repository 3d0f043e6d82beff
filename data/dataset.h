/* Which images there are, what their labels are, and their bytes as stored; no pixels.
 *
 * Kinds: a folder with one sub-folder per class, a list file, a pack (data/pack.h). Opening is done
 * once; after that a dataset is constant and may be used from any thread. */
#ifndef II_DATASET_H
#define II_DATASET_H
#include <stdbool.h>
#include <stdint.h>
#include "data/image.h"

typedef struct ii_dataset ii_dataset;

#define II_META_VALUES 7    /* temporal 4, spatial 3 */
#define II_PATH_MAX    4096 /* longest path of a file, with its end */

/* Image folder: dir/<class>/<file>. Classes are the sub-folders in byte order of their names (the
 * label is the rank), files are in byte order within a class. Files are taken when they are regular
 * and end, in any case, in .jpg .jpeg .jpe .jfif or .png (what is inside is found at decoding);
 * everything else is counted, see ii_dataset_ignored. Names beginning with '.' are not looked at.
 * With a class list (NULL: none; a text file with a name per line, or .json {"name": label}) it
 * says what the classes and their labels are: those without a folder have no images, and folders
 * that are not on it are left out and counted. Errors: II_ERR_IO (folder missing or unreadable),
 * II_ERR_FORMAT (no class, a class without images), II_ERR_MEMORY. */
ii_status ii_dataset_open_folder(const char *dir, const char *class_list, ii_dataset **dataset,
                                 ii_error *err);

/* The flat validation folder of ImageNet-1K. truth says which image has which class: the folder
 * `data` of the development kit (meta.mat and ILSVRC2012_validation_ground_truth.txt), or a text
 * file with an image and its synset (n01440764) per line, such as LOC_val_solution.csv. Classes are
 * the synsets that occur, in byte order, as in the training folder; images are in the order of
 * truth. Errors, with the line: II_ERR_IO, II_ERR_FORMAT, II_ERR_MEMORY. */
ii_status ii_dataset_open_imagenet_val(const char *dir, const char *truth, ii_dataset **dataset,
                                       ii_error *err);

/* Looks for truth below root where it is after unpacking: ILSVRC2012_devkit_t12/data, devkit/data,
 * data, LOC_val_solution.csv, val_truth.txt. out has II_PATH_MAX bytes. Returns whether it is
 * there.
 */
bool ii_imagenet_find_truth(const char *root, char *out);

/* iNaturalist 2018: json is train2018.json or val2018.json, locations (NULL: no metadata) the file
 * with the dates and places of the same images, root where the file names start. Labels are the
 * ranks of the categories in json; images, annotations and locations belong together by position,
 * and must agree in their ids where they have them. Errors: II_ERR_IO, II_ERR_FORMAT,
 * II_ERR_MEMORY. */
ii_status ii_dataset_open_inat(const char *json, const char *locations, const char *root,
                               ii_dataset **dataset, ii_error *err);

/* List file: one image per line, `path label` or `path label month lat lon`, all lines alike.
 * Fields are separated by tabs if the line has a tab (then paths may contain spaces), else by
 * spaces. Paths are relative to root unless they begin with '/'. Labels are 0..num_classes-1;
 * num_classes 0 means the highest label + 1. Empty lines are skipped. month is 1..12, lat and lon
 * are degrees; '-' or 'nan' is a missing value.
 * Errors, with the line's number: II_ERR_IO, II_ERR_FORMAT, II_ERR_MEMORY. */
ii_status ii_dataset_open_list(const char *list, const char *root, int64_t num_classes,
                               ii_dataset **dataset, ii_error *err);

void ii_dataset_free(ii_dataset *dataset); /* NULL is allowed */

int64_t ii_dataset_size(const ii_dataset *dataset); /* number of images, > 0 */
int64_t ii_dataset_num_classes(const ii_dataset *dataset);
bool ii_dataset_has_meta(const ii_dataset *dataset);

/* The folder's name of class i; NULL for a list file. Belongs to the dataset. */
const char *ii_dataset_class_name(const ii_dataset *dataset, int64_t i);

/* How many entries of an image folder were left out because they are not regular files with an
 * image's ending, and the path of the first (NULL if none). */
int64_t ii_dataset_ignored(const ii_dataset *dataset, const char **first);

int32_t ii_dataset_label(const ii_dataset *dataset, int64_t i); /* 0 <= i < size */

/* Writes the path of image i to out (II_PATH_MAX bytes); in a pack, "pack:name". */
void ii_dataset_path(const ii_dataset *dataset, int64_t i, char *out);

/* Writes the name of image i to out (II_PATH_MAX bytes): what identifies it inside the data set,
 * the same in a folder (<class>/<file>) or list (the path in it) and in a pack made of it. */
void ii_dataset_name(const ii_dataset *dataset, int64_t i, char *out);

/* The bytes of image i as they are stored: *bytes [*n] points into *buffer (overwritten, memory
 * reused) or, for a pack held in memory, into that; valid until either is used again or freed. From
 * any thread. Images of packs are checked against their checksum. Errors (they name the image):
 * II_ERR_IO, II_ERR_FORMAT (empty, too large, damaged), II_ERR_MEMORY. */
ii_status ii_dataset_read(const ii_dataset *dataset, int64_t i, ii_bytes *buffer,
                          const uint8_t **bytes, int64_t *n, ii_error *err);

/* The crop index (data/jpeg_index.h) that a pack has for image i, *index_n bytes; NULL and 0 if it
 * has none, or the data set is no pack. bytes is what ii_dataset_read has just given for this
 * image, with which the index was read and checked; valid as long as they. */
const uint8_t *ii_dataset_packed_index(const ii_dataset *dataset, int64_t i, const uint8_t *bytes,
                                       int64_t *index_n);

/* The 7 numbers the iNaturalist model takes beside image i: temporal [sin, cos of 2 pi month / 12,
 * 0, 0] and spatial [cos lat cos lon, cos lat sin lon, sin lat]. Zeros stand for a missing month,
 * and for a place of which lat or lon is missing or exactly 0 (the official rule). */
void ii_dataset_meta(const ii_dataset *dataset, int64_t i, float out[II_META_VALUES]);

/* What the data set is: a CRC-32C of the names and labels of its images in their order (a skip list
 * applied). A pack has that of the folder or list it was made of. */
uint32_t ii_dataset_fingerprint(const ii_dataset *dataset);

/* Checks that both have the same classes in the same order, as a train and a validation set must.
 * Errors: II_ERR_FORMAT, naming the first difference. */
ii_status ii_dataset_check_same_classes(const ii_dataset *a, const ii_dataset *b, ii_error *err);

#endif
