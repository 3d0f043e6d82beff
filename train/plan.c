#include "train/plan.h"
#include <inttypes.h>
#include <stdio.h>
#include "autograd/tape.h"
#include "train/setup.h"
#include "train/step.h"

/* One image through the model, counting. */
static void count_macs(ii_model *model, ii_ctx *c, ii_plan *plan) {
  const int meta = ii_model_get_config(model)->meta_dims[0];
  const int64_t size = plan->img_size;
  ii_tensor *m = meta ? ii_tensor_new(c, II_F32, 2, (int64_t[]){1, II_META_VALUES}) : NULL;
  c->macs = c->dcn_macs = 0;
  ii_model_forward(model, ii_tensor_new(c, II_F32, 4, (int64_t[]){1, size, size, 3}), m, NULL);
  plan->macs = c->macs + c->dcn_macs;
  ii_tape_reset(c);
}

/* Two steps as the trainer makes them, in shapes alone; the second is like all that follow. */
static ii_status plan_steps(ii_model *model, ii_optimizer *o, const ii_schedule *s,
                            const ii_input_batch *first, const ii_config *cfg, ii_error *err) {
  ii_pool *pool = &o->params->ctx->pool;
  ii_input_batch b = *first;
  ii_step step;
  const ii_step_options options = {.cfg = cfg, .model = model, .optimizer = o, .schedule = s};
  II_TRY(ii_step_init(&step, &options, err));
  b.count = cfg->data.batch_size;
  ii_status status = II_OK;
  for (int64_t i = 0; i < 2 && status == II_OK; i++) {
    ii_pool_reset_peak(pool);
    status = ii_step_run(&step, &b, i, err);
  }
  ii_step_destroy(&step);
  return status;
}

static ii_status run(const ii_config *cfg, ii_ctx *c, ii_plan *plan, ii_error *err) {
  const ii_model_config m = ii_setup_model(cfg);
  ii_model *model = ii_model_create(c, &m, err);
  if (!model) return err->status;
  ii_params *params = ii_model_params(model);
  const ii_optimizer_options options = ii_setup_optimizer(cfg);
  const ii_schedule schedule = ii_setup_schedule(cfg, cfg->train.accumulation_steps);
  ii_optimizer o = {0};
  ii_input in = {0};
  ii_status status = II_OK;
  plan->parameters = ii_params_numel(params);
  count_macs(model, c, plan);
  if (ii_optimizer_init(&o, params, &options) == II_OK &&
      ii_input_init(&in, c, plan->batch, plan->img_size, cfg->model.meta_dims.count > 0) == II_OK) {
    status = plan_steps(model, &o, &schedule, &in.at[0], cfg, err);
    for (int i = 0; i < II_MEM_CLASSES; i++) plan->memory[i] = c->pool.peak_by_class[i];
    plan->memory_total = c->pool.peak;
  }
  ii_input_destroy(&in);
  ii_optimizer_destroy(&o);
  ii_model_destroy(model);
  if (status != II_OK || ii_ok(c)) return status;
  return ii_error_set(err, c->err.status, "%s", c->err.text);
}

ii_status ii_plan_make(const ii_config *cfg, ii_device device, ii_plan *plan, ii_error *err) {
  const ii_dtype compute = ii_setup_compute(cfg, device);
  *plan =
      (ii_plan){.batch = cfg->data.batch_size, .img_size = cfg->data.img_size, .compute = compute};
  ii_ctx *c = ii_ctx_open(
      &(ii_ctx_options){
          .device = device, .threads = 1, .real = II_F32, .compute = compute, .plan = true},
      err);
  if (!c) return err->status;
  ii_status s = run(cfg, c, plan, err);
  ii_ctx_close(c);
  return s;
}

/* ---- output ----------------------------------------------------------------------------------*/

static void print_text(const ii_plan *p, FILE *to) {
  fprintf(to, "parameters      %15" PRId64 "  (%.2f M)\n", p->parameters,
          1e-6 * (double)p->parameters);
  fprintf(to, "multiply-adds   %15" PRId64 "  (%.2f G, one image of %" PRId64 " x %" PRId64 ")\n",
          p->macs, 1e-9 * (double)p->macs, p->img_size, p->img_size);
  fprintf(to, "memory at the peak of a training step, batch %" PRId64 ", %s:\n", p->batch,
          ii_setup_precision_name(p->compute));
  for (int i = 0; i < II_MEM_CLASSES; i++)
    fprintf(to, "  %-22s%9.3f GiB\n", ii_mem_class_name((ii_mem_class)i),
            (double)p->memory[i] / (double)(1 << 30));
  fprintf(to, "  %-22s%9.3f GiB", "total", (double)p->memory_total / (double)(1 << 30));
}

static void print_json(const ii_plan *p, FILE *to) {
  fprintf(to, "{\"parameters\": %" PRId64 ", \"macs\": %" PRId64 ", \"memory\": {", p->parameters,
          p->macs);
  for (int i = 0; i < II_MEM_CLASSES; i++)
    fprintf(to, "\"%s\": %" PRId64 ", ", ii_mem_class_name((ii_mem_class)i), p->memory[i]);
  fprintf(to, "\"total\": %" PRId64 "}}", p->memory_total);
}

static ii_status to_text(const ii_plan *p, void (*print)(const ii_plan *, FILE *), char **text,
                         ii_error *err) {
  size_t size;
  FILE *f = open_memstream(text, &size);
  if (!f) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  print(p, f);
  return fclose(f) == 0 ? II_OK : ii_error_set(err, II_ERR_MEMORY, "out of host memory");
}

ii_status ii_plan_text(const ii_plan *p, char **text, ii_error *err) {
  return to_text(p, print_text, text, err);
}

ii_status ii_plan_json(const ii_plan *p, char **text, ii_error *err) {
  return to_text(p, print_json, text, err);
}
