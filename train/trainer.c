/* The loop. */
#include <string.h>
#include "autograd/tape.h"
#include "train/setup.h"
#include "train/trainer_priv.h"

static ii_status context_status(const ii_trainer *t, ii_error *err) {
  if (ii_ok(t->ctx)) return II_OK;
  return ii_error_set(err, t->ctx->err.status, "step %lld: %s", (long long)t->state.step,
                      t->ctx->err.text);
}

/* Loss or gradients that are not numbers: the step is not part of any checkpoint. */
static ii_status not_finite(const ii_trainer *t, const ii_update_state *u, ii_error *err) {
  char image[II_PATH_MAX];
  const int64_t n = t->schedule.steps_per_epoch;
  ii_dataset_path(t->train_set, t->first_sample[u->bad_step % II_LOOK_STEPS], image);
  return ii_error_set(err, II_ERR_ARG,
                      "%s is %g at step %lld (epoch %lld, batch %lld, images such as %.300s): "
                      "training stopped, and the checkpoints in %.300s are as they were; a lower "
                      "train.base_lr or train.clip_grad usually helps",
                      u->bad_loss ? "the loss" : "the norm of the gradient", u->bad_value,
                      (long long)u->bad_step, (long long)(u->bad_step / n) + 1,
                      (long long)(u->bad_step % n), image, t->dir);
}

/* With a scale as small as this nothing overflows for its sake. */
static const double SMALLEST_SCALE = 0x1p-14;

ii_status ii_trainer_look(ii_trainer *t, ii_error *err) {
  ii_train_state *s = &t->state;
  ii_update_state *u = &t->device;
  const bool scaled = t->optimizer.options.loss_scale > 0;
  if (t->looked == s->step) return II_OK;
  ii_optimizer_look(&t->optimizer, u);
  II_TRY(context_status(t, err));
  t->looked = s->step;
  if (u->bad_step >= 0) return not_finite(t, u, err);
  s->updates = u->t;
  s->loss_sum = u->loss_sum;
  s->loss_count = u->loss_count;
  s->loss_scale = scaled ? u->loss_scale : 0;
  s->good_updates = u->good_updates;
  s->skipped_updates = u->skipped;
  if (scaled && u->loss_scale < SMALLEST_SCALE)
    return ii_error_set(err, II_ERR_ARG,
                        "the loss scale has fallen to %g by step %lld (%lld updates skipped in "
                        "all): the gradients are not finite whatever it is, so the forward pass "
                        "itself leaves the range of fp16 or the weights have blown up; training "
                        "stopped, and the checkpoints in %.300s are as they were; train.amp=bf16 "
                        "or a lower train.base_lr usually helps",
                        u->loss_scale, (long long)s->step, (long long)u->skipped, t->dir);
  return II_OK;
}

void ii_trainer_new_mean(ii_trainer *t) {
  t->device.loss_sum = t->state.loss_sum = 0;
  t->device.loss_count = t->state.loss_count = 0;
  ii_optimizer_set_state(&t->optimizer, &t->device);
}

/* Whether the host wants to know now how the steps so far went. On the CPU that costs nothing. */
static bool look_due(const ii_trainer *t) {
  const int64_t step = t->state.step;
  return t->ctx->k.device == II_CPU || step % t->cfg->train.log_every_steps == 0 ||
         step - t->looked >= II_LOOK_STEPS;
}

static bool last_step(const ii_trainer *t) {
  return t->state.step + 1 >= ii_trainer_total_steps(t);
}

static ii_status train_step(ii_trainer *t, ii_error *err) {
  ii_train_state *s = &t->state;
  const ii_input_batch *b;
  const double before = ii_loader_get_stats(t->loader).wait_seconds;
  II_TRY(ii_input_next(&t->input, t->loader, &b, err));
  II_ASSERT(b->epoch == s->epoch && b->index == s->batch,
            "batch %lld of epoch %lld, not %lld of "
            "%lld",
            (long long)b->index, (long long)b->epoch, (long long)s->batch, (long long)s->epoch);
  const int64_t count = b->count;
  s->bad_files += b->bad_files;
  t->first_sample[s->step % II_LOOK_STEPS] = b->host_samples[0];
  /* what the last, shorter group of the epoch before has accumulated is dropped */
  if (s->batch == 0) ii_params_zero_grad(t->params);
  if (ii_step_run(&t->step, b, s->step, err) != II_OK)
    return ii_error_prefix(err, "step %lld", (long long)s->step);
  if (!last_step(t)) II_TRY(ii_input_ahead(&t->input, t->loader, err));
  const double waited = ii_loader_get_stats(t->loader).wait_seconds - before;
  s->step++;
  s->batch++;
  s->images += count;
  if (look_due(t)) II_TRY(ii_trainer_look(t, err));
  return ii_trainer_progress(t, waited, count, err);
}

static bool finished(const ii_trainer *t) {
  return t->state.epoch >= t->cfg->train.epochs || (t->state.batch < t->schedule.steps_per_epoch &&
                                                    t->state.step >= ii_trainer_total_steps(t));
}

static bool stop_wanted(const ii_trainer *t) {
  return t->o.stop && *t->o.stop;
}

static ii_status interrupt(ii_trainer *t, ii_error *err) {
  ii_error_clear(err);
  II_TRY(ii_trainer_save(t, NULL, err));
  return ii_error_set(err, II_ERR_INTERRUPTED,
                      "stopped on request after step %lld and saved; --resume auto goes on from "
                      "there",
                      (long long)t->state.step);
}

/* The batches of an epoch are done: validates if it is time, moves on to the next epoch, saves. */
static ii_status finish_epoch(ii_trainer *t, ii_error *err) {
  ii_train_state *s = &t->state;
  const int64_t eval = t->cfg->train.eval_every_epochs, save = t->cfg->train.save_every_epochs;
  const int64_t done = s->epoch + 1, every = t->cfg->train.save_every_steps;
  const bool last = done == t->cfg->train.epochs || s->step >= ii_trainer_total_steps(t);
  char best_path[II_RUN_PATH];
  bool best = false;
  if (last || (eval && done % eval == 0)) II_TRY(ii_trainer_validate(t, &best, err));
  s->epoch++;
  s->batch = 0;
  ii_params_zero_grad(t->params);
  ii_checkpoint_best_path(t->dir, best_path);
  if (best) II_TRY(ii_trainer_save_best(t, err));
  if (last || (save && done % save == 0) || (every && s->step % every == 0))
    return ii_trainer_save(t, best ? best_path : NULL, err);
  return II_OK;
}

static bool save_due(const ii_trainer *t) {
  const int64_t every = t->cfg->train.save_every_steps;
  const double minutes = t->cfg->train.save_every_minutes;
  return (every && t->state.step % every == 0) ||
         (minutes > 0 && ii_trainer_now() - t->saved_at >= 60 * minutes);
}

/* max_steps ended the run inside an epoch. */
static ii_status finish_inside_epoch(ii_trainer *t, ii_error *err) {
  bool best;
  char best_path[II_RUN_PATH];
  if (t->state.batch == 0 || t->state.validated_step == t->state.step) return II_OK;
  II_TRY(ii_trainer_validate(t, &best, err));
  ii_checkpoint_best_path(t->dir, best_path);
  if (best) II_TRY(ii_trainer_save_best(t, err));
  return ii_trainer_save(t, best ? best_path : NULL, err);
}

static ii_status loop(ii_trainer *t, ii_error *err) {
  while (!finished(t)) {
    if (t->state.batch < t->schedule.steps_per_epoch) II_TRY(train_step(t, err));
    if (stop_wanted(t)) return ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
    if (t->state.batch == t->schedule.steps_per_epoch)
      II_TRY(finish_epoch(t, err));
    else if (save_due(t))
      II_TRY(ii_trainer_save(t, NULL, err));
  }
  return finish_inside_epoch(t, err);
}

ii_status ii_trainer_run(ii_trainer *t, ii_error *err) {
  char spent[24], best[48] = "";
  const int64_t first = t->state.step;
  ii_trainer_banner(t);
  ii_trainer_pace_reset(t);
  ii_status s = loop(t, err);
  /* a request to stop also ends a validation half way; it will be made again */
  if (s == II_ERR_INTERRUPTED && stop_wanted(t)) return interrupt(t, err);
  II_TRY(s);
  ii_duration_text(ii_trainer_now() - t->opened_at, spent, sizeof spent);
  if (t->state.best_top1 >= 0)
    snprintf(best, sizeof best, "best top-1 %.2f %%%s, ", t->state.best_top1,
             t->state.best_is_ema ? " (average)" : "");
  if (t->state.step == first)
    ii_say_line(&t->say, II_SAY_NOTE, "nothing to do: %sthe run was complete at step %lld", best,
                (long long)t->state.step);
  else
    ii_say_line(&t->say, II_SAY_NOTE, "done: %s%lld steps in %s; weights, curves and log are in %s",
                best, (long long)(t->state.step - first), spent, t->dir);
  if (t->state.skipped_updates)
    ii_say_line(&t->say, II_SAY_NOTE, "%lld of %lld updates were skipped because fp16 overflowed",
                (long long)t->state.skipped_updates,
                (long long)(t->state.skipped_updates + t->state.updates));
  if (t->state.bad_files)
    ii_say_line(&t->say, II_SAY_WARNING, "%lld times a training image could not be used",
                (long long)t->state.bad_files);
  return II_OK;
}
