/* golden_check: compares this program with reference data that was computed by the official code.
 *
 * One gc holds the state of a run. A file that cannot be understood ends the program (gc_die, exit
 * code 2); a number that disagrees is recorded (gc_compare) and makes the exit code 1 at the end.
 *
 * Errors are relative to the largest value of a tensor: max|a-b| / max|b|. Bounds come in pairs:
 * for float the bounds of the reference data's own documentation (the same computation in torch
 * float32, with a margin), for double bounds that only leave room for another order of summation.
 * Where the file keeps a result as float32, double is allowed the rounding of each number on top
 * (gc_error). */
#ifndef GOLDEN_CHECK_H
#define GOLDEN_CHECK_H
#include <hdf5.h>
#include <jansson.h>
#include "autograd/ops.h"
#include "autograd/param.h"
#include "models/model.h"

#define GC_NAME 192

typedef struct {
  double err, bound;
  char tensor[GC_NAME];
} gc_worst;

typedef struct {
  ii_device device;
  int device_index;
  bool f32, f64;    /* which types to run */
  bool dtype_given; /* by --dtype: then also where double is not checked by default */
  bool verbose;
  const char *file;       /* path of the present file */
  char where[GC_NAME];    /* group or configuration that is being checked */
  const char *kind;       /* what kind of case it is */
  ii_dtype dtype;         /* type that is being checked */
  gc_worst here, overall; /* comparison with the largest error/bound */
  char overall_case[3 * GC_NAME];
  int64_t compared; /* numbers compared in this case */
  int64_t cases, failed;
  void **memory; /* blocks of the present case */
  int64_t blocks, block_capacity;
} gc;

/* Ends the program with exit code 2: "golden_check: FILE: WHERE: message". */
void gc_die(const gc *g, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));

/* Zeroed memory that lives until the end of the case. */
void *gc_alloc(gc *g, size_t count, size_t size);

/* One case: begin, any number of comparisons, end (which prints a line and frees gc_alloc). */
void gc_case_begin(gc *g, const char *kind, const char *name, ii_dtype dtype);
void gc_case_end(gc *g);

/* Records that tensor deviates by err where bound is allowed (bound 0: must be exact). */
void gc_compare(gc *g, const char *tensor, double err, double bound);
/* Records a disagreement that is not a number: a name, a shape, a switch. */
void gc_expect(gc *g, bool holds, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* max|a-b|; infinite when an a is not finite. */
double gc_max_diff(const double *a, const double *b, int64_t n);
double gc_max_abs(const double *a, int64_t n);

/* ---- HDF5 (golden_check_h5.c) ----------------------------------------------------------------*/

#define GC_DIMS 8
typedef struct {
  int ndim;
  int64_t dim[GC_DIMS], n;
  double *v;
  bool single; /* stored as float32 */
} gc_array;

hid_t gc_open_file(gc *g);
hid_t gc_open_group(gc *g, hid_t parent, const char *name);
bool gc_has(hid_t group, const char *name); /* a data set or group */
bool gc_has_attr(hid_t group, const char *name);
/* The names in a group, in byte order. */
char **gc_names(gc *g, hid_t group, int64_t *count);
/* Every name in the group is one of the words of `known` or begins with a word ending in '*';
 * anything else ends the program: data that would go unchecked. */
void gc_only(gc *g, hid_t group, const char *known);

gc_array gc_read(gc *g, hid_t group, const char *name); /* numbers of any type */
char *gc_read_text(gc *g, hid_t group, const char *name);
/* The array has this shape, or the program ends. */
void gc_shape(gc *g, const gc_array *a, const char *name, int ndim, const int64_t *dim);

/* Attributes. gc_number_or gives other when there is none or it is the string "None". */
double gc_number(gc *g, hid_t group, const char *name);
double gc_number_or(gc *g, hid_t group, const char *name, double other);
int64_t gc_integer(gc *g, hid_t group, const char *name, int64_t min, int64_t max);
/* A list; returns its length, 0 for "None" or no such attribute. */
int gc_numbers(gc *g, hid_t group, const char *name, double *out, int max);
/* "" when there is none. */
char *gc_text(gc *g, hid_t group, const char *name);
/* Whether the comma-separated list has this word. */
bool gc_listed(const char *list, const char *word);

/* max|got-want| / max(max|want|, floor), or the difference itself where that is 0. When double is
 * checked against numbers stored as float32, each difference is first reduced by what the storage
 * may have rounded, 2^-24 |want|. */
double gc_error(const gc *g, const double *got, const gc_array *want, double floor);
/* The bound for the type that is being checked. */
double gc_bound(const gc *g, double f32, double f64);

/* ---- tensors and models (golden_check_model.c)
 * -------------------------------------------------*/

/* A context for the type that is being checked. threads 0: as many as there are. */
ii_ctx *gc_ctx(gc *g, bool plan, int threads);
/* Ends the program when the context has an error. */
void gc_ctx_ok(gc *g, const ii_ctx *c);
/* A tensor of these numbers, whose gradient is wanted or not. */
ii_tensor *gc_tensor(gc *g, ii_ctx *c, int ndim, const int64_t *dim, const double *v,
                     bool needs_grad);
/* The numbers of a tensor; of NULL or no memory: ends the program. */
double *gc_values(gc *g, ii_ctx *c, const ii_tensor *t, const char *what);
/* y's gradient becomes w (as many numbers), and everything before it is differentiated. */
void gc_backward_from(gc *g, ii_ctx *c, ii_tensor *y, const double *w);
/* Compares a tensor with a data set of the same number of elements. */
void gc_compare_tensor(gc *g, ii_ctx *c, const ii_tensor *t, hid_t group, const char *name,
                       double f32, double f64);

/* [N,C,H,W] -> [N,H,W,C] */
double *gc_to_nhwc(gc *g, const double *v, int64_t N, int64_t C, int64_t H, int64_t W);
double *gc_to_nchw(gc *g, const double *v, int64_t N, int64_t C, int64_t H, int64_t W);

/* Gives the parameters (or buffers) the values of the case's group `params` (or `buffers`), of the
 * data sets whose names end in suffix (cut off). Names and shapes must agree, in both directions.
 */
bool gc_load(gc *g, ii_params *params, hid_t group, bool buffers, const char *suffix);

typedef struct {
  double median[2], worst[2]; /* bounds for float, double */
} gc_grad_bounds;
/* Compares all parameter gradients with the group; `zero` lists those that are only noise. */
void gc_compare_grads(gc *g, ii_params *params, hid_t grads, const char *zero,
                      const gc_grad_bounds *bounds);

/* The model that the attributes describe; num_classes comes from the attribute too. */
ii_model *gc_model(gc *g, ii_ctx *c, hid_t group);

/* ---- the kinds
 * -----------------------------------------------------------------------------------*/

void gc_check_dcnv3_op(gc *g, hid_t group, const char *name);
void gc_check_dcnv4_op(gc *g, hid_t group, const char *name);
void gc_check_module(gc *g, hid_t group, const char *name);
void gc_check_backbone(gc *g, hid_t group, const char *name);
void gc_check_drop_path(gc *g, hid_t group, const char *name);
void gc_check_full_size(gc *g, hid_t group, const char *name);
void gc_check_training(gc *g, hid_t group, const char *name);
void gc_check_param_groups(gc *g, const json_t *configs);
void gc_check_schedules(gc *g, const json_t *schedules);

#endif
