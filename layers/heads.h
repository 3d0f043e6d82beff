/* The classification heads beside plain pooling: the attention-pooling projector of InternImage-H/G
 * and the metadata branch of the iNaturalist model. */
#ifndef II_HEADS_H
#define II_HEADS_H
#include "layers/basic.h"

/* Attention pooling ("clip_projector"): one query, the mean of the tokens, attends to all tokens.
 * q = Wq LNq(mean) + bq, k and v alike of the tokens; softmax(q k^T / sqrt(D)) v; proj. */
typedef struct {
  ii_norm_layer norm_q, norm_k, norm_v;
  ii_linear_layer q, k, v, proj; /* the biases of q, k, v are named q_bias, k_bias, v_bias */
  int64_t heads;
} ii_attention_pool_layer;
ii_attention_pool_layer ii_attention_pool_build(const ii_builder *b, int64_t channels,
                                                int64_t heads, int64_t out);
/* tokens[N,L,C] -> [N,out] of the compute type. */
ii_tensor *ii_attention_pool_forward(ii_ctx *c, const ii_attention_pool_layer *l,
                                     ii_tensor *tokens);

/* Metadata encoder: Linear(in -> 64), ReLU, LN, then x + LN(ReLU(W2 LN(ReLU(W1 x)))), eps 1e-5. */
typedef struct {
  ii_linear_layer in, w1, w2;
  ii_norm_layer norm, norm1, norm2;
} ii_meta_encoder;
ii_meta_encoder ii_meta_encoder_build(const ii_builder *b, int64_t in, int64_t width);
/* x[N,in] -> [N,width] of type real. */
ii_tensor *ii_meta_encoder_forward(ii_ctx *c, const ii_meta_encoder *l, ii_tensor *x);

#endif
