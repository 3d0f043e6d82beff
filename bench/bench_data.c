/* Images per second of the input pipeline, and where the time goes.
 *
 * usage: bench_data SOURCE [seconds per transform] [threads] [crop index]
 *
 * SOURCE is a folder SOURCE/<class>/<image>, as a training set, or a pack NAME.h5; the crop index
 * of a folder is a file made by scan --crop-index, and is used as the loader does. One JSON line
 * per transform on standard output: "decode" decodes whole images, "train" is the official training
 * transform of base_1k.cfg (224 px, RandAugment), "eval" the official evaluation transform; these
 * three take the files from memory, into which they are read first. "read" reads the files (with
 * the page cache; of a pack, their checksums too), "read_train" reads each and makes a training
 * image of it. images_per_core_second is by processor time of all threads; the shares are those of
 * one thread. torch_data.py does the same with Pillow and torchvision, compare_data.sh sets them
 * side by side. */
#include <pthread.h>
#include <time.h>
#include "bench/measure.h"
#include "data/crop_index.h"
#include "data/pack.h"
#include "data/transform.h"

enum { SIZE = 224, MAX_THREADS = 256 };
typedef enum { DECODE, TRAIN, EVAL, READ, READ_TRAIN, TRANSFORMS } transform_kind;
/* What the shares are of: reading is done before. */
enum { FIRST_STAGE = II_STAGE_DECODE, STAGES_END = II_STAGE_WRITE + 1 };

static const char *const kind_names[TRANSFORMS] = {"decode", "train", "eval", "read", "read_train"};

typedef struct {
  const char *source;
  const ii_dataset *set;
  ii_bytes *files, *indexes; /* an index of size 0: none */
  int64_t count;
  transform_kind kind;
  double until;   /* measure_now() */
  int64_t images; /* done */
  double cpu;     /* seconds */
  bool by_stage;
  ii_stopwatch watch; /* with by_stage */
  int id;
  pthread_t thread;
} worker;

static void check(ii_status status, const ii_error *err) {
  if (status == II_OK) return;
  fprintf(stderr, "%s\n", err->text);
  exit(1);
}

static double cpu_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  ii_decoder *decoder;
  ii_transformer *transformer;
  ii_image image;
  ii_bytes buffer, index;
  float *out;
} tools;

static void open_tools(tools *t) {
  ii_error err = {0};
  *t = (tools){.out = measure_buffer(SIZE * SIZE * 3 * sizeof(float))};
  check(ii_decoder_new(&t->decoder, &err), &err);
  check(ii_transformer_new(&t->transformer, &err), &err);
}

static void close_tools(tools *t) {
  ii_decoder_free(t->decoder);
  ii_transformer_free(t->transformer);
  ii_image_free(&t->image);
  ii_bytes_free(&t->buffer);
  ii_bytes_free(&t->index);
  free(t->out);
}

/* A pack has it behind the bytes; otherwise from memory, with READ_TRAIN from where the data set
 * has it, checks included. */
static void use_index(const worker *w, tools *t, int64_t i, const uint8_t *bytes, int64_t n) {
  int64_t packed_n;
  const uint8_t *packed = ii_dataset_packed_index(w->set, i, bytes, &packed_n);
  if (packed) {
    ii_image_use_index(t->decoder, packed, packed_n);
    return;
  }
  const ii_bytes *index = &w->indexes[i];
  if (w->kind == READ_TRAIN) {
    if (ii_dataset_crop_index(w->set, i, bytes, n, &t->index) != II_CROP_INDEX_FOUND) return;
    index = &t->index;
  }
  if (index->size > 0) ii_image_use_index(t->decoder, index->data, index->size);
}

static void one_image(worker *w, tools *t, const ii_transform *tr, int64_t i) {
  ii_decode_options options = {.apply_orientation = tr->train};
  ii_error err = {0};
  int64_t width, height;
  ii_box at;
  ii_rng rng = ii_rng_make(1, II_RNG_AUGMENT, (uint64_t)w->id, (uint64_t)w->images);
  const uint8_t *bytes = w->files[i].data;
  int64_t n = w->files[i].size;
  if (w->kind == READ || w->kind == READ_TRAIN)
    check(ii_dataset_read(w->set, i, &t->buffer, &bytes, &n, &err), &err);
  if (w->kind == READ) return;
  ii_stopwatch *watch = w->by_stage ? &w->watch : NULL;
  if (watch) ii_stopwatch_start(watch);
  check(ii_image_open(t->decoder, bytes, n, &options, &width, &height, &err), &err);
  ii_transform_plan plan = ii_transform_draw(tr, width, height, &rng);
  ii_box part = w->kind == DECODE ? (ii_box){0, 0, height, width} : plan.source;
  if (part.w < width || part.h < height) use_index(w, t, i, bytes, n);
  check(ii_image_read(t->decoder, part, &t->image, &at, &err), &err);
  ii_lap(watch, II_STAGE_DECODE);
  if (w->kind == DECODE) return;
  check(
      ii_transform_part(t->transformer, tr, &plan, &t->image, at.top, at.left, &rng, t->out, &err),
      &err);
}

static void *work(void *arg) {
  worker *w = arg;
  ii_transform tr = ii_transform_default(SIZE, w->kind != EVAL);
  ii_error err = {0};
  tools t;
  open_tools(&t);
  ii_transformer_measure(t.transformer, w->by_stage ? &w->watch : NULL);
  check(ii_randaugment_parse("rand-m9-mstd0.5-inc1", &tr.auto_augment, &err), &err);
  double begin = cpu_now();
  do {
    for (int64_t i = 0; i < w->count; i++, w->images++) one_image(w, &t, &tr, i);
  } while (measure_now() < w->until);
  w->cpu = cpu_now() - begin;
  close_tools(&t);
  return NULL;
}

static void run(worker single, double seconds, int threads) {
  worker workers[MAX_THREADS] = {0};
  double begin = measure_now(), cpu = 0, sum = 0;
  int64_t images = 0;
  for (int i = 0; i < threads; i++) {
    workers[i] = single;
    workers[i].id = i, workers[i].until = begin + seconds;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) exit(1);
  }
  for (int i = 0; i < threads; i++) {
    pthread_join(workers[i].thread, NULL);
    images += workers[i].images, cpu += workers[i].cpu;
  }
  double wall = measure_now() - begin;
  printf("{\"bench\": \"data\", \"engine\": \"internimage.c\", \"source\": \"%s\", \"transform\": "
         "\"%s\", \"threads\": "
         "%d, \"images\": %lld, \"images_per_second\": %.1f, \"images_per_core_second\": %.1f",
         single.source, kind_names[single.kind], threads, (long long)images, (double)images / wall,
         (double)images / cpu);
  if (single.kind == TRAIN || single.kind == EVAL) {
    single.by_stage = true, single.until = measure_now() + seconds / 2;
    work(&single);
    const double *stages = single.watch.times.cpu;
    for (int s = FIRST_STAGE; s < STAGES_END; s++) sum += stages[s];
    for (int s = FIRST_STAGE; s < STAGES_END; s++)
      printf(", \"%s_ms\": %.3f, \"%s_share\": %.3f", ii_stage_name((ii_stage)s),
             stages[s] / (double)single.images * 1e3, ii_stage_name((ii_stage)s), stages[s] / sum);
  }
  printf("}\n");
  fflush(stdout);
}

static void open_source(const char *source, const char *crop_index, ii_dataset **set) {
  const size_t n = strlen(source);
  ii_error err = {0};
  if (n > 3 && !strcmp(source + n - 3, ".h5"))
    check(ii_dataset_open_packed(source, false, set, &err), &err);
  else
    check(ii_dataset_open_folder(source, NULL, set, &err), &err);
  if (crop_index) check(ii_dataset_use_crop_index(*set, crop_index, &err), &err);
}

static void read_all(const ii_dataset *set, ii_bytes *files, ii_bytes *indexes) {
  ii_error err = {0};
  for (int64_t i = 0; i < ii_dataset_size(set); i++) {
    const uint8_t *bytes;
    int64_t n;
    check(ii_dataset_read(set, i, &files[i], &bytes, &n, &err), &err);
    files[i].size = n; /* of a pack, the index is behind it */
    if (ii_dataset_crop_index(set, i, bytes, n, &indexes[i]) != II_CROP_INDEX_FOUND)
      indexes[i].size = 0;
  }
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 5) {
    fprintf(stderr, "usage: bench_data SOURCE [seconds per transform] [threads] [crop index]\n");
    return 2;
  }
  double seconds = argc > 2 ? atof(argv[2]) : 10;
  int threads = argc > 3 ? atoi(argv[3]) : 1;
  if (!(seconds > 0) || threads < 1 || threads > MAX_THREADS) {
    fprintf(stderr, "the seconds must be above 0 and the threads in 1..%d\n", MAX_THREADS);
    return 2;
  }
  ii_dataset *set = NULL;
  open_source(argv[1], argc > 4 ? argv[4] : NULL, &set);
  int64_t count = ii_dataset_size(set);
  ii_bytes *files = calloc((size_t)count, sizeof *files);
  ii_bytes *indexes = calloc((size_t)count, sizeof *indexes);
  if (!files || !indexes) return 1;
  read_all(set, files, indexes);
  for (int k = 0; k < TRANSFORMS; k++)
    run((worker){.source = argv[1],
                 .set = set,
                 .files = files,
                 .indexes = indexes,
                 .count = count,
                 .kind = (transform_kind)k},
        seconds, threads);
  for (int64_t i = 0; i < count; i++) {
    ii_bytes_free(&files[i]);
    ii_bytes_free(&indexes[i]);
  }
  free(files);
  free(indexes);
  ii_dataset_free(set);
  return 0;
}
