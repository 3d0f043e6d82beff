/* Everything before the first step. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "train/setup.h"
#include "train/trainer_priv.h"
#include "train/weights.h"

/* ---- the output folder ------------------------------------------------------------------------*/

static ii_status make_folders(const char *dir, ii_error *err) {
  char path[II_RUN_PATH];
  snprintf(path, sizeof path, "%s", dir);
  for (char *p = path + 1;; p++) {
    if (*p && *p != '/') continue;
    const char end = *p;
    *p = 0;
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
      return ii_error_set(err, II_ERR_IO, "the folder %s (train.output_dir) cannot be made: %s",
                          path, strerror(errno));
    if (!end) return II_OK;
    *p = end;
  }
}

/* Makes the folder, and keeps a second run from writing into it. */
static ii_status take_folder(ii_trainer *t, ii_error *err) {
  II_TRY(make_folders(t->dir, err));
  t->lock = open(t->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (t->lock < 0)
    return ii_error_set(err, II_ERR_IO, "%s (train.output_dir) cannot be opened: %s", t->dir,
                        strerror(errno));
  if (flock(t->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return ii_error_set(err, II_ERR_IO,
                        "another run is writing to %s; wait for it or take another "
                        "train.output_dir",
                        t->dir);
  if (access(t->dir, W_OK) != 0)
    return ii_error_set(err, II_ERR_IO, "%s (train.output_dir) cannot be written to: %s", t->dir,
                        strerror(errno));
  return II_OK;
}

/* The caller's lines also go to train.log, pulses excepted. */
static void say(void *user, ii_say_kind kind, const char *line) {
  ii_trainer *t = user;
  if (t->o.say.fn) t->o.say.fn(t->o.say.user, kind, line);
  if (!t->log || kind == II_SAY_PULSE) return;
  char stamp[32];
  struct tm tm;
  time_t now = time(NULL);
  if (!localtime_r(&now, &tm) || !strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &tm))
    stamp[0] = 0;
  fprintf(t->log, "%s  %s%s\n", stamp, kind == II_SAY_WARNING ? "warning: " : "", line);
  fflush(t->log);
}

static ii_status open_log(ii_trainer *t, ii_error *err) {
  char path[II_RUN_PATH];
  snprintf(path, sizeof path, "%s/train.log", t->dir);
  t->log = fopen(path, "a");
  if (t->log) return II_OK;
  return ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
}

/* ---- data and model ---------------------------------------------------------------------------*/

static void bad_file(void *user, const char *path, const char *reason) {
  ii_trainer *t = user;
  ii_say_line(&t->say, II_SAY_WARNING, "%s cannot be used, the next image takes its place: %s",
              path, reason);
}

static void stale_entry(void *user, const char *path, const char *what) {
  ii_trainer *t = user;
  ii_say_line(&t->say, II_SAY_WARNING, "%s %s", path, what);
}

static ii_status open_data(ii_trainer *t, ii_error *err) {
  ii_config *cfg = &t->o.config;
  II_TRY(ii_setup_dataset(cfg, true, &t->train_set, err));
  II_TRY(ii_setup_classes(cfg, t->train_set, &t->say, err));
  II_TRY(ii_setup_dataset(cfg, false, &t->val_set, err));
  II_TRY(ii_setup_columns(cfg, t->val_set, &t->val_columns, err));
  if (!t->val_columns && ii_dataset_class_name(t->train_set, 0) &&
      ii_dataset_class_name(t->val_set, 0) &&
      ii_dataset_check_same_classes(t->train_set, t->val_set, err) != II_OK)
    return ii_error_prefix(err, "%.300s/train and val", cfg->data.root);
  const int64_t classes = cfg->model.num_classes;
  /* outputs beyond the classes of the data have no names */
  II_TRY(ii_setup_columns(cfg, t->val_set, &t->val_columns, err));
  if (!t->val_columns && ii_dataset_class_name(t->train_set, 0) &&
      ii_dataset_num_classes(t->train_set) == classes) {
    t->classes = calloc((size_t)classes, sizeof *t->classes);
    if (!t->classes) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
    for (int64_t i = 0; i < classes; i++) t->classes[i] = ii_dataset_class_name(t->train_set, i);
  }
  return II_OK;
}

static ii_status open_context(ii_trainer *t, ii_error *err) {
  const ii_config *cfg = t->cfg;
  t->ctx = ii_ctx_open(&(ii_ctx_options){.device = t->o.device,
                                         .index = t->o.device_index,
                                         .threads = (int)cfg->train.threads,
                                         .real = II_F32,
                                         .compute = ii_setup_compute(cfg, t->o.device),
                                         .seed = (uint64_t)cfg->train.seed},
                       err);
  return t->ctx ? II_OK : err->status;
}

static ii_status open_loader(ii_trainer *t, ii_error *err) {
  const ii_config *cfg = t->cfg;
  ii_loader_config l = ii_setup_loader(cfg, t->train_set, true);
  l.on_bad = bad_file;
  l.on_stale = stale_entry;
  l.context = t;
  ii_input_loader_memory(&l, t->ctx);
  if (ii_loader_new(&l, &t->loader, err) != II_OK)
    return ii_error_prefix(err, "training images (data.batch_size = %lld)",
                           (long long)cfg->data.batch_size);
  t->schedule = ii_setup_schedule(cfg, ii_loader_batches_per_epoch(t->loader));
  return ii_schedule_check(&t->schedule, err);
}

static ii_status context_status(const ii_trainer *t, ii_error *err) {
  return ii_ok(t->ctx) ? II_OK : ii_error_set(err, t->ctx->err.status, "%s", t->ctx->err.text);
}

static ii_status open_model(ii_trainer *t, ii_error *err) {
  const ii_config *cfg = t->cfg;
  const ii_model_config m = ii_setup_model(cfg);
  t->model = ii_model_create(t->ctx, &m, err);
  if (!t->model) return err->status;
  t->params = ii_model_params(t->model);
  ii_model_init(t->model, (uint64_t)cfg->train.seed);
  const ii_optimizer_options o = ii_setup_optimizer(cfg);
  if (ii_ok(t->ctx)) ii_optimizer_init(&t->optimizer, t->params, &o);
  if (ii_ok(t->ctx))
    ii_input_init(&t->input, t->ctx, cfg->data.batch_size, cfg->data.img_size,
                  ii_dataset_has_meta(t->train_set));
  II_TRY(context_status(t, err));
  return ii_step_init(&t->step,
                      &(ii_step_options){.cfg = cfg,
                                         .model = t->model,
                                         .optimizer = &t->optimizer,
                                         .schedule = &t->schedule,
                                         .say = t->say},
                      err);
}

/* ---- weights and position ---------------------------------------------------------------------*/

static ii_status load_init(ii_trainer *t, const char *path, ii_error *err) {
  char text[1024];
  ii_h5 *f;
  ii_weights_report report;
  const ii_weights_options o = {.ema = t->o.init_ema,
                                .partial = t->o.init_partial,
                                .rand_init_head = t->cfg->train.rand_init_ft_head};
  II_TRY(ii_h5_open(path, &f, err));
  ii_status s = ii_weights_load(f, t->params, &o, &report, err);
  ii_h5_close(f);
  II_TRY(s);
  ii_ema_reset(&t->optimizer.ema);
  ii_weights_report_text(&report, text, sizeof text);
  const bool whole = !report.missing && !report.unexpected && !report.mismatched;
  ii_say_line(&t->say, whole ? II_SAY_NOTE : II_SAY_WARNING, "weights from %s: %s", path, text);
  return context_status(t, err);
}

static void skipped(void *user, const char *why) {
  ii_trainer *t = user;
  ii_say_line(&t->say, II_SAY_WARNING, "skipped: %s", why);
}

/* Names every key that is not as it was when the checkpoint was written. */
static ii_status compare_config(ii_trainer *t, ii_h5 *f, ii_error *err) {
  char *text, key[96], was[II_CONFIG_STRING + 8], is[II_CONFIG_STRING + 8];
  ii_config *old = malloc(sizeof *old);
  if (!old) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  ii_status s = ii_checkpoint_config(f, &text, err);
  if (s == II_OK) {
    s = ii_config_parse_text(old, text, ii_h5_path(f), err);
    free(text);
  }
  for (int64_t i = 0; s == II_OK && ii_config_key(i, key, sizeof key); i++) {
    ii_config_value(old, key, was, sizeof was);
    ii_config_value(t->cfg, key, is, sizeof is);
    if (!strcmp(was, is)) continue;
    if (!strncmp(key, "model.", 6) && strcmp(key, "model.name") && strcmp(key, "model.checkpoint"))
      s = ii_error_set(err, II_ERR_ARG,
                       "%s was trained with %s = %.200s, this run has %.200s; to reuse its weights "
                       "in a new run, use --init",
                       ii_h5_path(f), key, was, is);
    else
      ii_say_line(&t->say, II_SAY_NOTE, "changed since the checkpoint: %s was %s, is %s", key, was,
                  is);
  }
  free(old);
  return s;
}

static ii_status compare_classes(ii_trainer *t, ii_h5 *f, ii_error *err) {
  char **names;
  int64_t n;
  II_TRY(ii_checkpoint_classes(f, &names, &n, err));
  ii_status s = II_OK;
  if (n && t->classes && n != t->cfg->model.num_classes)
    s = ii_error_set(err, II_ERR_ARG, "%s has %lld classes, the data set %lld", ii_h5_path(f),
                     (long long)n, (long long)t->cfg->model.num_classes);
  for (int64_t i = 0; i < n && t->classes && s == II_OK; i++)
    if (strcmp(names[i], t->classes[i]) != 0)
      s = ii_error_set(err, II_ERR_ARG,
                       "%s was trained with class %lld = \"%.100s\", the data set has \"%.100s\" "
                       "there; this is another data set",
                       ii_h5_path(f), (long long)i, names[i], t->classes[i]);
  free(names);
  return s;
}

/* Which images an epoch has, and when, follows from their order in the data set: with other images
 * the position of the checkpoint is not what it was. Takes the present ones into t->state. */
static ii_status compare_data(ii_trainer *t, const ii_train_state *now, ii_h5 *f, ii_error *err) {
  ii_train_state *s = &t->state;
  const bool inside = s->batch > 0 && s->batch < s->steps_per_epoch;
  char what[120] = "as many, with other names, labels or order";
  const int64_t was = s->data_images;
  const bool same = was == now->data_images && s->data_checksum == now->data_checksum;
  s->data_images = now->data_images;
  s->data_checksum = now->data_checksum;
  if (was == 0 || same) return II_OK;
  if (was != now->data_images)
    snprintf(what, sizeof what, "%lld then, %lld now", (long long)was, (long long)now->data_images);
  if (inside && !t->o.accept_changed_data)
    return ii_error_set(err, II_ERR_ARG,
                        "the training images are not those of %s (%s; a skip list counts): the "
                        "rest of its epoch %lld would show some images again and others not at "
                        "all; --accept-changed-data goes on all the same, a checkpoint from the "
                        "end of an epoch needs no flag",
                        ii_h5_path(f), what, (long long)s->epoch + 1);
  ii_say_line(&t->say, II_SAY_WARNING,
              "the training images are not those of the checkpoint (%s): from here on their order "
              "is another one than without the change%s",
              what,
              inside ? ", and the rest of this epoch shows some again and others not at all" : "");
  return II_OK;
}

/* A run that goes on from an older checkpoint would leave newer ones of another history behind. */
static ii_status check_newer(ii_trainer *t, const char *from, ii_error *err) {
  char **paths;
  int64_t n;
  char mine[II_RUN_PATH];
  II_TRY(ii_checkpoint_find(t->dir, &paths, &n, err));
  ii_checkpoint_path(t->dir, t->state.step, mine);
  ii_status s = II_OK;
  if (n && strcmp(paths[0], mine) > 0 && strstr(paths[0], "/checkpoint-"))
    s = ii_error_set(err, II_ERR_ARG,
                     "%s is of step %lld, and %s is newer; remove what is newer or take another "
                     "train.output_dir",
                     from, (long long)t->state.step, paths[0]);
  free(paths);
  return s;
}

static ii_status restore(ii_trainer *t, ii_h5 *f, ii_error *err) {
  ii_train_state *s = &t->state;
  const ii_train_state now = *s;
  const int64_t n = t->schedule.steps_per_epoch;
  II_TRY(ii_checkpoint_state(f, s, err));
  II_TRY(compare_config(t, f, err));
  II_TRY(compare_classes(t, f, err));
  if (s->steps_per_epoch != n)
    return ii_error_set(err, II_ERR_ARG,
                        "%s counts %lld steps per epoch, this run has %lld: the data or the batch "
                        "size changed; to reuse its weights in a new run, use --init",
                        ii_h5_path(f), (long long)s->steps_per_epoch, (long long)n);
  II_TRY(compare_data(t, &now, f, err));
  II_TRY(ii_checkpoint_restore(f, t->params, &t->optimizer, err));
  ii_loader_seek(t->loader, s->epoch, s->batch);
  ii_say_line(&t->say, II_SAY_NOTE, "resumed from %s: epoch %lld, batch %lld, step %lld",
              ii_h5_path(f), (long long)s->epoch + 1, (long long)s->batch, (long long)s->step);
  return context_status(t, err);
}

/* Opens what is to be resumed; *file stays NULL for a run that begins. */
static ii_status find_start(ii_trainer *t, ii_h5 **file, ii_error *err) {
  char **paths;
  int64_t n;
  *file = NULL;
  if (t->o.resume && strcmp(t->o.resume, "auto") != 0) return ii_h5_open(t->o.resume, file, err);
  II_TRY(ii_checkpoint_find(t->dir, &paths, &n, err));
  ii_status s = II_OK;
  if (t->o.resume) s = ii_checkpoint_open_newest(t->dir, file, skipped, t, err);
  if (s == II_OK && n && !t->o.resume)
    s = ii_error_set(err, II_ERR_ARG,
                     "%s holds the run of %s: --resume auto goes on with it; for a new run take "
                     "another train.output_dir or remove that folder",
                     t->dir, paths[0]);
  if (s == II_OK && n && t->o.resume && !*file)
    s = ii_error_set(err, II_ERR_FORMAT,
                     "none of the %lld checkpoints in %s can be used; remove them to start again",
                     (long long)n, t->dir);
  free(paths);
  if (s == II_OK && t->o.resume && !*file)
    ii_say_line(&t->say, II_SAY_NOTE, "no checkpoint in %s yet: starting from the beginning",
                t->dir);
  return s;
}

static ii_status start(ii_trainer *t, ii_error *err) {
  ii_h5 *f;
  char best[II_RUN_PATH];
  const char *init = t->o.init ? t->o.init : *t->cfg->train.init ? t->cfg->train.init : NULL;
  t->state = (ii_train_state){.steps_per_epoch = t->schedule.steps_per_epoch,
                              .seed = t->cfg->train.seed,
                              .validated_step = -1,
                              .data_images = ii_dataset_size(t->train_set),
                              .data_checksum = ii_dataset_fingerprint(t->train_set),
                              .best_top1 = -1};
  II_TRY(find_start(t, &f, err));
  if (!f) return init ? load_init(t, init, err) : II_OK;
  ii_status s = restore(t, f, err);
  if (s == II_OK && strcmp(t->o.resume, "auto") != 0) s = check_newer(t, t->o.resume, err);
  ii_h5_close(f);
  /* resumed into another folder: its best.h5 is that of the next validation */
  ii_checkpoint_best_path(t->dir, best);
  if (access(best, F_OK) != 0) t->state.best_top1 = -1;
  return s;
}

/* ---- open and close ---------------------------------------------------------------------------*/

static ii_status open_all(ii_trainer *t, ii_error *err) {
  II_TRY(open_data(t, err));
  II_TRY(open_context(t, err));
  II_TRY(open_loader(t, err));
  II_TRY(take_folder(t, err));
  II_TRY(open_log(t, err));
  II_TRY(ii_config_text(t->cfg, &t->config_text, err));
  II_TRY(open_model(t, err));
  II_TRY(start(t, err));
  return ii_metrics_open(&t->metrics, t->dir, t->state.step, t->state.validated_step, err);
}

ii_status ii_trainer_open(const ii_trainer_options *o, ii_trainer **trainer, ii_error *err) {
  ii_trainer *t = calloc(1, sizeof *t);
  *trainer = NULL;
  if (!t) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  t->o = *o;
  t->cfg = &t->o.config;
  t->dir = t->cfg->train.output_dir;
  t->say = (ii_say){say, t};
  t->lock = -1;
  t->looked = -1;
  t->mean_loss = NAN;
  t->opened_at = t->saved_at = ii_trainer_now();
  ii_status s = open_all(t, err);
  if (s == II_OK)
    *trainer = t;
  else
    ii_trainer_close(t);
  return s;
}

void ii_trainer_close(ii_trainer *t) {
  if (!t) return;
  ii_metrics_close(&t->metrics);
  ii_step_destroy(&t->step);
  ii_input_destroy(&t->input);
  ii_loader_free(t->loader); /* its memory is the context's */
  if (t->optimizer.params) ii_optimizer_destroy(&t->optimizer);
  if (t->model) ii_model_destroy(t->model);
  if (t->ctx) ii_ctx_close(t->ctx);
  ii_dataset_free(t->train_set);
  ii_dataset_free(t->val_set);
  free(t->val_columns);
  free(t->classes);
  free(t->config_text);
  if (t->log) fclose(t->log);
  if (t->lock >= 0) close(t->lock);
  free(t);
}

/* ---- the banner -------------------------------------------------------------------------------*/

static void class_names(const ii_trainer *t, char *text, size_t size) {
  const int64_t n = ii_dataset_num_classes(t->train_set);
  size_t at = (size_t)snprintf(text, size, "%lld classes", (long long)n);
  for (int64_t i = 0; i < n && i < 4 && ii_dataset_class_name(t->train_set, i) && at < size; i++)
    at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : ": ",
                           ii_dataset_class_name(t->train_set, i));
  if (n > 4 && ii_dataset_class_name(t->train_set, 0) && at < size)
    snprintf(text + at, size - at, ", ...");
}

void ii_trainer_banner(const ii_trainer *t) {
  static const char *const schedules[] = {"cosine", "linear", "step"};
  const ii_config *c = t->cfg;
  const ii_say *s = &t->say;
  char classes[256], ema[48] = "no average", scale[48] = "", where[80];
  class_names(t, classes, sizeof classes);
  if (t->optimizer.ema.count) snprintf(ema, sizeof ema, "average %g", c->train.ema_decay);
  ii_say_line(s, II_SAY_NOTE, "model   %s (%s), %.2f M parameters, %lld px, drop path %g%s",
              c->model.name, c->model.core_op == ii_model_core_op_DCNv4 ? "DCNv4" : "DCNv3",
              1e-6 * (double)ii_params_numel(t->params), (long long)c->data.img_size,
              c->model.drop_path_rate, c->model.checkpoint ? ", activation checkpointing" : "");
  ii_say_line(s, II_SAY_NOTE, "data    %s: %lld training and %lld validation images, %s",
              c->data.root, (long long)ii_dataset_size(t->train_set),
              (long long)ii_dataset_size(t->val_set), classes);
  if (t->optimizer.options.loss_scale > 0)
    snprintf(scale, sizeof scale, ", loss scale %g", t->optimizer.options.loss_scale);
  if (t->o.device == II_CPU)
    snprintf(where, sizeof where, "cpu, %d threads", t->ctx->k.threads);
  else
    snprintf(where, sizeof where, "%s, GPU %d", ii_cuda_engine_name(), t->o.device_index);
  ii_say_line(s, II_SAY_NOTE, "device  %s, %s%s; %d threads load images", where,
              ii_setup_precision_name(t->ctx->compute), scale, ii_loader_threads(t->loader));
  ii_say_line(s, II_SAY_NOTE,
              "recipe  %s, rate %.3g (%s, %g warm-up epochs), batch %lld x %lld, decay %g, "
              "clip %g, smoothing %g, %s",
              c->train.optimizer == ii_train_optimizer_adamw ? "adamw" : "sgd",
              t->optimizer.options.base_lr, schedules[c->train.schedule], c->train.warmup_epochs,
              (long long)c->data.batch_size, (long long)c->train.accumulation_steps,
              c->train.weight_decay, c->train.clip_grad, c->train.label_smoothing, ema);
  ii_say_line(s, II_SAY_NOTE, "run     %lld epochs of %lld steps%s, seed %lld; files in %s",
              (long long)c->train.epochs, (long long)t->schedule.steps_per_epoch,
              c->train.max_steps ? " (max_steps set)" : "", (long long)c->train.seed, t->dir);
}
