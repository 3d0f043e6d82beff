/* `train --doctor`: what this program is made of, what it runs on, and whether its kernels are
 * right here. */
#ifndef II_DOCTOR_H
#define II_DOCTOR_H
#include <stdbool.h>
#include <stdio.h>
#include "autograd/error.h"
#include "kernels/kernels.h"

typedef enum { II_DOCTOR_ALL, II_DOCTOR_CPU, II_DOCTOR_CUDA } ii_doctor_engines;

/* Writes to `to`: engines of this build, versions of the libraries at compile time and now, GPU
 * code, driver and GPUs, and a numeric self-test of every kernel on the engines asked for:
 * II_DOCTOR_ALL: those usable here, every GPU; II_DOCTOR_CUDA: GPU number `gpu` (else ignored).
 * *passed: every kernel tested was right, and an engine asked for by name was usable. Errors (a
 * status): nothing could be tested at all. */
ii_status ii_doctor_run(ii_doctor_engines which, int gpu, FILE *to, bool *passed, ii_error *err);

#endif
