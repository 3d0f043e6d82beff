#!/usr/bin/env bash
# From a fresh machine to two trained models: installs what is missing, builds, makes the sample data
# set, trains a micro InternImage (DCNv3) and a micro FlashInternImage (DCNv4), evaluates both, and
# says how accurate they are and where their curves are. A few minutes on two cores; asks for nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh

cmake --preset release >/dev/null
cmake --build --preset release --parallel "$(nproc)" --target train eval make_sample_data
bin=build/release/bin

if [ ! -d sample_data ]; then # under another name first: an interrupted call leaves no half of it
  rm -rf sample_data.part
  "$bin/make_sample_data" --out sample_data.part --train-per-class 300
  mv sample_data.part sample_data
fi

summary=""
for config in quickstart quickstart_flash; do
  out=runs/$config
  # --resume auto: a second call goes on where an interrupted one stopped, or finds it finished
  "$bin/train" --config $config.cfg --resume auto
  bash scripts/plot_metrics.sh "$out/metrics.jsonl" >"$out/curves.svg"
  summary+=$(printf '\n  %-18s top-1' $config)
  for weights in raw ema; do
    flag=$([ $weights = ema ] && echo --ema || true)
    result=$("$bin/eval" --checkpoint "$out/best.h5" $flag --json)
    summary+=$(printf ' %s %% (%s)' "$(sed -n 's/.*"top1": *\([0-9.]*\).*/\1/p' <<<"$result")" $weights)
  done
  summary+="   curves: $out/curves.svg, $out/metrics.jsonl"
done
echo
echo "On the sample validation images (raw: the weights, ema: their moving average):$summary"
