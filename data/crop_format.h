/* The names inside crop index files, for the files that write and read them. Not for other
 * folders. */
#ifndef II_CROP_FORMAT_H
#define II_CROP_FORMAT_H

#define II_CROP_VERSION_NAME "crop_index_version" /* packs have "version" */
#define II_CROP_VERSION      1

#endif
