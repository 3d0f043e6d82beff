/* What a person sees while it trains, and the same numbers for metrics.jsonl. */
#include <math.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include "data/parallel.h"
#include "train/trainer_priv.h"

double ii_trainer_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t ii_trainer_total_steps(const ii_trainer *t) {
  int64_t all = t->cfg->train.epochs * t->schedule.steps_per_epoch, max = t->cfg->train.max_steps;
  return max && max < all ? max : all;
}

void ii_trainer_pace_reset(ii_trainer *t) {
  t->pace.begin = ii_trainer_now();
  t->pace.wait = 0;
  t->pace.steps = t->pace.images = 0;
}

void ii_duration_text(double seconds, char *text, size_t size) {
  long s = lround(fmin(seconds, 1e9));
  if (s >= 86400)
    snprintf(text, size, "%ldd%02ldh", s / 86400, s / 3600 % 24);
  else if (s >= 3600)
    snprintf(text, size, "%ldh%02ldm", s / 3600, s / 60 % 60);
  else if (s >= 60)
    snprintf(text, size, "%ldm%02lds", s / 60, s % 60);
  else
    snprintf(text, size, "%lds", s);
}

/* Peak of the process on the CPU; what the engine holds of a GPU. */
static int64_t memory_in_use(const ii_trainer *t) {
  struct rusage u;
  if (t->ctx->k.device == II_CUDA)
    return t->ctx->pool.reserved + ii_engine_scratch_bytes(&t->ctx->k);
  return getrusage(RUSAGE_SELF, &u) == 0 ? (int64_t)u.ru_maxrss * 1024 : 0;
}

static ii_train_record measure(const ii_trainer *t) {
  const ii_pace *p = &t->pace;
  const ii_train_state *s = &t->state;
  const double seconds = ii_trainer_now() - p->begin + 1e-9;
  const double left = (double)(ii_trainer_total_steps(t) - s->step);
  return (ii_train_record){
      .epoch = s->epoch + 1,
      .step = s->step,
      .loss = s->loss_count ? s->loss_sum / (double)s->loss_count : t->mean_loss,
      .lr = ii_schedule_lr(&t->schedule, t->optimizer.options.base_lr, s->step - 1),
      .grad_norm = t->device.grad_norm,
      .loss_scale = s->loss_scale,
      .skipped = s->skipped_updates,
      .images_per_second = (double)p->images / seconds,
      .data_wait = fmin(1.0, p->wait / seconds),
      .eta_seconds = left * p->seconds_per_step,
      .memory_bytes = memory_in_use(t)};
}

/* The line, with a bar for the epoch on a terminal. */
static void show(const ii_trainer *t, ii_say_kind kind, const ii_train_record *r) {
  enum { CELLS = 10 };
  char bar[CELLS + 4] = "", left[24], scale[64] = "";
  const int64_t n = t->schedule.steps_per_epoch;
  if (kind == II_SAY_PULSE) {
    const int full = (int)(CELLS * t->state.batch / n);
    bar[0] = '[';
    memset(bar + 1, '#', (size_t)full);
    memset(bar + 1 + full, '.', (size_t)(CELLS - full));
    strcpy(bar + 1 + CELLS, "] ");
  }
  ii_duration_text(r->eta_seconds, left, sizeof left);
  if (r->loss_scale > 0)
    snprintf(scale, sizeof scale, " scale %g skipped %lld", r->loss_scale, (long long)r->skipped);
  ii_say_line(&t->say, kind,
              "%sepoch %lld/%lld step %lld/%lld loss %.4f lr %.2e grad %.2f%s %.0f img/s "
              "data %.0f%% left %s mem %.2fG",
              bar, (long long)r->epoch, (long long)t->cfg->train.epochs, (long long)r->step,
              (long long)ii_trainer_total_steps(t), r->loss, r->lr, r->grad_norm, scale,
              r->images_per_second, 100 * r->data_wait, left,
              (double)r->memory_bytes / (double)(1 << 30));
}

/* Says once that the loader sets the pace. The loader's start is a part of the first window, which
 * does not count; the others are taken together until they make a second: less says little. */
static void advise(ii_trainer *t) {
  ii_pace *p = &t->pace;
  if (p->windows++ == 0 || p->advised) return;
  p->judged += ii_trainer_now() - p->begin;
  p->judged_wait += p->wait;
  if (p->judged < 1) return;
  const double share = fmin(1.0, p->judged_wait / p->judged);
  p->judged = p->judged_wait = 0;
  if (share <= 0.1) return;
  p->advised = true;
  const int threads = ii_loader_threads(t->loader), processors = ii_parallel_processors();
  const bool packed = t->cfg->data.format == ii_data_format_packed;
  ii_say_line(&t->say, II_SAY_WARNING,
              "training waited for images %.0f %% of the time of the last lines: the %d loader "
              "thread%s (data.workers; this process may use %d processor%s) cannot keep up; train "
              "--profile-data with this configuration shows where their time goes, and %s%s help",
              100 * share, threads, threads == 1 ? "" : "s", processors, processors == 1 ? "" : "s",
              threads < processors ? "more data.workers, smaller images (pack create --max-side)"
                                   : "more processors, smaller images (pack create --max-side)",
              packed ? "" : " or packed data (data.format = packed)");
}

ii_status ii_trainer_progress(ii_trainer *t, double waited, int64_t images, ii_error *err) {
  ii_pace *p = &t->pace;
  const double now = ii_trainer_now();
  p->wait += waited;
  p->steps++;
  p->images += images;
  const bool due = t->state.step % t->cfg->train.log_every_steps == 0;
  const bool pulse = now - p->pulsed > 0.2 && t->looked >= 0;
  if (!due && !pulse) return II_OK;
  const double per_step = (now - p->begin) / (double)p->steps;
  if (due || p->seconds_per_step == 0)
    p->seconds_per_step =
        p->seconds_per_step == 0 ? per_step : 0.8 * p->seconds_per_step + 0.2 * per_step;
  const ii_train_record r = measure(t);
  if (pulse) {
    show(t, II_SAY_PULSE, &r);
    p->pulsed = now;
  }
  if (!due) return II_OK;
  show(t, II_SAY_PROGRESS, &r);
  advise(t);
  t->mean_loss = r.loss;
  ii_trainer_new_mean(t);
  ii_trainer_pace_reset(t);
  return ii_metrics_train(&t->metrics, &r, err);
}
