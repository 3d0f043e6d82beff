/* SIGKILL at random moments, half of them while a checkpoint is being written, and --resume auto
 * after each: the weights at the end equal those of an undisturbed run bit for bit, with one and
 * with two loader threads, and metrics.jsonl has each step once.
 *
 *   test_train_kill [kills [compute threads]]     8 kills and one thread as a test, see
 *                                                 scripts/kill_resume.sh for more */
#include <dirent.h>
#include <time.h>
#include "train_fixture.h"

enum { STEPS = 60, EVERY = 2 }; /* 10 epochs of 6 steps, a checkpoint after every second */

static int kills = 8, threads = 1;

static void arguments(char text[1024], const char *out, int workers) {
  snprintf(text, 1024,
           "--config %s --resume auto --set train.output_dir=%s --set data.workers=%d "
           "--set train.threads=%d --set train.epochs=10 --set train.save_every_steps=%d "
           "--set train.eval_every_epochs=4",
           fixture_path("tiny.cfg"), fixture_path(out), workers, threads, EVERY);
}

static void nap(double seconds) {
  struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
  nanosleep(&t, NULL);
}

/* What a killed write left behind is kept under this name: later runs must cope with it. */
static const char LEFT[] = "checkpoint-000000001.h5.tmp";

/* Whether a checkpoint is being written in a folder, or was when the writer died. */
static bool writing(const char *dir) {
  bool found = false;
  DIR *d = opendir(dir);
  if (!d) return false;
  for (struct dirent *e; (e = readdir(d)) != NULL;)
    found |= strstr(e->d_name, ".h5.tmp") != NULL && strcmp(e->d_name, LEFT) != 0;
  closedir(d);
  return found;
}

static void set_aside(const char *dir) {
  char from[1200], to[1200];
  DIR *d = opendir(dir);
  if (!d) return;
  for (struct dirent *e; (e = readdir(d)) != NULL;) {
    if (!strstr(e->d_name, ".h5.tmp")) continue;
    snprintf(from, sizeof from, "%s/%s", dir, e->d_name);
    snprintf(to, sizeof to, "%s/%s", dir, LEFT);
    assert_int_equal(rename(from, to), 0);
  }
  closedir(d);
}

static bool alive(pid_t child) {
  siginfo_t info = {0};
  assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT), 0);
  return info.si_pid == 0;
}

/* Stops a program where it is, in all of its threads. False: it has ended. */
static bool halt(pid_t child) {
  siginfo_t info = {0};
  kill(child, SIGSTOP);
  assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WSTOPPED | WNOWAIT), 0);
  if (info.si_code != CLD_STOPPED) return false;
  assert_int_equal(waitid(P_PID, (id_t)child, &info, WSTOPPED | WNOHANG), 0);
  return true;
}

/* Waits for a checkpoint to be begun, then for `delay` seconds, and stops the program if it is
 * still writing, or else in the next checkpoint, or the one after that. */
static void halt_in_write(pid_t child, const char *dir, double delay) {
  for (; alive(child); delay /= 2) {
    while (alive(child) && !writing(dir)) continue;
    nap(delay);
    if (!halt(child) || writing(dir)) return;
    kill(child, SIGCONT);
  }
}

/* Lets the program run for a moment and kills it; aimed: while it writes a checkpoint. True when it
 * died of that and not earlier of itself. */
static bool kill_one(const char *out, int workers, bool aimed, ii_rng *rng, int *in_write) {
  char text[1024], dir[600];
  snprintf(dir, sizeof dir, "%s", fixture_path(out));
  arguments(text, out, workers);
  set_aside(dir);
  pid_t child = fixture_start("train", text);
  if (!aimed) {
    nap(0.6 * ii_rng_uniform(rng));
  } else {
    /* not always the first one: how far the run gets is random too */
    nap(0.3 * ii_rng_uniform(rng));
    halt_in_write(child, dir, 0.003 * ii_rng_uniform(rng));
  }
  kill(child, SIGKILL);
  const int code = fixture_wait(child);
  if (code != 1000 + SIGKILL && code != 0) fail_msg("exit %d: %s", code, fixture_output("stderr"));
  *in_write += code == 1000 + SIGKILL && writing(dir);
  return code == 1000 + SIGKILL;
}

static void finish(const char *out, int workers) {
  char text[1024];
  arguments(text, out, workers);
  const int code = fixture_run("train", "%s", text);
  if (code != 0) fail_msg("exit %d: %s", code, fixture_output("stderr"));
}

/* Training steps of the records, in order, each once, up to the end. */
static void check_metrics(const char *out) {
  char path[600], line[1024];
  long expected = 2, step;
  snprintf(path, sizeof path, "%s/metrics.jsonl", fixture_path(out));
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  int validations = 0;
  while (fgets(line, sizeof line, f)) {
    const char *at = strstr(line, "\"step\": ");
    assert_non_null(at);
    step = strtol(at + 8, NULL, 10);
    if (strstr(line, "\"kind\": \"train\"")) {
      assert_int_equal(step, expected);
      expected += 2;
    } else {
      validations++;
    }
  }
  fclose(f);
  assert_int_equal(expected, STEPS + 2);
  assert_int_equal(validations, 2 * 3); /* after epochs 4, 8, 10; weights and average */
}

static void compare(const char *out) {
  char a[600], b[600];
  snprintf(a, sizeof a, "%s/checkpoint-%09d.h5", fixture_path("reference"), STEPS);
  snprintf(b, sizeof b, "%s/checkpoint-%09d.h5", fixture_path(out), STEPS);
  fixture_same_weights(a, b);
  check_metrics(out);
}

static void test_kills(void **unused) {
  (void)unused;
  ii_rng rng = ii_rng_make((uint64_t)time(NULL), II_RNG_TEST, 0, 0);
  int in_write = 0, done = 0;
  finish("reference", 2);
  check_metrics("reference");
  for (int folder = 0, killed = 0; killed < kills; folder++) {
    char out[32];
    const int workers = 1 + folder % 2;
    snprintf(out, sizeof out, "killed%d", folder);
    /* at most half of the kills in one folder, so that both thread counts get theirs */
    int here = 0;
    for (; killed < kills && here < (kills + 1) / 2; here++, killed++)
      if (!kill_one(out, workers, killed % 2, &rng, &in_write)) break;
    finish(out, workers);
    compare(out);
    done++;
  }
  print_message("%d kills, %d of them during a checkpoint; %d runs ended bit for bit the same\n",
                kills, in_write, done);
  if (kills >= 8) assert_true(in_write > 0);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_kills)};
  if (argc > 1) kills = atoi(argv[1]);
  if (argc > 2) threads = atoi(argv[2]);
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
