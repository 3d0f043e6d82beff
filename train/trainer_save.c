/* Checkpoints and validation of a run. */
#include <string.h>
#include "train/setup.h"
#include "train/trainer_priv.h"

static ii_status write_checkpoint(ii_trainer *t, const char *path, ii_error *err) {
  return ii_checkpoint_save(
      path,
      &(ii_checkpoint_content){.state = t->state,
                               .config = t->config_text,
                               .class_count = t->classes ? t->cfg->model.num_classes : 0,
                               .classes = t->classes,
                               .params = t->params,
                               .optimizer = &t->optimizer},
      err);
}

ii_status ii_trainer_save(ii_trainer *t, const char *from, ii_error *err) {
  char path[II_RUN_PATH];
  II_TRY(ii_trainer_look(t, err));
  ii_checkpoint_path(t->dir, t->state.step, path);
  if (from)
    II_TRY(ii_checkpoint_link(from, path, err));
  else
    II_TRY(write_checkpoint(t, path, err));
  t->saved_at = ii_trainer_now();
  return ii_checkpoint_prune(t->dir, t->state.step, t->cfg->train.keep_last, err);
}

ii_status ii_trainer_save_best(ii_trainer *t, ii_error *err) {
  char path[II_RUN_PATH];
  II_TRY(ii_trainer_look(t, err));
  ii_checkpoint_best_path(t->dir, path);
  return write_checkpoint(t, path, err);
}

static void bad_file(void *user, const char *path, const char *reason) {
  ii_trainer *t = user;
  ii_say_line(&t->say, II_SAY_WARNING, "%s cannot be used and counts as wrong: %s", path, reason);
}

static ii_status measure(ii_trainer *t, bool ema, ii_accuracy *a, ii_error *err) {
  ii_loader_config l = ii_setup_loader(t->cfg, t->val_set, false);
  ii_loader *loader;
  l.on_bad = bad_file;
  l.context = t;
  ii_input_loader_memory(&l, t->ctx);
  II_TRY(ii_loader_new(&l, &loader, err));
  const ii_validate_options o = {.img_size = t->cfg->data.img_size,
                                 .columns = t->val_columns,
                                 .column_count = ii_dataset_num_classes(t->val_set),
                                 .stop = t->o.stop,
                                 .say = t->say,
                                 .title = ema ? "validation of the average" : "validation"};
  if (ema) ii_ema_swap(&t->optimizer.ema);
  ii_status s = ii_validate(t->model, loader, &o, a, err);
  if (ema) ii_ema_swap(&t->optimizer.ema);
  ii_loader_free(loader);
  return s;
}

ii_status ii_trainer_validate(ii_trainer *t, bool *best, ii_error *err) {
  const bool with_ema = t->optimizer.ema.count > 0;
  ii_accuracy a[2];
  char ema_text[96] = "";
  *best = false;
  if (t->state.validated_step == t->state.step) return II_OK;
  II_TRY(ii_trainer_look(t, err));
  for (int ema = 0; ema <= with_ema; ema++) II_TRY(measure(t, ema, &a[ema], err));
  for (int ema = 0; ema <= with_ema; ema++) {
    II_TRY(
        ii_metrics_validation(&t->metrics, t->state.epoch + 1, t->state.step, ema, &a[ema], err));
    if (ii_top1(&a[ema]) <= t->state.best_top1) continue;
    t->state.best_top1 = ii_top1(&a[ema]);
    t->state.best_is_ema = ema;
    *best = true;
  }
  t->state.validated_step = t->state.step;
  if (with_ema)
    snprintf(ema_text, sizeof ema_text, "  |  average: top-1 %.2f %%  top-5 %.2f %%  loss %.4f",
             ii_top1(&a[1]), ii_top5(&a[1]), a[1].loss);
  ii_say_line(&t->say, II_SAY_NOTE,
              "epoch %lld/%lld  validation: top-1 %.2f %%  top-5 %.2f %%  loss %.4f%s%s",
              (long long)t->state.epoch + 1, (long long)t->cfg->train.epochs, ii_top1(&a[0]),
              ii_top5(&a[0]), a[0].loss, ema_text, *best ? "  (best so far)" : "");
  if (!a[0].finite || (with_ema && !a[1].finite))
    ii_say_line(&t->say, II_SAY_WARNING, "some outputs of the validation are not finite numbers");
  ii_trainer_pace_reset(t);
  return II_OK;
}
