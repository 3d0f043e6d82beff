#!/bin/bash
# Sets the input pipeline beside the same transforms with Pillow, torchvision and timm's definitions
# (torch_data.py), on one core, interleaved, so that both see the same machine. Prints Markdown.
#
#   bench/compare_data.sh PHOTOS [--build build/release] [--rounds 5] [--seconds 4] [--core 0]
#       [--out FILE]
#
# PHOTOS is a folder PHOTOS/<class>/<image>. From it a crop index and two packs are made in a
# temporary folder: with --no-crop-index, and as usual. Each round runs bench_data on the folder,
# without and with the crop index, and on both packs and torch_data.py on the folder, --seconds for
# each transform; about 25 seconds per round and second. The tables have medians of images per
# second of processor time, so other load matters less, but it matters: look at the ranges. --out
# keeps the JSON lines. PYTHON chooses the interpreter that has torchvision and Pillow.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/release rounds=5 seconds=4 core=0 out='' photos=''

die() { echo "compare_data: $1" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --build|--rounds|--seconds|--core|--out)
      [ $# -ge 2 ] || die "$1 lacks its value" ;;
    -*) die "unknown option $1; see the head of $0" ;;
    *) [ -z "$photos" ] || die "one folder of photographs, please"; photos=$1; shift; continue ;;
  esac
  case $1 in
    --build) build=$2 ;;
    --rounds) rounds=$2 ;;
    --seconds) seconds=$2 ;;
    --core) core=$2 ;;
    --out) out=$2 ;;
  esac
  shift 2
done
[ -n "$photos" ] || die "name a folder of photographs; see the head of $0"
[ -d "$photos" ] || die "there is no folder '$photos'"
for program in bench_data pack scan; do
  [ -x "$build/bin/$program" ] || die "$build/bin/$program is missing; build it, or say --build"
done
python=${PYTHON:-python3}
"$python" -c 'import torchvision, PIL' 2>/dev/null ||
  die "$python has no torchvision or Pillow (python3-torchvision, python3-pil; PYTHON=...)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack() { "$build/bin/pack" create --folder "$photos" --quiet "$@" > /dev/null; }
pack --out "$work/plain.h5" --no-crop-index
pack --out "$work/crops.h5"
"$build/bin/scan" --folder "$photos" --crop-index "$work/crop_index" --quiet > /dev/null
lines=$work/lines
# the Nth run of a source gets its name as a key of its own
ours() { taskset -c "$core" "$build/bin/bench_data" "$2" "$seconds" 1 ${3:+"$3"} |
  sed "s/^{/{\"row\": \"$1\", /" >> "$lines"; }
for round in $(seq "$rounds"); do
  echo "round $round of $rounds, load $(cut -d' ' -f1-3 /proc/loadavg)" >&2
  ours folder "$photos"
  ours index "$photos" "$work/crop_index"
  ours plain "$work/plain.h5"
  ours crops "$work/crops.h5"
  taskset -c "$core" "$python" "$here/torch_data.py" "$photos" "$seconds" |
    sed 's/^{/{"row": "python", /' >> "$lines"
done
[ -z "$out" ] || cp "$lines" "$out"

stat -c %s "$work"/plain-*.h5 "$work"/crops-*.h5 > "$work/sizes"
"$python" - "$lines" "$work/sizes" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    runs.setdefault((r["row"], r["transform"]), []).append(r)

def median(row, transform, key="images_per_core_second"):
    return statistics.median(r[key] for r in runs[row, transform])

def speed(row, transform):
    v = sorted(r["images_per_core_second"] for r in runs[row, transform])
    return f"{median(row, transform):.0f} ({v[0]:.0f}..{v[-1]:.0f})"

titles = {"folder": "folder", "index": "folder, crop index", "plain": "pack, `--no-crop-index`",
          "crops": "pack",
          "python": "Pillow + torchvision + timm's definitions"}
names = {"decode": "whole image decoded", "train": "training transform",
         "eval": "evaluation transform", "read_train": "reading and training transform"}
print("Images per second of one core, median (lowest..highest), and the ratio to the first row:\n")
print("| | " + " | ".join(names.values()) + " |\n|" + " --- |" * (len(names) + 1))
for row in ("python", "folder", "plain", "index", "crops"):
    cells = []
    for t in names:
        ratio = "" if row == "python" else f", **{median(row, t) / median('python', t):.2f}**"
        cells.append(speed(row, t) + ratio)
    print(f"| {titles[row]} | " + " | ".join(cells) + " |")
print("\nMilliseconds of an image by stage, and their shares:\n")
stages = ("decode", "resize", "augment", "normalise")
print("| | read | " + " | ".join(stages) + " | all but reading | decoding whole images |\n|"
      + " --- |" * (len(stages) + 4))
for t in ("train", "eval"):
    for row in ("folder", "plain", "index", "crops"):
        read, whole = 1e3 / median(row, "read"), 1e3 / median(row, "decode")
        cells = [f"{median(row, t, s + '_ms'):.3f} ({100 * median(row, t, s + '_share'):.0f} %)"
                 for s in stages]
        print(f"| {names[t]}, {titles[row]} | {read:.3f} | " + " | ".join(cells)
              + f" | {1e3 / median(row, t):.3f} | {whole:.3f} |")
a, b = (int(v) for v in open(sys.argv[2]))
print(f"\nBytes of the packs: {b}, and {a} with `--no-crop-index` (crop indexes: "
      f"{100 * (b / a - 1):+.1f} %).")
END
