#!/usr/bin/env bash
# gpu_check.sh [--build DIR] [--out DIR] [--data DIR] [--device cuda[:N]] [--limit SECONDS]
#              [--quick | --full] [--name NAME] | --help
#
# Checks and measures everything on a machine with a GPU, in less than ten minutes, and writes
# report.md, report.json and all logs into --out (gpu_check/). In this order, what matters most first:
#   1. hardware, driver and versions; train --doctor, which tests every kernel
#   2. the tests of the CUDA engine, side by side: op tests, its own tests, the reference data
#   3. short benchmarks: training steps and latency in bf16, the deformable convolution
#   4. compute-sanitizer (memcheck, racecheck, synccheck, initcheck) over the doctor's kernels
#   5. all other steps, types and operators: times and shares of the machine's limits; with --full the
#      development variants of the deformable convolution beside the product's kernels
#   6. the same beside PyTorch, and beside the official extensions DCNv3 and DCNv4, where installed;
#      OFFICIAL and OFFICIAL_V4 name the `classification` folders of checkouts of
#      OpenGVLab/InternImage and OpenGVLab/DCNv4 for the official models
#   7. with --data DIR (folders train/<class> and val/<class> of CIFAR-10): a micro run
# What is missing is reported, never passed over: a test or a sanitizer that could not be run, and a
# sanitizer that found no end in its time, are gaps and named beside the verdict.
#
# --build: a folder with bin/ (a build, or what gpu_bundle.sh packed); NVIDIA's libraries are found
#   in its lib/, in the system, or among the packages of PyTorch. Without it the programs are built
#   here, in build/gpu_check, for this machine's GPU (needs nvcc and the packages of setup.sh).
# --limit: seconds for everything after the build (540); the report is there half a minute later at
#   most, even if a process cannot be killed. Building has 22 minutes of its own: where a command may
#   not take that long, bring a build or a bundle.
# --quick: doctor and tests, memcheck alone, and a glance at the rest. With an emulated engine the
#   timings mean nothing and are cut down in the same way.
# --full: every shape, model and type, with and without CUDA graphs, in at most an hour (--limit 3600).
# --name: the report is also put beside the others, as docs/benchmarks/NAME.md and NAME.json.
# Exit status: 0 passed, 1 a test failed or was not finished, 2 wrong usage, 77 no GPU (a report is
# written all the same).
set -uo pipefail
shopt -s nullglob
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
build='' out='' data='' device=cuda limit='' quick=0 full=0 name='' python=''

usage() {
  echo "gpu_check: $1 (see $0 --help)" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
  --help | -h)
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
    exit 0
    ;;
  --quick) quick=1 ;;
  --full) full=1 ;;
  --build | --out | --data | --device | --limit | --name)
    [ $# -ge 2 ] || usage "$1 needs a value"
    declare "${1#--}=$2"
    shift
    ;;
  *) usage "unknown flag $1" ;;
  esac
  shift
done
case $device in cuda | cuda:[0-9]*) ;; *) usage "--device is cuda or cuda:N" ;; esac
limit=${limit:-$((full ? 3600 : 540))}
case $name in *[!A-Za-z0-9_-]*) usage "--name is made of letters, digits, - and _" ;; esac
case $limit in '' | *[!0-9]* | ????????*) usage "--limit is a number of seconds" ;; esac
limit=$((10#$limit))
[ $limit -gt 0 ] || usage "--limit is a number of seconds"
[ $quick = 0 ] || [ $full = 0 ] || usage "--quick and --full exclude each other"
[ -z "$build" ] || build=$(cd "$build" 2>/dev/null && pwd) || usage "--build: there is no such folder"
[ -z "$build" ] || [ -x "$build/bin/train" ] || usage "--build: $build/bin/train is missing"
if [ -n "$data" ]; then
  data=$(cd "$data" 2>/dev/null && pwd) || usage "--data: there is no such folder"
  for folder in train val; do
    [ -d "$data/$folder" ] || usage "--data: $data needs folders train and val"
  done
fi
out=${out:-gpu_check}
mkdir -p "$out/logs" "$out/phases" || exit 2
out=$(cd "$out" && pwd)
rm -f "$out"/logs/* "$out"/phases/* "$out"/report.* "$out"/*.jsonl "$out"/facts "$out"/verdict
cd "$root" || exit 2

# ---- phases -------------------------------------------------------------------------------------
# Each leaves phases/NUMBER-NAME with lines "key value"; a note explains what is no pass.

now() { date +%s; }
began=$(now) started=$began number=0
left() { echo $((started + limit - $(now))); }

# Runs a command for so many seconds at most; its output goes to LOG. Status: the command's, 124 when
# it was stopped, 125 when not even SIGKILL ended it (a process inside the driver): then it is left
# behind, and nothing of it holds this script or who reads its output.
guard() { # SECONDS LOG COMMAND...
  local most=$1 log=$2 rc=125 answer t0=$SECONDS
  shift 2
  exec {answer}< <(
    exec 2>"$log"
    timeout -k 5 "$most" "$@" >&2 </dev/null
    echo $?
  )
  read -r -t $((most + 8)) -u "$answer" rc || rc=125
  exec {answer}<&-
  if [ "$rc" = 137 ] && [ $((SECONDS - t0)) -ge "$most" ]; then rc=124; fi
  return "$rc"
}

ask() { # SECONDS COMMAND...: what it prints, if it answers in time
  local file=$out/logs/answer-${2##*/}-$BASHPID rc
  guard "$1" "$file" "${@:2}"
  rc=$?
  if [ $rc = 124 ] || [ $rc = 125 ]; then echo "no answer from $2 in $1 s"; else cat "$file"; fi
  rm -f "$file"
  return $rc
}

record() { # FILE NAME KIND STATUS SECONDS NOTE COMMAND
  printf 'name %s\nkind %s\nstatus %s\nseconds %s\nnote %s\ncommand %s\n' "$2" "$3" "$4" "$5" "$6" \
    "$7" >"$1"
}
say() { printf '%-34s %-8s %6s  %s\n' "$1" "$2" "${3:+$3 s}" "$4"; }

note() { # NAME KIND STATUS TEXT: something that was not run
  number=$((number + 1))
  record "$out/phases/$(printf %03d $number)" "$1" "$2" "$3" 0 "$4" ""
  say "$1" "$3" "" "$4"
}

reason() { # LOG: the line of a failed run that says most
  { grep -aE '^ERROR: |FAILED [a-z]' "$1" || grep -aE '\] --- |[Ee]rror|FAILED' "$1" || tail -n 1 "$1"; } |
    head -1 | cut -c1-300
}

# KIND test: a failure or a timeout fails the whole. check: a failure does, a timeout is a gap.
# bench: it is reported.
phase() { # NAME KIND SECONDS COMMAND...
  number=$((number + 1))
  run_phase "$(printf %03d $number)" "$@"
}
run_phase() { # NUMBER NAME KIND SECONDS COMMAND...
  local file=$out/phases/$1 name=$2 kind=$3 most=$4 log=$out/logs/$2.log rest status=passed why='' t0 rc
  shift 4
  rest=$(left)
  [ "$most" -le "$rest" ] || most=$rest
  if [ "$most" -lt 3 ]; then
    status=skipped
    [ "$kind" = bench ] || status=timeout
    record "$file" "$name" "$kind" $status 0 "no time left (--limit $limit)" "$*"
    say "$name" $status "" "no time left"
    return
  fi
  t0=$(date +%s.%N)
  guard "$most" "$log" "$@"
  rc=$?
  case $rc in
  0) ;;
  77) status=skipped why=$(grep -v '^$' "$log" | tail -1) ;;
  124) status=timeout why="stopped after $most s" ;;
  125) status=timeout why="not ended by SIGKILL after $most s, left behind" ;;
  *) status=failed why="exit status $rc$([ $rc -le 128 ] || echo ", signal $((rc - 128))"): $(reason "$log")" ;;
  esac
  t0=$(awk -v a="$t0" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
  record "$file" "$name" "$kind" "$status" "$t0" "$why" "$*"
  say "$name" "$status" "$t0" "$why"
}

# ---- reports ------------------------------------------------------------------------------------

fact() { printf '%s\t%s\n' "$1" "$(printf '%s' "$2" | tr '\n\t' '  ')" >>"$out/facts"; } # NAME VALUE

quote() { # stdin as the inside of a JSON string
  awk '{ gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); gsub(/\t/, "\\t"); gsub(/[\001-\037]/, "")
         printf "%s%s", (NR > 1 ? "\\n" : ""), $0 }'
}
text() { printf '"%s"' "$(printf '%s' "$1" | quote)"; }
of() { sed -n "s/^$2 //p" "$1"; } # FILE KEY

lines_as_json() { # FILE.jsonl: its lines as a JSON list
  awk '/^\{.*\}$/ { printf "%s\n    %s", n++ ? "," : "", $0 } END { if (n) printf "\n  " }' "$1"
}

gaps() { # tests and checks that were not run, or found no end: a line "name: why" each
  local f
  for f in "$out"/phases/*; do
    case $(of "$f" kind)-$(of "$f" status) in
    check-timeout | check-absent | check-skipped | test-absent | test-skipped)
      printf '%s: %s\n' "$(of "$f" name)" "$(of "$f" note)"
      ;;
    esac
  done
}

write_json() { # VERDICT
  local f first=1 sep='' key value
  printf '{\n  "verdict": %s,\n  "seconds": %s,\n  "facts": {' "$(text "$1")" $(($(now) - began))
  while IFS=$'\t' read -r key value; do
    printf '%s\n    %s: %s' "$sep" "$(text "$key")" "$(text "$value")"
    sep=,
  done <"$out/facts"
  printf '\n  },\n  "gaps": ['
  sep=''
  while read -r value; do
    printf '%s\n    %s' "$sep" "$(text "$value")"
    sep=,
  done < <(gaps)
  printf '%s],\n  "phases": [' "${sep:+$'\n'  }"
  for f in "$out"/phases/*; do
    [ $first = 1 ] || printf ','
    first=0
    printf '\n    {"name": %s, "kind": %s, "status": %s, "seconds": %s, "note": %s, "command": %s}' \
      "$(text "$(of "$f" name)")" "$(text "$(of "$f" kind)")" "$(text "$(of "$f" status)")" \
      "$(of "$f" seconds)" "$(text "$(of "$f" note)")" "$(text "$(of "$f" command)")"
  done
  printf '\n  ]'
  for f in "$out"/*.jsonl; do
    [ -s "$f" ] && printf ',\n  %s: [%s]' "$(text "$(basename "$f" .jsonl)")" "$(lines_as_json "$f")"
  done
  printf '\n}\n'
}

table() { # FILE.jsonl TITLE=FIELD ...: a Markdown table of the lines that have the first field
  local file=$1
  shift
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
    field(key[1]) != "" { for (i = 1; i <= n; i++) printf "| %s ", field(key[i]); print "|" }' "$file"
}

section() { # TITLE FILE.jsonl TITLE=FIELD ...: nothing where no line has the first field
  grep -qs "\"${3#*=}\":" "$out/$2" || return 0
  printf '\n## %s\n\n' "$1"
  table "$out/$2" "${@:3}"
}

write_markdown() { # VERDICT
  local f key value
  printf '# GPU check: %s\n\n%s, %d seconds.\n\n| | |\n|---|---|\n' "$1" "$(date -u +%FT%TZ)" \
    $(($(now) - began))
  while IFS=$'\t' read -r key value; do printf '| %s | %s |\n' "$key" "$value"; done <"$out/facts"
  if [ -n "$(gaps)" ]; then
    printf '\n## Gaps: tests and checks without a result\n\n'
    gaps | sed 's/^/- /'
  fi
  printf '\n## What was run\n\n| phase | status | seconds | note | command |\n|---|---|---|---|---|\n'
  for f in "$out"/phases/*; do
    printf '| %s | %s | %s | %s | %s |\n' "$(of "$f" name)" "$(of "$f" status)" "$(of "$f" seconds)" \
      "$(of "$f" note | tr '|' '/')" "$(of "$f" command | sed 's/..*/`&`/; s/|/\\|/g')"
  done
  section "Training steps" steps.jsonl step=name s/step=step_s images/s=images_per_s \
    forward=forward_s backward=backward_s update=update_s "peak MiB=peak_mib" "GFLOP/s=step_gflops"
  section "Training steps of the official model in PyTorch" torch_steps.jsonl step=name s/step=step_s \
    images/s=images_per_s "peak MiB=peak_mib"
  section "Latency: one forward pass" latency.jsonl step=name s=step_s "p90 s=step_p90_s" \
    "peak MiB=peak_mib"
  section "Latency of the official model in PyTorch" torch_latency.jsonl step=name s=step_s \
    "peak MiB=peak_mib"
  section "Deformable and depthwise convolution" dcn.jsonl op=op set=set shape=shape type=dtype \
    "forward ms=fwd_ms" "% copy=fwd_pct_copy" "% L1=fwd_pct_l1" "backward ms=bwd_ms" \
    "% copy=bwd_pct_copy" "% L1=bwd_pct_l1" "both ms=fwd_bwd_ms"
  section "The same in PyTorch and the official extensions" torch_ops.jsonl op=op set=set \
    shape=shape type=dtype "forward ms=fwd_ms" "backward ms=bwd_ms" "both ms=fwd_bwd_ms" \
    "peak MiB=peak_mib"
  section "DCN: times of the others over ours" ratios.jsonl other=other ours=ours shape=shape \
    type=dtype "forward x=fwd" "backward x=bwd" "both x=fwd_bwd"
  section "Development variants of the DCN kernels: times" variants.jsonl variant=variant part=part op=op \
    shape=shape type=dtype ms=ms "over the product's=over_product" GB/s=GB_s "% copy=pct_copy"
  section "Development variants of the DCN kernels: errors" variants.jsonl variant=checked part=part \
    type=dtype calls=calls error=error allowed=allowed passed=passed
  section "Limits of this machine" limits.jsonl limit=limit type=dtype GB/s=GB_s GFLOP/s=GFLOP_s
  section "Ops: times, and shares of those limits" ops.jsonl op=op shape=shape type=dtype \
    "forward ms=fwd_ms" "% copy=fwd_pct_copy" "% gemm=fwd_pct_gemm" "backward ms=bwd_ms" \
    "% copy=bwd_pct_copy" "% gemm=bwd_pct_gemm"
  if [ -s "$out/logs/doctor.log" ]; then
    printf '\n## The doctor\n\n```\n%s\n```\n' "$(cat "$out/logs/doctor.log")"
  fi
}

# What the official operators and PyTorch take, over what ours take, at the same shape and type.
write_ratios() {
  [ -s "$out/dcn.jsonl" ] && [ -s "$out/torch_ops.jsonl" ] || return 0
  awk '
    function field(name,   s) {
      if (!match($0, "\"" name "\": *(\"[^\"]*\"|[^,}]*)")) return ""
      s = substr($0, RSTART, RLENGTH); sub(/^"[^"]*": */, "", s); gsub(/"/, "", s); return s
    }
    { op = field("op"); key = field("set") " " field("shape") " " field("dtype") }
    FNR == NR && op != "" { for (i = 1; i <= 3; i++) t[op, key, i] = field(d[i] "_ms"); next }
    FNR != NR {
      ours = op ~ /DCNv4/ ? "dcnv4" : op ~ /[dD][cC][nN]v3/ ? "dcnv3" : op ~ /dwconv3/ ? "dwconv3" : op ~ /dwconv5/ ? "dwconv5" : ""
      if (ours == "" || !t[ours, key, 1]) next
      printf "{\"other\": \"%s\", \"ours\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\"", op, ours, field("shape"), field("dtype")
      for (i = 1; i <= 3; i++) printf ", \"%s\": %.2f", d[i], field(d[i] "_ms") / t[ours, key, i]
      print "}"
    }
    BEGIN { split("fwd bwd fwd_bwd", d, " ") }' "$out/dcn.jsonl" "$out/torch_ops.jsonl" >"$out/ratios.jsonl"
}

finish() { # VERDICT EXIT-STATUS
  write_ratios
  cat "$out"/dcn.jsonl "$out"/ops.jsonl 2>/dev/null | grep '"limit"' | sort -u >"$out/limits.jsonl"
  write_json "$1" >"$out/report.json"
  write_markdown "$1" >"$out/report.md"
  if [ -n "$name" ]; then
    mkdir -p docs/benchmarks
    cp "$out/report.md" "docs/benchmarks/$name.md"
    cp "$out/report.json" "docs/benchmarks/$name.json"
  fi
  rm -f "$out/facts" "$out/verdict"
  echo "gpu_check: $1; $out/report.md, $out/report.json"
  exit "$2"
}

# ---- the watchdog -------------------------------------------------------------------------------
# The work is done by a second shell, which ends with conclude(). The first one waits for as long as
# that may take, and writes the report whatever became of it.

conclude() { # VERDICT EXIT-STATUS
  printf '%s\n%s\n' "$2" "$1" >"$out/verdict.new"
  mv "$out/verdict.new" "$out/verdict"
  exit "$2"
}

end_tree() { # PID: it and its descendants
  local child
  # shellcheck disable=SC2013 # the file has words
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do end_tree "$child"; done
  kill -9 "$1" 2>/dev/null
}

watch() { # SECONDS
  local worker alarm stopped='' why="the script's own shell died"
  check &
  worker=$!
  sleep "$1" >/dev/null 2>&1 &
  alarm=$!
  trap 'stopped=yes' TERM INT
  wait -n "$worker" "$alarm"
  trap '' TERM INT
  if [ -s "$out/verdict" ]; then
    :
  elif [ -n "$stopped" ]; then
    why="stopped from outside (SIGTERM or SIGINT)"
  elif ! kill -0 "$alarm" 2>/dev/null; then
    why="not finished within $1 s"
  fi
  disown -a # the shell says nothing about them
  end_tree "$worker"
  end_tree "$alarm"
  [ ! -s "$out/verdict" ] || finish "$(sed -n 2p "$out/verdict")" "$(sed -n 1p "$out/verdict")"
  finish "FAILED: $why; the last output is in logs/$(basename "$(ls -t "$out"/logs | head -1)")" 1
}

# ---- the machine --------------------------------------------------------------------------------

describe_machine() {
  local query nvcc
  fact system "$(uname -srm); $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release 2>/dev/null)"
  fact processors "$(nproc) of $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | sort -u | head -1)"
  if command -v nvidia-smi >/dev/null; then
    query=name,memory.total,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,utilization.gpu
    fact nvidia-smi "$(ask 20 nvidia-smi --query-gpu=$query --format=csv,noheader | paste -sd';')"
    fact nvidia-smi-columns $query
  else
    fact nvidia-smi "absent"
  fi
  fact commit "$(cat VERSION_BUILT 2>/dev/null || git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)"
  nvcc=$(command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null || true)
  fact nvcc "$([ -n "$nvcc" ] && "$nvcc" --version | sed -n 's/.*release //p' || echo absent)"
}

find_python() { # one that has PyTorch, in $python
  local p
  [ -z "$python" ] || return 0
  for p in "${PYTHON:-}" python3 /usr/bin/python3; do
    if [ -n "$p" ] && ask 60 "$p" -c 'import torch' >/dev/null; then python=$p; return; fi
  done
}

build_here() {
  local saved=$limit
  build=$root/build/gpu_check
  limit=$((limit + build_limit)) # building has its own time
  phase configure test 120 cmake --preset cuda -B "$build" -DCMAKE_CUDA_ARCHITECTURES=native
  phase build test 1200 cmake --build "$build" --parallel "$(nproc)"
  limit=$saved started=$(now)
  [ -x "$build/bin/train" ] ||
    conclude "FAILED: the programs cannot be built here (logs/build.log, logs/configure.log)" 1
}

# NVIDIA's libraries, where the loader does not find them by itself.
find_libraries() {
  local paths=$build/lib python_nvidia f d at missing
  if ldd "$bin/train" 2>/dev/null | grep -q 'not found'; then
    find_python
    python_nvidia=$("${python:-python3}" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)/nvidia
    for f in $(LD_LIBRARY_PATH=$paths ldd "$bin/train" | awk '/not found/ { print $1 }'); do
      for d in "${CUDA_HOME:-/usr/local/cuda}/lib64" "$python_nvidia"; do
        at=$(find -L "$d" -maxdepth 4 -name "$f" 2>/dev/null | head -1)
        if [ -n "$at" ]; then paths=$paths:$(dirname "$at"); break; fi
      done
    done
  fi
  own_library_path=${LD_LIBRARY_PATH-} # PyTorch's; some machines find the driver by it
  export LD_LIBRARY_PATH=$paths${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  missing=$(ldd "$bin/train" 2>&1 | grep 'not found' | paste -sd' ')
  fact library-path "$LD_LIBRARY_PATH"
  [ -z "$missing" ] || conclude "FAILED: libraries are missing here: $missing" 1
}

other_processor() {
  conclude "FAILED: the programs are compiled for another processor (illegal instruction): configure with -DII_NATIVE=OFF" 1
}

start_programs() {
  guard 60 "$out/logs/start.log" "$bin/train" --version
  case $? in
  0) ;;
  132) other_processor ;;
  *) conclude "FAILED: the programs do not start here: $(tail -n 1 "$out/logs/start.log")" 1 ;;
  esac
}

# ---- tests --------------------------------------------------------------------------------------

run_doctor() {
  local what value
  phase doctor test 120 "$bin/train" --doctor --device "$device"
  ! grep -q '^note exit status 132' "$out/phases/$(printf %03d $number)" || other_processor
  if grep -q '^cuda: not tested' "$out/logs/doctor.log"; then
    conclude "no GPU was checked: $(sed -n 's/^cuda: not tested: //p' "$out/logs/doctor.log")" 77
  fi
  emulated=0
  if grep -q '^engines .*emulated' "$out/logs/doctor.log"; then emulated=1; fi
  for what in engines 'GPU code' driver 'GPU 0' HDF5 oneDNN 'CUDA runtime' cuBLASLt cuDNN; do
    value=$(sed -n "s/^ *$what  *//p" "$out/logs/doctor.log" | head -1 | tr -s ' ')
    [ -z "$value" ] || fact "$what" "$value"
  done
  [ $emulated = 0 ] || fact device "EMULATED on the processor: correctness only, every timing is meaningless"
  small=$((quick | emulated))
}

run_tests() { # side by side: the GPU has room for all of them
  local most=300 t golden
  # one that hangs shall leave time for the rest
  [ $emulated = 1 ] || [ $((limit / 3)) -ge $most ] || most=$((limit / 3))
  golden=(tests/golden/*.h5 tests/golden/*.json.gz)
  for t in golden_check test_ops{,_dcn,_special,_update} test_joint test_optimizer test_drop_path \
    test_mix test_selftest "$bin"/test_cuda_*; do
    t=$bin/${t##*/}
    if [ ! -x "$t" ]; then
      note "${t##*/}" test absent "not in this build"
      continue
    fi
    set --
    if [ "${t##*/}" = golden_check ]; then
      set -- --device "$device" "${golden[@]}"
      if [ ${#golden[@]} -eq 0 ]; then
        note golden_check test absent "its files (tests/golden) are not here"
        continue
      fi
    fi
    number=$((number + 1))
    run_phase "$(printf %03d $number)" "${t##*/}" test $most "$t" "$@" &
    while [ "$(jobs -pr | wc -l)" -ge $(($(nproc) > 8 ? 8 : $(nproc))) ]; do wait -n; done
  done
  while [ "$(jobs -pr | wc -l)" -gt 0 ]; do wait -n; done
}

sanitize() { # TOOL
  local log=$out/logs/sanitizer-$1.log file most=$(($(left) / 2))
  [ $most -le $((limit / 4)) ] || most=$((limit / 4)) # what comes after has a share, too
  phase "sanitizer-$1" check $most "$sanitizer" --tool "$1" --error-exitcode 9 "$bin/train" \
    --doctor --device "$device"
  file=$out/phases/$(printf %03d $number)
  if grep -qs 'Device not supported' "$log"; then
    sed -i 's/^status .*/status absent/; s/^note .*/note compute-sanitizer refuses this device/' "$file"
    say "sanitizer-$1" absent "" "compute-sanitizer refuses this device"
    return 1
  fi
  # all kernels of ours, and few of the libraries', are in an anonymous namespace
  if grep -q '^status failed' "$file" && grep -q 'kernels passed' "$log" &&
    ! grep -q 'anonymous namespace\|_GLOBAL__N_\|<unnamed>\|_INTERNAL_' "$log"; then
    sed -i "s/^status .*/status passed/; s/^note .*/note reports from inside NVIDIA's libraries alone/" "$file"
    say "sanitizer-$1" passed "" "reports from inside NVIDIA's libraries alone"
  fi
}

run_sanitizers() {
  local tool sanitizer
  sanitizer=$(command -v compute-sanitizer ||
    ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null || true)
  if [ $emulated = 1 ]; then
    note compute-sanitizer check absent "emulated device: the emulator's own checks do this work"
  elif [ -z "$sanitizer" ]; then
    note compute-sanitizer check absent "not installed (CUDA toolkit)"
  else
    for tool in memcheck racecheck synccheck initcheck; do
      if [ $quick = 1 ] && [ $tool != memcheck ]; then
        note "sanitizer-$tool" check skipped "--quick"
      elif ! sanitize $tool; then
        break
      fi
    done
  fi
}

# ---- times --------------------------------------------------------------------------------------

bench() { # FILE.jsonl NAME SECONDS COMMAND...: its JSON lines are kept
  local file=$out/$1 name=$2
  if [ ! -x "$4" ]; then
    note "$name" bench absent "$4 is not in this build"
    return
  fi
  phase "$name" bench "${@:3}"
  grep -s '^{.*}$' "$out/logs/$name.log" >>"$file" || true
}

# step CONFIG BATCH SIZE AMP GRAPH [OPTION...]: bench_step of one model
step() {
  local config=$1 batch=$2 size=$3 amp=$4 graph=$5 file=steps.jsonl what=step
  shift 5
  case " $* " in *" --forward "*) file=latency.jsonl what=latency ;; esac
  [ -z "$graph" ] || set -- "$@" --set "train.cuda_graph=$graph"
  bench $file "$what-$config-$amp${graph:+-graph-$graph}" 90 "$bin/bench_step" --config "$config" \
    --batch "$batch" --size "$size" --amp "$amp" --device "$device" "$@"
}

choose_models() { # at their published sizes: configuration, short name, images per step, pixels
  models=("internimage_t_1k t 128 224" "flash_internimage_t_1k t 128 224")
  [ $full = 0 ] ||
    models+=("internimage_l_22kto1k_384 l 16 384" "flash_internimage_l_22kto1k_384 l 16 384")
  latency_models=("${models[@]}")
  [ $full = 0 ] || latency_models+=("internimage_s_1k s 128 224" "internimage_b_1k b 64 224"
    "flash_internimage_s_1k s 128 224" "flash_internimage_b_1k b 64 224")
  graphs=('')
  if ask 20 "$bin/train" --help | grep -q 'train.cuda_graph'; then graphs=(off on); fi
}

steps() { # AMP...: training steps of the models
  local m config batch size amp graph
  for m in "${models[@]}"; do
    read -r config _ batch size <<<"$m"
    for amp in "$@"; do
      for graph in "${graphs[@]}"; do step "$config" "$batch" "$size" "$amp" "$graph" --steps 10 --profile; done
    done
  done
}
latencies() { # AMP...
  local m config size amp
  for m in "${latency_models[@]}"; do
    read -r config _ _ size <<<"$m"
    for amp in "$@"; do step "$config" 1 "$size" "$amp" '' --steps 50 --forward; done
  done
}

run_glance() { # --quick, and emulated devices
  local n=$((emulated ? 2 : 32)) graph
  for graph in "${graphs[@]}"; do step quickstart $n 64 none "$graph" --steps 2; done
  step quickstart 1 64 none '' --steps 2 --forward
  bench dcn.jsonl dcn 60 "$bin/bench_dcn" --device "$device" --batch 1 --repeat 1 --flush 1 --shape 3
  bench variants.jsonl variants 60 "$bin/bench_variants" --device "$device" --check --dtype f16
  bench ops.jsonl ops 60 "$bin/bench_ops" --device "$device" --batch 1 --repeat 1 --shapes 1 --flush 1 \
    --only add --only gelu --dtype f32 --dtype bf16
}

run_short_benchmarks() {
  steps bf16
  bench dcn.jsonl dcn-paper 120 "$bin/bench_dcn" --device "$device" --set paper --repeat 15
  latencies bf16
}

run_other_benchmarks() {
  local set sets=(tiny)
  [ $full = 0 ] || sets=(tiny small base large)
  for set in "${sets[@]}"; do
    bench dcn.jsonl "dcn-$set" 120 "$bin/bench_dcn" --device "$device" --set "$set" --batch 64 --repeat 15
  done
  steps fp16 none
  latencies fp16
  bench ops.jsonl ops 120 "$bin/bench_ops" --device "$device" --batch 64 --repeat 9 --dtype bf16 \
    --dtype f16 --dtype f32
  [ $full = 1 ] || return 0
  bench dcn.jsonl dcn-joint 120 "$bin/bench_dcn" --device "$device" --set all --only dcnv4_joint \
    --batch 64 --repeat 15
  bench variants.jsonl variants 300 "$bin/bench_variants" --device "$device"
}

# torch_step FAMILY FOLDER: training steps and latency of the official model
torch_step() {
  local family=$1 folder=$2 label=internimage m config model batch size amp way file what
  [ "$family" = internimage ] || label=flash_internimage
  for m in "${latency_models[@]}"; do
    read -r config model batch size <<<"$m"
    case $config in "$label"_*) ;; *) continue ;; esac
    for amp in bf16 fp16 none; do
      for way in '' --channels-last --compile '--latency' '--latency --graph'; do
        [ $full = 1 ] || [ "$amp" = bf16 ] || [ -z "$way" ] || continue
        file=torch_steps.jsonl what=step
        case $way in *latency*) file=torch_latency.jsonl what=latency ;; esac
        what=torch-$what-${label}_$model-$amp${way//[^a-z]/}
        # shellcheck disable=SC2086 # --latency --graph are two words
        phase "$what" bench 240 "${torch[@]}" bench/torch_gpu_step.py --official "$folder" \
          --family "$family" --model "$model" --size "$size" --amp $amp --steps 10 \
          --batch "$([[ $way == *latency* ]] && echo 1 || echo "$batch")" $way
        grep -s '^{.*}$' "$out/logs/$what.log" >>"$out/$file" || true
      done
    done
  done
}

run_torch_ops() {
  local extension missing
  if [ $small = 1 ]; then
    phase torch-ops bench 60 "${torch[@]}" bench/torch_gpu_ops.py --set tiny --batch 4 --repeat 3
  elif [ $full = 1 ]; then
    phase torch-ops bench 900 "${torch[@]}" bench/torch_gpu_ops.py --set all --batch 64
  else
    phase torch-ops bench 150 "${torch[@]}" bench/torch_gpu_ops.py --set paper
  fi
  grep -s '^{.*}$' "$out/logs/torch-ops.log" >>"$out/torch_ops.jsonl" || true
  for extension in DCNv3 DCNv4 torch.compile; do
    missing=$(sed -n "s/^absent: $extension: //p" "$out/logs/torch-ops.log" 2>/dev/null)
    [ -z "$missing" ] || note "official-$extension" bench absent "$missing"
  done
}

run_torch() {
  LD_LIBRARY_PATH=$own_library_path find_python
  torch=(env LD_LIBRARY_PATH="$own_library_path" "$python" -W ignore)
  if [ -z "$python" ]; then
    note pytorch bench absent "no python3 that imports torch (PYTHON chooses one)"
    return
  elif ! ask 60 "${torch[@]}" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' >/dev/null; then
    note pytorch bench absent "$python has torch, but without a GPU that it can use"
    return
  fi
  fact PyTorch "$(ask 60 "${torch[@]}" -c 'import torch; print(torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())')"
  run_torch_ops
  if [ $small = 0 ] && [ -n "${OFFICIAL:-}" ]; then torch_step internimage "$OFFICIAL"; else
    note torch-step bench absent "OFFICIAL does not name the classification folder of an InternImage checkout"
  fi
  if [ $small = 0 ] && [ -n "${OFFICIAL_V4:-}" ]; then torch_step flash "$OFFICIAL_V4"; else
    note torch-step-flash bench absent "OFFICIAL_V4 does not name the classification folder of a DCNv4 checkout"
  fi
}

# ---- a training run -----------------------------------------------------------------------------

run_training() {
  local run=$out/cifar10 rest best epochs
  if [ -z "$data" ]; then
    note cifar10 bench absent "no --data"
    return
  fi
  rm -rf "$run"
  rest=$(($(left) - 30))
  [ $rest -le 150 ] || rest=150
  if [ "$rest" -lt 10 ]; then
    note cifar10 bench skipped "no time left (--limit $limit)"
    return
  fi
  # SIGTERM makes the trainer save and leave with 85: what it reached by then counts
  # shellcheck disable=SC2016 # for the inner shell
  phase cifar10 bench $((rest + 20)) bash -c 'timeout -s TERM "$1" "${@:2}"; rc=$?; [ $rc = 124 ] || [ $rc = 85 ] || exit $rc' \
    cifar10 $rest "$bin/train" --config cifar10.cfg --device "$device" --set "data.root=$data" \
    --set "train.output_dir=$run" --set train.amp=bf16 --set train.epochs=$((small ? 1 : 6)) \
    --set train.eval_every_epochs=1
  best=$(sed -n 's/.*"kind": *"val".*"top1": *\([0-9.]*\).*/\1/p' "$run/metrics.jsonl" 2>/dev/null | sort -n | tail -1)
  epochs=$(sed -n 's/.*"kind": *"val".*"epoch": *\([0-9]*\).*/\1/p' "$run/metrics.jsonl" 2>/dev/null | tail -1)
  [ -z "$best" ] || fact "CIFAR-10 micro run" "best top-1 $best % after ${epochs:-?} epochs"
}

# ---- all of it ----------------------------------------------------------------------------------

give_verdict() {
  local f failed=0 count
  for f in "$out"/phases/*; do
    case $(of "$f" kind)-$(of "$f" status) in
    test-failed | test-timeout | check-failed) failed=$((failed + 1)) ;;
    esac
  done
  [ $failed = 0 ] || conclude "FAILED: $failed tests failed or were not finished" 1
  count=$(gaps | wc -l)
  conclude "all tests passed$([ "$count" = 0 ] || echo ", with $count gaps")$([ $emulated = 0 ] || echo ' (emulated device)')" 0
}

check() {
  describe_machine
  [ -n "$build" ] || build_here
  bin=$build/bin
  fact build "$build"
  # tests run side by side: their idle threads shall not spin
  export II_TEST_DEVICE=$device II_BIN_DIR=$bin II_TEST_FILES=$root/tests
  export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000}
  find_libraries
  start_programs
  run_doctor
  run_tests
  choose_models
  if [ $small = 1 ]; then run_glance; else run_short_benchmarks; fi
  run_sanitizers
  [ $small = 1 ] || run_other_benchmarks
  run_torch
  run_training
  give_verdict
}

build_limit=0
[ -n "$build" ] || build_limit=1320
watch $((limit + build_limit + 30))
