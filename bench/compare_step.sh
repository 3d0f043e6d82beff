#!/bin/bash
# Sets a training step of this project beside the same step of the official PyTorch model, in one
# run and interleaved, so that both see the same machine. Prints a Markdown table.
#
#   bench/compare_step.sh --official DIR [--timm DIR] [--build build/release] [--model t]
#       [--batch 8] [--size 224] [--threads 2] [--rounds 2] [--steps 2] [--out FILE]
#
# --official, --timm: see torch_step.py. Each round runs the official model, bench_step in fp32 and
# bench_step in bf16, --steps counted steps each; the table has the medians over all rounds. Memory
# is the peak resident memory of the process, libraries included. The official model runs in fp32
# (torch_step.py says why); it must find a fast BLAS (libopenblas0-pthread), or the comparison stops:
# with the reference BLAS of the distribution it is ten times slower than it can be. --out keeps the JSON lines. PYTHON chooses the interpreter with torch.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/release model=t batch=8 size=224 threads=2 rounds=2 steps=2
official='' timm=() out=''

die() { echo "compare_step: $1" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --official|--timm|--build|--model|--batch|--size|--threads|--rounds|--steps|--out)
      [ $# -ge 2 ] || die "$1 lacks its value" ;;
    *) die "unknown option $1; see the head of $0" ;;
  esac
  case $1 in
    --official) official=$2 ;;
    --timm) timm=(--timm "$2") ;;
    --build) build=$2 ;;
    --model) model=$2 ;;
    --batch) batch=$2 ;;
    --size) size=$2 ;;
    --threads) threads=$2 ;;
    --rounds) rounds=$2 ;;
    --steps) steps=$2 ;;
    --out) out=$2 ;;
  esac
  shift 2
done
[ -n "$official" ] || die "--official DIR names the classification folder of the official checkout"
[ -x "$build/bin/bench_step" ] || die "no $build/bin/bench_step: build it, or give --build DIR"

python=''
for p in "${PYTHON:-}" python3 /usr/bin/python3; do
  if [ -n "$p" ] && "$p" -c 'import torch' 2>/dev/null; then python=$p; break; fi
done
[ -n "$python" ] || die "no python3 with torch found: install python3-torch or set PYTHON"

work=$(mktemp)
trap 'rm -f "$work"' EXIT
common=(--batch "$batch" --size "$size" --threads "$threads" --steps "$steps")
export OMP_NUM_THREADS=$threads
# How long a waiting OpenMP thread spins matters to PyTorch too: it runs with libgomp's default and
# with the setting that our programs choose for themselves.
official_step() { # WHAT, then env's arguments
  local what=$1; shift
  echo "round $round: official, fp32, $what" >&2
  env "$@" "$python" -W ignore "$here/torch_step.py" --official "$official" "${timm[@]}" \
    --model "$model" "${common[@]}" --label "$what" >> "$work"
  if grep -q '"blas": "reference"' "$work"; then
    die "PyTorch found only the reference BLAS: install libopenblas0-pthread"
  fi
}
for round in $(seq "$rounds"); do
  official_step "default waiting" -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY
  official_step "short waiting" GOMP_SPINCOUNT=2000
  for amp in none bf16; do
    echo "round $round: internimage.c, amp $amp" >&2
    "$build/bin/bench_step" --config "internimage_${model}_1k" --amp "$amp" "${common[@]}" \
      >> "$work"
  done
done
[ -z "$out" ] || cp "$work" "$out"

"$python" - "$work" <<'PY'
import json
import statistics
import sys

runs = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    runs.setdefault(r["name"], []).append(r)
median = lambda name, key: statistics.median(r[key] for r in runs[name])
default, short = [n for n in runs if n.startswith("official")]
print("| step | s/step | images/s | times faster than the official, default waiting "
      "| short waiting | peak memory, MiB | of the official |")
print("|---|---|---|---|---|---|---|")
for n in runs:
    s, mem = median(n, "step_s"), median(n, "peak_rss_mib")
    print("| %s | %.3f | %.2f | %.2f | %.2f | %.0f | %.0f %% |" % (
        n, s, median(n, "images_per_s"), median(default, "step_s") / s,
        median(short, "step_s") / s, mem, 100 * mem / median(default, "peak_rss_mib")))
PY
