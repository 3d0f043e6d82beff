/* A small network of autograd ops alone, for tests of the tape and of memory: blocks of deformable
 * convolution and of an MLP with batch and layer norm, layer scale and drop path. */
#ifndef II_TEST_AUTOGRAD_NET_H
#define II_TEST_AUTOGRAD_NET_H
#include "autograd/ops.h"
#include "autograd/param.h"
#include "autograd/tape.h"

enum {
  NET_PLAIN = 0,
  NET_CHECKPOINT = 1, /* every block */
  NET_NESTED = 2,     /* and the whole of them */
  NET_NO_SCOPES = 4
};

typedef struct {
  ii_tensor *bn[4], *ln[2], *om[2], *fc1[2], *fc2[2], *gamma;
} net_block;

typedef struct net {
  ii_params params;
  unsigned flags;
  int blocks;
  net_block block[16];
  ii_tensor *head[2];
  ii_tensor *x; /* input of the latest net_loss; needs a gradient when the context records */
} net;

/* err NULL: a failure fails the test. */
ii_ctx *net_open(ii_dtype real, ii_dtype compute, bool plan, ii_error *err);

/* Parameters with fixed random values. */
void net_init(net *n, ii_ctx *c, int blocks, unsigned flags);
void net_free(net *n);

/* The mean loss over a fixed random batch. */
ii_tensor *net_loss(net *n, ii_ctx *c);

/* All gradients (or the values of all buffers) one after the other; malloc'ed. */
double *net_read(const net *n, ii_ctx *c, bool buffers, int64_t *count);

#endif
