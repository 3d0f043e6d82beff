/* oneDNN behind the CPU engine. */
#include <stdlib.h>
#include "kernels/cpu_onednn.h"
#include "oneapi/dnnl/dnnl.h"

struct ii_onednn {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
};

int ii_onednn_open(ii_kctx *k, ii_onednn **out) {
  *out = NULL;
  ii_onednn *dnn = calloc(1, sizeof *dnn);
  if (!dnn) return ii_kernel_error(k, "oneDNN: out of memory");
  dnnl_status_t s = dnnl_engine_create(&dnn->engine, dnnl_cpu, 0);
  if (s == dnnl_success)
    s = dnnl_stream_create(&dnn->stream, dnn->engine, dnnl_stream_default_flags);
  if (s != dnnl_success) {
    ii_onednn_close(dnn);
    return ii_kernel_error(k, "oneDNN: no CPU engine could be opened (status %d)", (int)s);
  }
  *out = dnn;
  return 0;
}

void ii_onednn_close(ii_onednn *dnn) {
  if (!dnn) return;
  if (dnn->stream) dnnl_stream_destroy(dnn->stream);
  if (dnn->engine) dnnl_engine_destroy(dnn->engine);
  free(dnn);
}
