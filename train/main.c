/* train: trains a model from a configuration. See --help. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "kernels/device.h"
#include "train/cli.h"
#include "train/doctor.h"
#include "train/plan.h"
#include "train/data_profile.h"
#include "train/setup.h"
#include "train/trainer.h"
#include "train/process.h"

/* Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage, and: */
enum { EXIT_RESUMABLE = 85 }; /* stopped by a signal after saving: run again with --resume auto */

/* ---- signals ---------------------------------------------------------------------------------*/

static volatile sig_atomic_t stop_signal;
static volatile sig_atomic_t stop_second; /* when the first one came, in seconds */

/* The first signal asks for a stop, the second one ends the program at once. Schedulers deliver
 * SIGTERM twice (to the process and to its group), so one within a second of the first is part of
 * it. */
static void on_signal(int sig) {
  struct timespec now = {0};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const sig_atomic_t second = (sig_atomic_t)(now.tv_sec & 0x3fffffff);
  if (stop_signal) {
    if (sig == SIGTERM && stop_signal == SIGTERM && second - stop_second <= 1) return;
    _exit(128 + sig);
  }
  stop_second = second;
  stop_signal = sig;
}

static void catch_signals(void) {
  static const int caught[] = {SIGTERM, SIGINT, SIGUSR1};
  struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigemptyset(&a.sa_mask);
  for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) sigaction(caught[i], &a, NULL);
  signal(SIGPIPE, SIG_IGN); /* a closed pipe behind the progress must not end the run */
}

/* ---- output ----------------------------------------------------------------------------------*/

static void print_line(void *user, ii_say_kind kind, const char *line) {
  const bool terminal = *(const bool *)user;
  const char *clear = terminal ? "\r\033[K" : "";
  switch (kind) {
  case II_SAY_NOTE:
    printf("%s%s\n", clear, line);
    break;
  case II_SAY_WARNING:
    printf("%swarning: %s\n", clear, line);
    break;
  case II_SAY_PROGRESS:
    if (!terminal) printf("%s\n", line);
    break;
  case II_SAY_PULSE:
    /* a line that wraps could not be overwritten */
    if (terminal) printf("%s%.*s", clear, ii_cli_columns(stdout) - 1, line);
    break;
  }
  fflush(stdout);
}

static int fail(const ii_error *err, int code) {
  fprintf(stderr, "train: %s\n", err->text);
  return code;
}

/* ---- the command line ------------------------------------------------------------------------*/

enum {
  F_CONFIG,
  F_SET,
  F_RESUME,
  F_ACCEPT_DATA,
  F_INIT,
  F_INIT_EMA,
  F_PARTIAL,
  F_DEVICE,
  F_PLAN,
  F_JSON,
  F_PROFILE,
  F_PROFILE_SECONDS,
  F_PROFILE_RATE,
  F_DOCTOR,
  F_HELP,
  F_KEYS,
  F_MARKDOWN,
  F_VERSION
};

static const ii_flag FLAGS[] = {
    {"--config", "NAME", "configuration file, here or in configs/, e.g. quickstart.cfg"},
    {"--set", "KEY=VALUE", "overrides one key of the configuration; may be repeated"},
    {"--resume", "auto|PATH",
     "go on from the newest whole checkpoint of train.output_dir (if there "
     "is one), or from PATH"},
    {"--accept-changed-data", NULL,
     "with --resume: go on in the middle of an epoch although the training images are not those of "
     "the checkpoint"},
    {"--init", "PATH", "start from the weights of this HDF5 file (goes before train.init)"},
    {"--init-ema", NULL, "of that file take the moving average"},
    {"--partial", NULL, "let --init load what fits, instead of refusing a partial match"},
    {"--device", "cpu|cuda|cuda:N", "where to compute; cpu is the default"},
    {"--plan", NULL, "print parameters, multiply-adds and peak memory, and train nothing"},
    {"--json", NULL, "with --plan: as one JSON object"},
    {"--profile-data", NULL,
     "run the loader of the training images alone, with the configured threads and with one, print "
     "images/s and where the time goes, and train nothing"},
    {"--profile-seconds", "S", "with --profile-data: for how long each time; 10 is the default"},
    {"--profile-rate", "N", "with --profile-data: say how many threads N images/s need"},
    {"--doctor", NULL, "what this program runs on, and a test of every kernel; trains nothing"},
    {"--help", NULL, "this text and all configuration keys"},
    {"--keys", NULL, "the configuration keys alone"},
    {"--markdown", NULL, "the configuration keys as a page of documentation"},
    {"--version", NULL, "the version"},
    {0}};

typedef struct {
  ii_trainer_options options;
  const char *config, **sets;
  int n_sets;
  bool plan, json, doctor, device_given, profile;
  double profile_seconds, profile_rate; /* 0: not given */
} command;

static void print_help(void) {
  printf("usage: train --config NAME [flags]\n\nTrains an image classifier.\n\n");
  ii_cli_help(FLAGS, stdout);
  printf("\nSIGTERM, SIGINT (Ctrl-C) and SIGUSR1 finish the step, save a checkpoint and leave with "
         "exit code %d;\na second signal leaves at once. They end --profile-data with what it has "
         "measured. Exit codes: 0 done, 1 error, 2 wrong "
         "usage.\n\n",
         EXIT_RESUMABLE);
  ii_config_help(stdout);
}

/* Flags that print and leave. */
static bool print_info(int flag) {
  if (flag == F_HELP)
    print_help();
  else if (flag == F_KEYS)
    ii_config_help(stdout);
  else if (flag == F_MARKDOWN)
    ii_config_markdown(stdout);
  else if (flag == F_VERSION)
    printf("internimage.c %s\n", II_VERSION);
  else
    return false;
  return true;
}

static ii_status take_number(const char *flag, const char *text, double least, double *out,
                             ii_error *err) {
  char *end;
  *out = strtod(text, &end);
  if (end != text && !*end && *out >= least && *out <= 1e9) return II_OK;
  return ii_error_set(err, II_ERR_ARG, "%s takes a number from %g on, not '%.100s'", flag, least,
                      text);
}

static ii_status take_flag(command *c, int flag, const char *value, ii_error *err) {
  switch (flag) {
  case F_CONFIG:
    c->config = value;
    break;
  case F_SET:
    c->sets[c->n_sets++] = value;
    break;
  case F_RESUME:
    c->options.resume = value;
    break;
  case F_ACCEPT_DATA:
    c->options.accept_changed_data = true;
    break;
  case F_INIT:
    c->options.init = value;
    break;
  case F_INIT_EMA:
    c->options.init_ema = true;
    break;
  case F_PARTIAL:
    c->options.init_partial = true;
    break;
  case F_DEVICE:
    c->device_given = true;
    return ii_device_parse(value, &c->options.device, &c->options.device_index, err);
  case F_PLAN:
    c->plan = true;
    break;
  case F_JSON:
    c->json = true;
    break;
  case F_PROFILE:
    c->profile = true;
    break;
  case F_PROFILE_SECONDS:
    return take_number("--profile-seconds", value, 0.1, &c->profile_seconds, err);
  case F_PROFILE_RATE:
    return take_number("--profile-rate", value, 1, &c->profile_rate, err);
  case F_DOCTOR:
    c->doctor = true;
    break;
  }
  return II_OK;
}

/* Flags that say nothing without another. */
static ii_status check_company(const command *c, ii_error *err) {
  if (c->json && !c->plan) return ii_error_set(err, II_ERR_ARG, "--json goes with --plan");
  if ((c->profile_seconds > 0 || c->profile_rate > 0) && !c->profile)
    return ii_error_set(err, II_ERR_ARG, "%s goes with --profile-data",
                        c->profile_seconds > 0 ? "--profile-seconds" : "--profile-rate");
  if (c->profile && c->plan)
    return ii_error_set(err, II_ERR_ARG, "give one of --plan and --profile-data");
  if (c->options.accept_changed_data && !c->options.resume)
    return ii_error_set(err, II_ERR_ARG, "--accept-changed-data goes with --resume");
  return II_OK;
}

/* *done is set when a flag like --help has answered. */
static ii_status parse(command *c, int argc, char **argv, bool *done, ii_error *err) {
  ii_cli cli = ii_cli_begin(argc, argv, FLAGS);
  const char *value;
  for (int flag;;) {
    II_TRY(ii_cli_next(&cli, &flag, &value, err));
    if (flag < 0) break;
    if ((*done = print_info(flag))) return II_OK;
    II_TRY(take_flag(c, flag, value, err));
  }
  if (c->doctor) return II_OK;
  if (!c->config)
    return ii_error_set(err, II_ERR_ARG,
                        "--config NAME is missing, e.g. --config quickstart.cfg "
                        "(--help explains)");
  II_TRY(check_company(c, err));
  if (c->options.init && c->options.resume && strcmp(c->options.resume, "auto") != 0)
    return ii_error_set(err, II_ERR_ARG,
                        "--init begins a run and --resume PATH goes on with one: give one of them");
  return II_OK;
}

static ii_status load_config(command *c, ii_error *err) {
  ii_config *cfg = &c->options.config;
  II_TRY(ii_config_load(cfg, c->config, err));
  for (int i = 0; i < c->n_sets; i++) II_TRY(ii_config_set(cfg, c->sets[i], err));
  if ((c->options.init_ema || c->options.init_partial) && !c->options.init && !*cfg->train.init)
    return ii_error_set(err, II_ERR_ARG, "%s goes with --init PATH",
                        c->options.init_ema ? "--init-ema" : "--partial");
  return ii_config_check(cfg, err);
}

/* ---- what it does ----------------------------------------------------------------------------*/

/* The number of classes, from the data if need be; no image is read. */
static ii_status plan_classes(ii_config *cfg, ii_error *err) {
  ii_dataset *d;
  if (cfg->model.num_classes) return II_OK;
  if (ii_setup_dataset(cfg, true, &d, err) != II_OK)
    return ii_error_prefix(err, "model.num_classes = 0 means as many as the data has");
  ii_status s = ii_setup_classes(cfg, d, NULL, err);
  ii_dataset_free(d);
  return s;
}

static ii_status plan(command *c, ii_error *err) {
  ii_plan p;
  char *text;
  II_TRY(plan_classes(&c->options.config, err));
  II_TRY(ii_plan_make(&c->options.config, c->options.device, &p, err));
  II_TRY(c->json ? ii_plan_json(&p, &text, err) : ii_plan_text(&p, &text, err));
  printf("%s\n", text);
  free(text);
  return ii_cli_flush(stdout, err);
}

static ii_status profile(command *c, ii_error *err) {
  static bool terminal;
  ii_data_profile p;
  char *text;
  terminal = isatty(STDOUT_FILENO) == 1;
  const ii_data_profile_options o = {.config = &c->options.config,
                                     .seconds = c->profile_seconds > 0 ? c->profile_seconds : 10,
                                     .rate = c->profile_rate,
                                     .stop = &stop_signal,
                                     .say = {print_line, &terminal}};
  catch_signals();
  II_TRY(ii_data_profile_measure(&o, &p, err));
  II_TRY(ii_data_profile_text(&o, &p, &text, err));
  printf("%s%s", terminal ? "\r\033[K" : "", text);
  free(text);
  return ii_cli_flush(stdout, err);
}

/* *code is set when a test failed: what did has been printed. */
static ii_status doctor(const command *c, int *code, ii_error *err) {
  const ii_doctor_engines which = !c->device_given              ? II_DOCTOR_ALL
                                  : c->options.device == II_CPU ? II_DOCTOR_CPU
                                                                : II_DOCTOR_CUDA;
  bool passed;
  II_TRY(ii_doctor_run(which, c->options.device_index, stdout, &passed, err));
  if (!passed) *code = 1;
  return ii_cli_flush(stdout, err);
}

/* A device that this program or machine lacks is said before any data is looked for. */
static ii_status check_device(ii_device device, int index, ii_error *err) {
  ii_kctx k;
  const ii_engine_options o = {.device = device, .index = index};
  if (device == II_CPU || index < ii_cuda_device_count()) return II_OK;
  if (ii_engine_open(&k, &o)) return ii_error_set(err, II_ERR_DEVICE, "%s", k.error);
  ii_engine_close(&k);
  return II_OK;
}

static ii_status train(command *c, ii_error *err) {
  static bool terminal;
  ii_trainer *t;
  terminal = isatty(STDOUT_FILENO) == 1;
  II_TRY(check_device(c->options.device, c->options.device_index, err));
  catch_signals();
  c->options.stop = &stop_signal;
  c->options.say = (ii_say){print_line, &terminal};
  II_TRY(ii_trainer_open(&c->options, &t, err));
  ii_status s = ii_trainer_run(t, err);
  ii_trainer_close(t);
  if (terminal) printf("\r\033[K");
  return s;
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  ii_error err = {0};
  command *c = calloc(1, sizeof *c);
  if (c) c->sets = calloc((size_t)argc, sizeof *c->sets);
  bool done = false;
  int code = 0;
  if (!c || !c->sets)
    ii_error_set(&err, II_ERR_MEMORY, "out of memory");
  else if (parse(c, argc, argv, &done, &err) != II_OK)
    code = 2;
  else if (!done && c->doctor)
    doctor(c, &code, &err);
  else if (!done && load_config(c, &err) == II_OK)
    c->plan ? plan(c, &err) : c->profile ? profile(c, &err) : train(c, &err);
  if (err.status == II_ERR_INTERRUPTED) code = EXIT_RESUMABLE;
  if (err.status != II_OK) code = fail(&err, code ? code : 1);
  if (c) free(c->sets);
  free(c);
  return code;
}
