#include "train/setup.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "data/crop_index.h"
#include "data/skip_list.h"
#include "data/source.h"

/* A file named in the configuration: relative to data.root. */
static void path_of(const ii_config *cfg, const char *name, char *out, size_t size) {
  if (name[0] == '/')
    snprintf(out, size, "%s", name);
  else
    snprintf(out, size, "%s/%s", cfg->data.root, name);
}

enum { PATH_SIZE = 2 * II_CONFIG_STRING + 40 };

/* Whether the folder has a sub-folder. */
static bool has_folders(const char *path) {
  bool found = false;
  DIR *dir = opendir(path);
  for (const struct dirent *e; dir && !found && (e = readdir(dir)) != NULL;) {
    struct stat st;
    if (e->d_name[0] == '.' || e->d_type == DT_REG) continue;
    found = fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
  }
  if (dir) closedir(dir);
  return found;
}

/* Which data set the configuration names. The texts of *s are the buffers. */
typedef struct {
  char path[PATH_SIZE], skip[PATH_SIZE], crops[PATH_SIZE], classes[PATH_SIZE], truth[PATH_SIZE],
      places[PATH_SIZE];
} source_texts;

static void find_source(const ii_config *cfg, bool train, source_texts *t, ii_source *s) {
  const bool inat = cfg->data.format == ii_data_format_inat2018;
  const char *part = train ? "train" : "val", *name = part;
  char file[II_CONFIG_STRING + 24];
  *s = (ii_source){.path = t->path,
                   .root = cfg->data.root,
                   .num_classes = cfg->model.num_classes,
                   .in_memory = cfg->data.in_memory};
  if (cfg->data.format == ii_data_format_list)
    name = train ? cfg->data.train_list : cfg->data.val_list;
  snprintf(file, sizeof file, "%s%s", name,
           cfg->data.format == ii_data_format_packed ? ".h5"
           : inat                                    ? "2018.json"
                                                     : "");
  path_of(cfg, file, t->path, sizeof t->path);
  static const ii_source_kind kinds[] = {II_SOURCE_FOLDER, II_SOURCE_LIST, II_SOURCE_PACKED,
                                         II_SOURCE_FOLDER, II_SOURCE_INAT};
  s->kind = kinds[cfg->data.format];
  if (cfg->data.format == ii_data_format_imagenet && !train && !has_folders(t->path))
    s->kind = II_SOURCE_IMAGENET_VAL;
  if (inat && cfg->model.meta_dims.count) {
    snprintf(file, sizeof file, "%s2018_locations.json", part);
    path_of(cfg, file, t->places, sizeof t->places);
    s->locations = t->places;
  }
  /* with data.val_columns the validation images have classes of their own */
  const bool own_classes = !train && *cfg->data.val_columns;
  if (own_classes) s->num_classes = 0;
  if (*cfg->data.class_list && !own_classes) {
    path_of(cfg, cfg->data.class_list, t->classes, sizeof t->classes);
    s->classes = t->classes;
  }
  if (*cfg->data.ground_truth) {
    path_of(cfg, cfg->data.ground_truth, t->truth, sizeof t->truth);
    s->truth = t->truth;
  }
  /* an evaluation without its bad images would be that of another data set */
  if (train && *cfg->data.skip_list) {
    path_of(cfg, cfg->data.skip_list, t->skip, sizeof t->skip);
    s->skip_list = t->skip;
  }
  /* evaluation decodes nearly whole images */
  if (train && *cfg->data.crop_index) {
    path_of(cfg, cfg->data.crop_index, t->crops, sizeof t->crops);
    s->crop_index = t->crops;
  }
}

static ii_status open_dataset(const ii_config *cfg, bool train, ii_dataset **d, ii_error *err) {
  ii_source s;
  source_texts texts;
  find_source(cfg, train, &texts, &s);
  return ii_source_open(&s, d, err);
}

ii_status ii_setup_dataset(const ii_config *cfg, bool train, ii_dataset **d, ii_error *err) {
  *d = NULL;
  if (!*cfg->data.root)
    return ii_error_set(
        err, II_ERR_ARG,
        "no data set: --set data.root=FOLDER names the folder with train/ and val/");
  if (open_dataset(cfg, train, d, err) != II_OK)
    return ii_error_prefix(err, "%s images (data.root = \"%.200s\")",
                           train ? "training" : "validation", cfg->data.root);
  if (cfg->model.meta_dims.count && !ii_dataset_has_meta(*d)) {
    ii_dataset_free(*d);
    *d = NULL;
    return ii_error_set(
        err, II_ERR_ARG,
        "model.meta_dims needs images with month, latitude and longitude, from list "
        "files or packs made of them");
  }
  return II_OK;
}

static ii_transform transform_of(const ii_config *cfg, bool train) {
  ii_transform t = ii_transform_default(cfg->data.img_size, train);
  bool bicubic = cfg->data.interpolation == ii_data_interpolation_bicubic;
  t.filter = bicubic ? II_FILTER_BICUBIC : II_FILTER_BILINEAR;
  t.random_filter = train && cfg->data.interpolation == ii_data_interpolation_random;
  ii_randaugment_parse(cfg->data.auto_augment, &t.auto_augment, NULL); /* checked before */
  for (int i = 0; i < 4; i++) {
    const ii_double_list *jitter = &cfg->data.color_jitter;
    if (jitter->count == 1)
      t.jitter[i] = i < 3 ? jitter->v[0] : 0;
    else
      t.jitter[i] = i < jitter->count ? jitter->v[i] : 0;
  }
  for (int i = 0; i < 3; i++) {
    t.mean[i] = cfg->data.mean.v[i];
    t.std[i] = cfg->data.std.v[i];
  }
  for (int i = 0; i < 2; i++) {
    t.scale[i] = cfg->data.crop_scale.v[i];
    t.ratio[i] = cfg->data.crop_ratio.v[i];
  }
  t.flip_prob = cfg->data.hflip;
  t.small_crop = cfg->data.small_crop;
  t.centre_crop = cfg->data.test_crop;
  return t;
}

ii_loader_config ii_setup_loader(const ii_config *cfg, const ii_dataset *d, bool train) {
  int64_t batch = train ? cfg->data.batch_size : cfg->data.eval_batch_size;
  ii_loader_config l = ii_loader_config_default(d, transform_of(cfg, train), batch);
  l.decode.apply_orientation = train ? cfg->data.train_exif == ii_data_train_exif_apply
                                     : cfg->data.eval_exif == ii_data_eval_exif_apply;
  l.decode.allow_truncated = cfg->data.allow_truncated;
  l.seed = (uint64_t)cfg->train.seed;
  if (train)
    l.sampling = (ii_sampling){.kind = (ii_sampling_kind)cfg->data.sampler,
                               .repeats = cfg->data.sampler_repeats,
                               .balance = cfg->data.class_balance};
  l.threads = (int)cfg->data.workers;
  l.prefetch = (int)cfg->data.prefetch;
  return l;
}

ii_model_config ii_setup_model(const ii_config *cfg) {
  ii_model_config m;
  ii_model_config_defaults(&m);
  m.core_op = cfg->model.core_op == ii_model_core_op_DCNv4 ? II_DCNV4 : II_DCNV3;
  m.channels = (int)cfg->model.channels;
  for (int i = 0; i < II_STAGES; i++) {
    m.depths[i] = (int)cfg->model.depths.v[i];
    m.groups[i] = (int)cfg->model.groups.v[i];
  }
  m.kernel_size = (int)cfg->model.kernel_size;
  m.dw_kernel_size = (int)cfg->model.dw_kernel_size;
  m.mlp_ratio = cfg->model.mlp_ratio;
  m.drop_path_rate = cfg->model.drop_path_rate;
  m.layer_scale = cfg->model.layer_scale;
  m.offset_scale = cfg->model.offset_scale;
  m.post_norm = cfg->model.post_norm;
  m.res_post_norm = cfg->model.res_post_norm;
  m.center_feature_scale = cfg->model.center_feature_scale;
  m.remove_center = cfg->model.remove_center;
  m.level2_post_norm_count = (int)cfg->model.level2_post_norm_block_ids.count;
  for (int i = 0; i < m.level2_post_norm_count; i++)
    m.level2_post_norm_ids[i] = (int)cfg->model.level2_post_norm_block_ids.v[i];
  m.dcn_output_bias = cfg->model.dcn_output_bias;
  m.mlp_fc2_bias = cfg->model.mlp_fc2_bias;
  m.use_clip_projector = cfg->model.use_clip_projector;
  m.clip_channels = (int)cfg->model.clip_embed_dim;
  m.clip_heads = (int)cfg->model.clip_heads;
  m.clip_out = (int)cfg->model.clip_out_dim;
  m.cls_scale = cfg->model.cls_scale;
  m.num_classes = (int)cfg->model.num_classes;
  for (int i = 0; i < 2; i++) m.meta_dims[i] = (int)cfg->model.meta_dims.v[i];
  m.checkpoint = cfg->model.checkpoint;
  return m;
}

ii_dtype ii_setup_compute(const ii_config *cfg, ii_device device) {
  if (cfg->train.amp == ii_train_amp_auto) return device == II_CPU ? II_F32 : II_BF16;
  if (cfg->train.amp == ii_train_amp_fp16) return II_F16;
  return cfg->train.amp == ii_train_amp_bf16 ? II_BF16 : II_F32;
}

const char *ii_setup_precision_name(ii_dtype compute) {
  return compute == II_BF16 ? "bf16" : compute == II_F16 ? "fp16" : "fp32";
}

/* base, warm-up and minimum rate grow with the images of an update. */
static double lr_factor(const ii_config *cfg) {
  return ii_schedule_lr_factor(cfg->data.batch_size * cfg->train.accumulation_steps,
                               cfg->train.lr_reference_batch);
}

ii_schedule ii_setup_schedule(const ii_config *cfg, int64_t steps_per_epoch) {
  const double factor = lr_factor(cfg);
  return (ii_schedule){.kind = (ii_schedule_kind)cfg->train.schedule,
                       .epochs = cfg->train.epochs,
                       .steps_per_epoch = steps_per_epoch,
                       .accumulation = cfg->train.accumulation_steps,
                       .warmup_epochs = cfg->train.warmup_epochs,
                       .warmup_lr = cfg->train.warmup_lr * factor,
                       .min_lr = cfg->train.min_lr * factor,
                       .linear_min_rate = cfg->train.linear_min_rate,
                       .decay_epochs = cfg->train.decay_epochs,
                       .decay_rate = cfg->train.decay_rate};
}

ii_optimizer_options ii_setup_optimizer(const ii_config *cfg) {
  const bool fp16 = cfg->train.amp == ii_train_amp_fp16;
  ii_optimizer_options o = {.kind = (ii_optimizer_kind)cfg->train.optimizer,
                            .base_lr = cfg->train.base_lr * lr_factor(cfg),
                            .beta1 = cfg->train.betas.v[0],
                            .beta2 = cfg->train.betas.v[1],
                            .eps = cfg->train.eps,
                            .momentum = cfg->train.momentum,
                            .nesterov = cfg->train.nesterov,
                            .clip_grad = cfg->train.clip_grad,
                            .ema = cfg->train.ema,
                            .ema_decay = cfg->train.ema_decay,
                            .loss_factor = 1.0 / (double)cfg->train.accumulation_steps,
                            .loss_scale = fp16 ? cfg->train.loss_scale : 0,
                            .growth_interval = cfg->train.loss_scale_growth};
  o.rules = (ii_param_rules){.weight_decay = cfg->train.weight_decay,
                             .lr_layer_decay = cfg->train.lr_layer_decay,
                             .layer_decay_ratio = cfg->train.lr_layer_decay_ratio,
                             .dcn_lr_mul = cfg->train.dcn_lr_mul};
  for (int i = 0; i < II_PARAM_STAGES; i++) o.rules.depths[i] = cfg->model.depths.v[i];
  for (int64_t i = 0; i < cfg->train.freeze_stages.count; i++)
    o.rules.frozen[cfg->train.freeze_stages.v[i]] = true;
  return o;
}

ii_status ii_setup_classes(ii_config *cfg, const ii_dataset *d, const ii_say *say, ii_error *err) {
  const int64_t found = ii_dataset_num_classes(d), wanted = cfg->model.num_classes;
  const char *first;
  const int64_t ignored = ii_dataset_ignored(d, &first);
  if (ignored)
    ii_say_line(say, II_SAY_WARNING, "%lld files that are not images were left out, e.g. %s",
                (long long)ignored, first);
  const ii_skip_result *skip = ii_dataset_skip_result(d);
  if (skip->listed)
    ii_say_line(say, II_SAY_NOTE, "data.skip_list: %lld images left out", (long long)skip->skipped);
  if (skip->changed || skip->unknown)
    ii_say_line(say, II_SAY_WARNING,
                "data.skip_list: %lld of its images have changed since and are used, %lld are not "
                "in the data set; scan it again",
                (long long)skip->changed, (long long)skip->unknown);
  if (ii_dataset_crop_indexed(d))
    ii_say_line(say, II_SAY_NOTE, "data.crop_index: %lld of %lld images have an entry",
                (long long)ii_dataset_crop_indexed(d), (long long)ii_dataset_size(d));
  if (wanted == 0) {
    if (found > II_CONFIG_CLASSES)
      return ii_error_set(err, II_ERR_ARG,
                          "the largest label of the data set is %lld; there may be %d classes",
                          (long long)found - 1, II_CONFIG_CLASSES);
    if (found < 2)
      return ii_error_set(err, II_ERR_ARG, "the data set has %lld class; at least two are needed",
                          (long long)found);
    cfg->model.num_classes = found;
    return II_OK;
  }
  if (found > wanted)
    return ii_error_set(err, II_ERR_ARG,
                        "the data set has %lld classes, model.num_classes = %lld; "
                        "--set model.num_classes=0 takes the number of the data set",
                        (long long)found, (long long)wanted);
  if (found < wanted)
    ii_say_line(say, II_SAY_WARNING,
                "the data set has %lld classes and the model %lld: the outputs from %lld on get no "
                "images; --set model.num_classes=0 takes the number of the data set",
                (long long)found, (long long)wanted, (long long)found);
  return II_OK;
}

ii_status ii_setup_columns(const ii_config *cfg, const ii_dataset *d, int32_t **columns,
                           ii_error *err) {
  char path[PATH_SIZE];
  const int64_t n = ii_dataset_num_classes(d);
  *columns = NULL;
  if (!*cfg->data.val_columns) return II_OK;
  path_of(cfg, cfg->data.val_columns, path, sizeof path);
  FILE *f = fopen(path, "r");
  if (!f)
    return ii_error_set(err, II_ERR_IO, "data.val_columns: cannot open '%s': %s", path,
                        strerror(errno));
  int32_t *v = calloc((size_t)n + 1, sizeof *v);
  int64_t lines = 0;
  long long column;
  ii_status s = v ? II_OK : ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  for (int got; s == II_OK && (got = fscanf(f, "%lld", &column)) != EOF; lines++)
    if (got != 1 || column < 0 || column >= cfg->model.num_classes)
      s = ii_error_set(err, II_ERR_FORMAT, "%s:%lld: expected the number of an output in 0..%lld",
                       path, (long long)lines + 1, (long long)cfg->model.num_classes - 1);
    else if (lines < n)
      v[lines] = (int32_t)column;
  fclose(f);
  if (s == II_OK && lines != n)
    s = ii_error_set(err, II_ERR_FORMAT,
                     "'%s' has %lld lines, the validation images have %lld classes", path,
                     (long long)lines, (long long)n);
  if (s != II_OK)
    free(v);
  else
    *columns = v;
  return s;
}
