/* A small fixed-width font for captions in pictures, drawn for this program. */
#ifndef II_LABEL_FONT_H
#define II_LABEL_FONT_H
#include "data/image.h"

/* Pixels from one character to the next and from one line to the next, at scale 1. */
enum { II_LABEL_WIDTH = 6, II_LABEL_HEIGHT = 9 };

/* Draws the n characters of text into img with their upper left corner at (x, y), each pixel of the
 * font scale x scale pixels of `rgb`. What lies outside of img is left out; a character that the
 * font lacks is drawn as an empty box. */
void ii_label_draw(ii_image *img, const char *text, int64_t n, int64_t x, int64_t y, int64_t scale,
                   const uint8_t rgb[3]);

#endif
