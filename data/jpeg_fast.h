/* A decoder of ordinary baseline JPEG files that gives the same pixels as libjpeg-turbo (ISLOW
 * inverse DCT, fancy upsampling) in less time. Inside of the decoder; not for other folders. */
#ifndef II_JPEG_FAST_H
#define II_JPEG_FAST_H
#include <stdio.h>
#include <jpeglib.h>
#include "data/image.h"

typedef struct ii_jpeg_fast ii_jpeg_fast; /* working memory: one per thread */
ii_status ii_jpeg_fast_new(ii_jpeg_fast **fast, ii_error *err);
void ii_jpeg_fast_free(ii_jpeg_fast *fast); /* NULL is allowed */

/* After jpeg_read_header, with j->src at the coded data: decodes the part of the picture into *img
 * (part.w x part.h) and returns true. False, with *img undefined, when the file is not of the kinds
 * that are known here (sequential Huffman, one scan; grey, or YCbCr 4:4:4, 4:2:2, 4:2:0), when
 * anything in its data is not as it should be, and when there is no memory: libjpeg-turbo, from the
 * same state of *j, then decides what becomes of it. j is not changed. */
bool ii_jpeg_fast_decode(ii_jpeg_fast *fast, const struct jpeg_decompress_struct *j, ii_box part,
                         ii_image *img);

#endif
