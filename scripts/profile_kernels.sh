#!/usr/bin/env bash
# profile_kernels.sh [--build DIR] [--out FILE.md] [--quick] [--l2 MB] [--from FILE.jsonl]
#                    [ARGUMENTS of profile_dcn]
#
# Counts, without a GPU, what the deformable convolution asks of a GPU's memory at the published
# shapes (docs/emulation.md, "The memory profile"), and writes a Markdown report: DRAM bytes beside
# the least possible, widths of loads, sectors per request, atomics per element beside the published
# kernels', registers, shared memory and warps per multiprocessor. Exit status 1 when a bound of
# profile_dcn --check is not kept.
#
# --build: a build of the preset emulate-profile; without it, it is built in build/emulate-profile.
# --quick: one image per shape, without the large ones, and a cache of 1 MiB: a minute instead of an hour.
# --l2: the second-level cache, 50 MiB (H100, H200); 40 is an A100. The JSON lines are left beside the
# report; --from makes the report of lines that are there, counting nothing.
set -euo pipefail
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
build='' out=profile_kernels.md l2=50 quick=0 from='' more=()
usage() {
  echo "profile_kernels: $1 (see the head of $0)" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
  --quick) quick=1 ;;
  --build | --out | --l2 | --from)
    [ $# -ge 2 ] || usage "$1 needs a value"
    declare "${1#--}=$2"
    shift
    ;;
  --*)
    [ $# -ge 2 ] || usage "$1 needs a value"
    more+=("$1" "$2")
    shift
    ;;
  *) usage "unknown argument $1" ;;
  esac
  shift
done
asked=$( ([ $quick = 0 ] || printf ' --quick'; [ "$l2" = 50 ] || printf ' --l2 %s' "$l2"
  [ ${#more[@]} = 0 ] || printf ' %s' "${more[@]}"))
case $l2 in '' | *[!0-9]*) usage "--l2 is a number of MiB" ;; esac
if [ $quick = 1 ]; then more+=(--batch 1 --most 1) l2=1; fi
if [ -n "$from" ]; then
  [ -r "$from" ] || usage "--from: there is no file $from"
elif [ -z "$build" ]; then
  build=$root/build/emulate-profile
  (cd "$root" && cmake --preset emulate-profile >/dev/null)
  cmake --build "$build" --parallel "$(nproc)" --target profile_dcn >"$build.log" 2>&1 ||
    { tail -n 20 "$build.log" >&2; exit 1; }
fi
[ -n "$from" ] || [ -x "$build/bin/profile_dcn" ] || usage "$build/bin/profile_dcn is missing: build the preset emulate-profile"

lines=${out%.md}.jsonl
status=0
started=$(date +%s)
if [ -n "$from" ]; then
  [ "$from" -ef "$lines" ] || cp "$from" "$lines"
else
  II_EMU_L2_MB=$l2 "$build/bin/profile_dcn" "${more[@]}" --check 1 >"$lines" || status=$?
fi
[ -s "$lines" ] || exit 1

table() { # TITLE=FIELD ...: a Markdown table of $lines
  awk -v columns="$(printf '%s\n' "$@")" '
    function field(name,   s) {
      if (!match($0, "\"" name "\": *(\"[^\"]*\"|[^,}]*)")) return ""
      s = substr($0, RSTART, RLENGTH); sub(/^"[^"]*": */, "", s); gsub(/"/, "", s); return s
    }
    BEGIN {
      n = split(columns, c, "\n")
      for (i = 1; i <= n; i++) { split(c[i], p, "="); h = h "| " p[1] " "; key[i] = p[2]; r = r "|---" }
      print h "|\n" r "|"
    }
    { for (i = 1; i <= n; i++) printf "| %s ", field(key[i]); print "|" }' "$lines"
}
what=(op=op shape=shape groups=groups type=dtype direction=direction)
{
  echo "# What the deformable convolution asks of memory"
  echo
  echo "Counted by the emulator (no GPU), commit $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)," \
    "second-level cache of $(sed -n '1s/.*"l2_MB": \([0-9]*\).*/\1/p' "$lines") MiB, empty before and after:"
  printf '\n```\nscripts/profile_kernels.sh%s\n```\n' "$asked"
  if [ -z "$from" ]; then
    echo
    echo "$([ $status = 0 ] && echo 'All bounds are kept.' || echo 'BOUNDS ARE NOT KEPT.') ($(($(date +%s) - started)) s)"
  fi
  printf '\n## DRAM\n\n'
  table "${what[@]}" "least MB=least_MB" "moved MB=dram_MB" "ratio=dram_ratio" "read MB=read_MB" \
    "written MB=written_MB"
  printf '\n## Accesses\n\n'
  table "${what[@]}" "loads of values=value_loads" "loads of gy=gradient_loads" \
    "sectors per request=value_sectors_per_request" "other loads per pixel=other_loads_per_pixel" \
    "sectors MB=sector_MB" "atomics per element=atomics_per_element" \
    "published=reference_atomics_per_element" "shared wavefronts=shared_wavefronts"
  printf '\n## Launches\n\nRegisters and warps per multiprocessor (of 64) on sm_80/90/100.\n\n'
  table "${what[@]}" kernels=kernels
} >"$out"
echo "profile_kernels: $out, $lines"
exit "$status"
