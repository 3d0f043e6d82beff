#include "optim/schedule.h"
#include <math.h>

/* Python's int(epochs * n), as the official code counts: the product in double, truncated. */
static int64_t steps_of(const ii_schedule *s, double epochs) {
  return (int64_t)(epochs * (double)s->steps_per_epoch);
}

double ii_schedule_lr_factor(int64_t images_per_update, int64_t reference) {
  return reference == 0 ? 1.0 : (double)images_per_update / (double)reference;
}

ii_status ii_schedule_check(const ii_schedule *s, ii_error *err) {
  if (s->epochs < 1 || s->steps_per_epoch < 1)
    return ii_error_set(err, II_ERR_ARG,
                        "%lld epochs of %lld batches are no training run: there must be at least "
                        "one whole batch of training images (smaller batch_size, more images)",
                        (long long)s->epochs, (long long)s->steps_per_epoch);
  if (s->accumulation < 1 || s->accumulation > s->steps_per_epoch)
    return ii_error_set(err, II_ERR_ARG,
                        "accumulation_steps is %lld, but an epoch has only %lld batches, so the "
                        "weights would never be updated; use at most %lld",
                        (long long)s->accumulation, (long long)s->steps_per_epoch,
                        (long long)s->steps_per_epoch);
  if (s->kind == II_SCHEDULE_STEP && steps_of(s, s->decay_epochs) < 1)
    return ii_error_set(err, II_ERR_ARG,
                        "decay_epochs = %g is less than one batch; the step schedule needs at "
                        "least %g",
                        s->decay_epochs, 1.0 / (double)s->steps_per_epoch);
  if (s->kind == II_SCHEDULE_LINEAR &&
      steps_of(s, s->warmup_epochs) >= s->epochs * s->steps_per_epoch)
    return ii_error_set(err, II_ERR_ARG,
                        "warmup_epochs = %g leaves nothing of %lld epochs for the linear schedule; "
                        "make the warm-up shorter",
                        s->warmup_epochs, (long long)s->epochs);
  return II_OK;
}

double ii_schedule_value(const ii_schedule *s, double v, int64_t t) {
  const int64_t total = s->epochs * s->steps_per_epoch;
  const int64_t warmup = steps_of(s, s->warmup_epochs);
  if (t < warmup) return s->warmup_lr + (double)t * ((v - s->warmup_lr) / (double)warmup);
  switch (s->kind) {
  case II_SCHEDULE_LINEAR:
    return v - (v - v * s->linear_min_rate) * ((double)(t - warmup) / (double)(total - warmup));
  case II_SCHEDULE_STEP:
    return v * pow(s->decay_rate, (double)(t / steps_of(s, s->decay_epochs)));
  case II_SCHEDULE_COSINE:
    break;
  }
  if (t >= total) return s->min_lr;
  return s->min_lr + 0.5 * (v - s->min_lr) * (1.0 + cos(M_PI * (double)t / (double)total));
}

/* The last iteration before this one that ended with an update, or -1. */
static int64_t last_update_before(const ii_schedule *s, int64_t iteration) {
  const int64_t n = s->steps_per_epoch, a = s->accumulation;
  const int64_t epoch = iteration / n, within = iteration % n;
  if (within >= a) return epoch * n + within / a * a - 1;
  return epoch > 0 ? (epoch - 1) * n + n / a * a - 1 : -1;
}

double ii_schedule_lr(const ii_schedule *s, double v, int64_t iteration) {
  const int64_t t = last_update_before(s, iteration);
  if (t >= 0) return ii_schedule_value(s, v, t);
  return steps_of(s, s->warmup_epochs) > 0 ? s->warmup_lr : v;
}

bool ii_schedule_is_update(const ii_schedule *s, int64_t iteration) {
  return (iteration % s->steps_per_epoch + 1) % s->accumulation == 0;
}
