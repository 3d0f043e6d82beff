/* The CUDA engine's side of kernels/device.h: each function is what the one of the same name there
 * says, for k->device == II_CUDA. */
#ifndef II_CUDA_DEVICE_CALLS_H
#define II_CUDA_DEVICE_CALLS_H
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

int ii_cuda_engine_open(ii_kctx *k, const ii_engine_options *o);
void ii_cuda_engine_close(ii_kctx *k);
int64_t ii_cuda_engine_scratch_bytes(const ii_kctx *k);
int ii_cuda_alloc(ii_kctx *k, size_t bytes, void **p);
void ii_cuda_free(ii_kctx *k, void *p);
bool ii_cuda_exact(void);
int ii_cuda_write(ii_kctx *k, void *dst, const void *host, size_t bytes);
int ii_cuda_read(ii_kctx *k, void *host, const void *src, size_t bytes);
int ii_cuda_copy(ii_kctx *k, void *dst, const void *src, size_t bytes);
int ii_cuda_zero(ii_kctx *k, void *dst, size_t bytes);
int ii_cuda_sync(ii_kctx *k);
int ii_cuda_host_alloc(ii_kctx *k, size_t bytes, void **p);
void ii_cuda_host_free(ii_kctx *k, void *p);
int ii_cuda_transfer_init(ii_kctx *k, ii_transfer *t);
void ii_cuda_transfer_destroy(ii_kctx *k, ii_transfer *t);
int ii_cuda_transfer_start(ii_kctx *k, ii_transfer *t, void *dst, const void *host, size_t bytes);
int ii_cuda_transfer_acquire(ii_kctx *k, ii_transfer *t);
int ii_cuda_transfer_release(ii_kctx *k, ii_transfer *t);
int ii_cuda_transfer_host_done(ii_kctx *k, ii_transfer *t);
int ii_cuda_upload_init(ii_kctx *k, ii_upload *u);        /* the events alone */
void ii_cuda_upload_destroy(ii_kctx *k, ii_upload *u);    /* likewise, after waiting for them */
int ii_cuda_upload_begin(ii_kctx *k, const ii_upload *u); /* waits */
int ii_cuda_upload_send(ii_kctx *k, const ii_upload *u, void *dst, size_t bytes);
int ii_cuda_graph_begin(ii_kctx *k);
int ii_cuda_graph_end(ii_kctx *k, ii_graph *g);
int ii_cuda_graph_launch(ii_kctx *k, const ii_graph *g);
void ii_cuda_graph_destroy(ii_kctx *k, ii_graph *g);
int64_t ii_cuda_engine_layout(const ii_kctx *k);

#ifdef __cplusplus
}
#endif
#endif
