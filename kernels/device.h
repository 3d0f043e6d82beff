/* Engines and their memory: what differs between the processor and a GPU apart from the kernels.
 *
 * Every function returns 0, or nonzero with one sentence in k->error. Device memory of the CPU
 * engine is ordinary memory; that of the CUDA engine must only be touched by kernels and by the
 * functions below. All work of one ii_kctx runs in one order (its stream); functions that copy to
 * or from host memory wait for it, the others do not. One thread at a time per ii_kctx. */
#ifndef II_DEVICE_H
#define II_DEVICE_H
#include <stddef.h>
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  ii_device device;
  int index;   /* CUDA: which GPU */
  int threads; /* CPU: OpenMP threads, 0 for all processors this process may use */
} ii_engine_options;

/* Opens an engine: fills *k. Fails with a sentence that says what is missing (this build has no
 * CUDA engine; no driver; no such GPU). */
int ii_engine_open(ii_kctx *k, const ii_engine_options *o);
/* Releases everything that ii_engine_open and the kernels allocated; NULL engine is allowed. */
void ii_engine_close(ii_kctx *k);
/* Bytes of scratch memory the engine holds for its kernels, for memory reports. */
int64_t ii_engine_scratch_bytes(const ii_kctx *k);

/* How many CUDA devices this build can use here: 0 without CUDA engine, driver or GPU. */
int ii_cuda_device_count(void);
/* "cuda", or "cuda (emulated on the CPU)", or "" when the build has no CUDA engine. */
const char *ii_cuda_engine_name(void);

/* Memory for the pool. Contents are undefined. Freed memory may be reused at once by later work of
 * the same k. */
int ii_device_alloc(ii_kctx *k, size_t bytes, void **p);
void ii_device_free(ii_kctx *k, void *p, size_t bytes);
/* True when each block should be an allocation of its own, of the exact size, so that the tools
 * that watch memory see an overrun (the emulated engine under AddressSanitizer). */
bool ii_device_exact(const ii_kctx *k);

/* Host to device and back. The host buffer may be reused on return. */
int ii_device_write(ii_kctx *k, void *dst, const void *host, size_t bytes);
int ii_device_read(ii_kctx *k, void *host, const void *src, size_t bytes);
/* Device to device, no overlap; zero fill. They do not wait. */
int ii_device_copy(ii_kctx *k, void *dst, const void *src, size_t bytes);
int ii_device_zero(ii_kctx *k, void *dst, size_t bytes);
/* Waits for all work given to k; its errors become this call's. */
int ii_device_sync(ii_kctx *k);

/* ---- Host memory and copies that run beside the kernels --------------------------------------*/

/* Host memory that a GPU reads by itself (pinned); ordinary memory for the CPU engine. */
int ii_host_alloc(ii_kctx *k, size_t bytes, void **p);
void ii_host_free(ii_kctx *k, void *p);

/* One transfer in flight at a time; NULL pointers inside for the CPU engine. */
typedef struct {
  void *copied, *used; /* events: the copy is done; the kernels have read what was copied */
} ii_transfer;
int ii_transfer_init(ii_kctx *k, ii_transfer *t);
void ii_transfer_destroy(ii_kctx *k, ii_transfer *t);
/* Starts copying host (from ii_host_alloc) to dst on the copy stream, after the kernels of the last
 * ii_transfer_release of t have finished with dst. host must stay as it is until
 * ii_transfer_host_done. */
int ii_transfer_start(ii_kctx *k, ii_transfer *t, void *dst, const void *host, size_t bytes);
/* Kernels given to k from now on see what the last starts copied. Does not wait. */
int ii_transfer_acquire(ii_kctx *k, ii_transfer *t);
/* The kernels given to k so far are the last that read dst. */
int ii_transfer_release(ii_kctx *k, ii_transfer *t);
/* Waits until the host buffers of the last starts may be changed. */
int ii_transfer_host_done(ii_kctx *k, ii_transfer *t);

/* Small things that the host decides for each step, on their way to a fixed place on the device.
 * Two host buffers take turns, so that one is filled while the other may still be read. */
typedef struct {
  void *host[2]; /* from ii_host_alloc */
  void *sent[2]; /* events: the copy from host[i] is done; NULL for the CPU engine */
  int turn;      /* of the two, the one that is filled */
} ii_upload;
/* For up to `bytes` bytes at a time. On an error *u is to be destroyed all the same. */
int ii_upload_init(ii_kctx *k, ii_upload *u, size_t bytes);
void ii_upload_destroy(ii_kctx *k, ii_upload *u);
/* Gives in *host the memory to fill; waits until the copy before the last has left it. */
int ii_upload_begin(ii_kctx *k, ii_upload *u, void **host);
/* Queues the copy of what was filled to dst among the kernels: those given to k before see the old
 * contents, those after it the new ones. */
int ii_upload_send(ii_kctx *k, ii_upload *u, void *dst, size_t bytes);

/* ---- Recorded work: a CUDA graph ---------------------------------------------------------------
 *
 * Between ii_graph_begin and ii_graph_end everything given to k is recorded, with its arguments and
 * pointers as they are now, and not done; ii_graph_launch then does all of it by one call, each
 * time in the same way. So whatever changes from one launch to the next must stand in device
 * memory, and the memory must stay where it is (ii_engine_layout). Nothing may be allocated,
 * waited for or copied from or to the host meanwhile: such a call fails, and so does ii_graph_end.
 */
typedef struct {
  void *exec;     /* NULL: nothing is recorded */
  int64_t pieces; /* kernels, copies and fills in it */
} ii_graph;

int ii_graph_begin(ii_kctx *k);
/* Ends the recording in any case. g NULL: forgets what was recorded. */
int ii_graph_end(ii_kctx *k, ii_graph *g);
/* Does not wait. */
int ii_graph_launch(ii_kctx *k, const ii_graph *g);
/* Waits for what runs. Leaves *g empty. */
void ii_graph_destroy(ii_kctx *k, ii_graph *g);
/* A number that changes whenever the engine's own memory moves: a graph that was recorded under
 * another one must not be launched. */
int64_t ii_engine_layout(const ii_kctx *k);

#ifdef __cplusplus
}
#endif
#endif
