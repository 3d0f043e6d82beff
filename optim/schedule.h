/* Learning-rate schedules: the rate of every parameter at every iteration, as a pure function.
 *
 * Rules of the official training (lr_scheduler.py with timm 0.6.11, main.py). An iteration is one
 * batch through the model (a micro-step when gradients are accumulated), counted from 0 over the
 * whole run. With n iterations per epoch, T = epochs*n and Tw = (int)(warmup_epochs*n), the value
 * of the schedule at index t for a parameter whose own base rate is v is
 *   warm-up, t < Tw:  w0 + t*(v - w0)/Tw
 *   cosine:           m + (v - m)*(1 + cos(pi*t/T))/2  t NOT shifted by the warm-up; m for t >= T
 *   linear:           v - (v - v*rate)*(t - Tw)/(T - Tw)  shifted by the warm-up; m is not used
 *   step:             v * decay_rate^floor(t/Td), Td = (int)(decay_epochs*n), not shifted
 * where w0 and m are the same absolute numbers for all parameters, however small their v.
 *
 * The official loop advances the schedule AFTER an update, with the index of the iteration it has
 * just done. So the rate in effect at iteration i is the value at the index of the last update
 * before i; without accumulation that is i-1, and iterations 0 and 1 both use the value at 0. Until
 * the first update it is w0, or v when there is no warm-up.
 *
 * No state, no allocation; all functions may be called from any thread. */
#ifndef II_SCHEDULE_H
#define II_SCHEDULE_H
#include <stdbool.h>
#include <stdint.h>
#include "autograd/error.h"

/* In the order of the choices of the key train.schedule. */
typedef enum { II_SCHEDULE_COSINE = 0, II_SCHEDULE_LINEAR, II_SCHEDULE_STEP } ii_schedule_kind;

typedef struct {
  ii_schedule_kind kind;
  int64_t epochs;
  int64_t steps_per_epoch; /* iterations (batches) per epoch of one process */
  int64_t accumulation;    /* iterations per update, 1 = none */
  double warmup_epochs;    /* 0 = no warm-up */
  double warmup_lr;        /* w0, already scaled */
  double min_lr;           /* m, already scaled; cosine */
  double linear_min_rate;  /* linear: last rate as a share of v (official: 0.01) */
  double decay_epochs;     /* step */
  double decay_rate;       /* step */
} ii_schedule;

/* Factor on base, warm-up and minimum rate for images_per_update = images per process and iteration
 * * processes * accumulation: images_per_update / reference; 1 when reference is 0. The official
 * reference is 512. */
double ii_schedule_lr_factor(int64_t images_per_update, int64_t reference);

/* Checks that *s describes a schedule: at least one epoch, one update per epoch, a decay period of
 * at least one iteration (step), a warm-up shorter than the run (linear). Errors: II_ERR_ARG. */
ii_status ii_schedule_check(const ii_schedule *s, ii_error *err);

/* The value at index t >= 0 for base rate v; *s has passed ii_schedule_check. */
double ii_schedule_value(const ii_schedule *s, double v, int64_t t);

/* The rate in effect at iteration >= 0 for a parameter of base rate v (scaled rate * its ratio). */
double ii_schedule_lr(const ii_schedule *s, double v, int64_t iteration);

/* Whether the weights are updated at the end of this iteration: the accumulation-th of its group,
 * groups counted from the start of each epoch. What a shorter last group of an epoch has
 * accumulated is dropped: the official loop clears the gradients when an epoch begins. */
bool ii_schedule_is_update(const ii_schedule *s, int64_t iteration);

#endif
