/* The buffers of every kernel: where the pointer is in its argument struct, how many elements of
 * which type it has, and what the kernel may do with it, as kernels/kernels.h says. For tests and
 * self-tests, which run any kernel by its number. */
#ifndef II_BUFFERS_H
#define II_BUFFERS_H
#include "kernels/kernels.h"

typedef enum {
  II_BUF_IN,     /* read only */
  II_BUF_OUT,    /* overwritten completely */
  II_BUF_GRAD,   /* overwritten, or added to when *acc */
  II_BUF_STATE,  /* read and written */
  II_BUF_UNREAD, /* must not be read or written by this kernel: handed over as NULL */
  II_BUF_INSIDE  /* points into the buffer before it in the list, `n` elements from its start */
} ii_buf_role;

typedef struct {
  void **at; /* the pointer inside the argument struct */
  bool *acc; /* II_BUF_GRAD only */
  ii_buf_role role;
  ii_dtype dtype;
  int64_t n;
  int64_t row, used; /* row > 0: only the first `used` elements of each row are written */
} ii_buf;

#define II_BUFS_MAX 16

enum {
#define II_KERNEL(name, args) II_K_##name,
#include "kernels/kernels.def"
#undef II_KERNEL
  II_K_COUNT
};

/* Fills b with the buffers of a call; pointers that are NULL are left out. Returns how many: 0 for
 * update_* and loss_add, which work on tables of pointers and on structs. */
int ii_kernel_buffers(int kernel, void *args, ii_buf *b);

#endif
