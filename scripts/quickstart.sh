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

[ -d sample_data/val ] || "$bin/make_sample_data" --out sample_data

summary=""
for config in quickstart quickstart_flash; do
  out=runs/$config
  # --resume auto: a second call goes on where an interrupted one stopped, or finds it finished
  "$bin/train" --config $config.cfg --resume auto
  result=$("$bin/eval" --checkpoint "$out/best.h5" --json)
  bash scripts/plot_metrics.sh "$out/metrics.jsonl" >"$out/curves.svg"
  top1=$(sed -n 's/.*"top1": *\([0-9.]*\).*/\1/p' <<<"$result")
  summary+=$(printf '\n  %-18s top-1 %s %%   curves: %s, %s' $config "$top1" \
    "$out/curves.svg" "$out/metrics.jsonl")
done
echo "On the sample validation images:$summary"
