#!/usr/bin/env bash
# The compile gate must pass a good file and refuse each planted fault with the sentence that names
# it. Arguments: none. Exit status 77 without nvcc.
set -euo pipefail
cd "$(dirname "$0")"
gate=../../scripts/cuda_gate.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 status=0

run() { # leaves the status in $status, what was said in $work/said
  status=0
  bash $gate --out "$work/out" "$@" >"$work/said" 2>&1 || status=$?
}
expect() { # NAME STATUS SENTENCE...: a sentence that begins with ! must be absent
  local name=$1 want=$2 ok=1 s
  shift 2
  [ "$status" = "$want" ] || { ok=0; echo "  status $status instead of $want"; }
  for s; do
    if [ "${s#!}" != "$s" ]; then
      if grep -qF -- "${s#!}" "$work/said"; then ok=0; echo "  should not say: ${s#!}"; fi
    elif ! grep -qF -- "$s" "$work/said"; then
      ok=0; echo "  did not say: $s"
    fi
  done
  if [ $ok = 1 ]; then
    echo "ok    $name"
  else
    echo "FAIL  $name; the gate said:"
    sed 's/^/    /' "$work/said"
    failed=1
  fi
}

run --update --table "$work/good.txt" gate_good.cu
if [ "$status" = 77 ]; then
  cat "$work/said"
  exit 77
fi
expect "a table is written" 0 "cuda_gate: passed"
grep -q '^gate_good.cu *twice<float,4> *[0-9]* *[0-9]* *[0-9]* *2$' "$work/good.txt" || {
  echo "FAIL  the row of twice<float,4> has two 128-bit accesses:"; cat "$work/good.txt"; failed=1; }
[ "$(grep -c '^gate_good' "$work/good.txt")" = 3 ] || { echo "FAIL  three kernels"; failed=1; }
run --table "$work/good.txt" gate_good.cu
expect "a good file passes" 0 "cuda_gate: passed" "0 of 3 compilations are not cached"

awk '/float/ { $3 = $4 = $5 = 7 } { print }' "$work/good.txt" >"$work/tight.txt"
run --table "$work/tight.txt" gate_good.cu
expect "a kernel over its budget" 1 "twice<float,4> uses " "registers on sm_80, 7 are allowed" \
  "registers on sm_100, 7 are allowed" "!twice<double,2> uses" "cuda_gate: REFUSED"

awk '/bf16/ { $6 = 3 } { print }' "$work/good.txt" >"$work/wide.txt"
run --table "$work/wide.txt" gate_good.cu
expect "fewer 128-bit accesses than before" 1 \
  "twice<bf16,8> has 2 128-bit accesses of global memory, 3 are expected"

grep -v float "$work/good.txt" >"$work/short.txt"
run --table "$work/short.txt" gate_good.cu
expect "a kernel that the table lacks" 1 "twice<float,4> is not in" \
  "$(grep float "$work/good.txt" | tr -s ' ')"

: >"$work/none.txt"
run --update --table "$work/none.txt" gate_spill.cu
expect "a spill" 1 "gate_spill.cu: registers are spilled to memory on sm_80" "on sm_100" "many<float>"

run --update --table "$work/none.txt" gate_double.cu
expect "double arithmetic in kernels of float" 1 "literal<float> computes in double precision" \
  "argument<float> computes in double" "!argument<double> computes" "!moves computes"

sed '/literal<float>\|argument<float>/s/$/ double/' "$work/none.txt" >"$work/allowed.txt"
run --table "$work/allowed.txt" gate_double.cu
expect "double arithmetic that the table allows" 0 "cuda_gate: passed"
run --update --table "$work/allowed.txt" gate_double.cu
expect "an update keeps what the table allows" 0 "cuda_gate: passed"

: >"$work/none.txt"
run --update --table "$work/none.txt" gate_call.cu
expect "double arithmetic in a function that is called" 1 "calls<float> computes in double"

run --update --table "$work/none.txt" gate_warning.cu
expect "a warning of the device compiler" 1 "gate_warning.cu: does not compile without warnings" \
  "forgotten"
run --update --table "$work/none.txt" gate_host_warning.cu
expect "a warning of the host compiler" 1 "gate_host_warning.cu: does not compile without warnings" \
  "signed"

mkdir "$work/folder"
cp gate_good.cu "$work/folder"
run --update --dir "$work/folder"
expect "a folder with a table of its own" 0 "3 kernels compared with $work/folder/registers.txt"
echo "gone.cu gone<float> 1 1 1 0" >>"$work/folder/registers.txt"
run --dir "$work/folder"
expect "a row without a kernel in that folder" 1 'has a row for "gone.cu gone<float>"'

run --nonsense
expect "an unknown flag" 2 "unknown flag --nonsense"

mkdir "$work/bin"
for tool in bash dirname awk env; do ln -s "$(command -v $tool)" "$work/bin/$tool"; done
status=0
PATH=$work/bin CUDA_HOME=$work bash $gate >"$work/said" 2>&1 || status=$?
expect "no nvcc" 77 "cuda_gate: skipped: no nvcc"
exit $failed
