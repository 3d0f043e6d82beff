/* `train --profile-data`: the configured training loader alone, without a model: how many images
 * per second it can give, and where its time goes. */
#ifndef II_DATA_PROFILE_H
#define II_DATA_PROFILE_H
#include <signal.h>
#include "data/loader.h"
#include "train/config.h"
#include "train/report.h"

typedef struct {
  const ii_config *config; /* checked */
  double seconds;          /* of each measurement, > 0; each goes on to the end of a batch */
  double rate;             /* images per second to say data.workers for; 0: some round numbers */
  const volatile sig_atomic_t *stop; /* nonzero: end after the batch in work. May be NULL */
  ii_say say;                        /* what is being measured; images that cannot be used */
} ii_data_profile_options;

/* One measurement, begun behind a first batch. */
typedef struct {
  int threads;
  double seconds; /* elapsed */
  int64_t batches, bad_files;
  ii_stage_times times; /* images 0: it was stopped before there was anything */
} ii_data_profile_run;

typedef struct {
  ii_data_profile_run runs[2]; /* with the configured threads; with one, if those are more */
  int run_count;
  double decode_seconds; /* processor time of reading and decoding ... */
  int64_t decode_images; /* ... whole images, and no more */
  int64_t images;        /* of the data set */
  int64_t indexed;       /* of these, in the crop index */
  int processors;        /* this process may use */
  bool stopped;
} ii_data_profile;

/* Errors: those of data set and loader. When it is stopped the result has what was measured. */
ii_status ii_data_profile_measure(const ii_data_profile_options *options, ii_data_profile *profile,
                                  ii_error *err);

/* The threads that `rate` images per second need: processor time, and what reading waits for. */
int64_t ii_data_profile_workers(const ii_data_profile *profile, double rate);

/* The report, in new memory of the caller. Errors: II_ERR_MEMORY. */
ii_status ii_data_profile_text(const ii_data_profile_options *options,
                               const ii_data_profile *profile, char **text, ii_error *err);

#endif
