/* The sample data set: drawn pictures of shapes, a small classification problem that needs no
 * download. The class is the shape alone: colours, place, size, rotation, background and noise are
 * random and say nothing about it, so that a linear classifier on pixels fails. */
#ifndef II_SAMPLE_DRAW_H
#define II_SAMPLE_DRAW_H
#include <stdint.h>

#define II_SAMPLE_CLASSES 12

/* The name of class i, 0 <= i < II_SAMPLE_CLASSES: "disc", "ring", ... */
const char *ii_sample_class_name(int64_t i);

/* Draws picture `index` of a class: rgb [size, size, 3] bytes, overwritten; size >= 8.
 * A pure function of its arguments (Philox stream of (seed, class, index)). */
void ii_sample_draw(uint64_t seed, int64_t class_index, int64_t index, int64_t size, uint8_t *rgb);

#endif
