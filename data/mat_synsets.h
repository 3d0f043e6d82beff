/* The synsets of ImageNet's development kit. Not for other folders. */
#ifndef II_MAT_SYNSETS_H
#define II_MAT_SYNSETS_H
#include "data/dataset_build.h"

/* Reads meta.mat (a MATLAB 5 file with a structure array `synsets` that has the fields
 * ILSVRC2012_ID and WNID) into names->names[id - 1] = WNID for id = 1..1000; those with higher ids
 * are groups of classes. Errors: II_ERR_IO, II_ERR_FORMAT, II_ERR_MEMORY. */
ii_status ii_mat_synsets(const char *path, ii_names *names, ii_error *err);

#endif
