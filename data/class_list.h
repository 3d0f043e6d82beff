/* Lists of class names in the order of their labels. Not for other folders. */
#ifndef II_CLASS_LIST_H
#define II_CLASS_LIST_H
#include "data/dataset_build.h"

/* Reads a text file whose line i begins with the name of class i (up to the first space or tab), or
 * a .json file {"name": i, ...} with each of 0..n-1 once. Names must differ. Errors: II_ERR_IO,
 * II_ERR_FORMAT (with the line or the name), II_ERR_MEMORY. */
ii_status ii_class_list_read(const char *path, ii_names *names, ii_error *err);

#endif
