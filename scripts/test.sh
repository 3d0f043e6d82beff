#!/usr/bin/env bash
# Passes every test from a fresh machine: installs what is missing, builds with AddressSanitizer and
# UndefinedBehaviorSanitizer, and runs the tests. Where NVIDIA's headers are (CUDA Toolkit, cuDNN),
# the CUDA engine is tested as well, without a GPU: its kernels run on the processor under the same
# sanitizers and under a race checker, and what they ask of memory is counted (docs/emulation.md);
# where nvcc is, they pass the compile gate (docs/gpu.md) and the programs start with NVIDIA's libraries.
#
#   scripts/test.sh                     everything
#   scripts/test.sh --part cpu          one of: cpu threads sanitize race emulate profile gate cuda
#   scripts/test.sh --part cpu -R data  other arguments go to ctest
set -euo pipefail
cd "$(dirname "$0")/.."
parts="cpu threads sanitize race emulate profile gate cuda"
if [ "${1-}" = --part ]; then
  parts=${2:?--part needs one of: $parts}
  shift 2
fi
bash scripts/setup.sh

# Idle OpenMP threads sleep instead of spinning: tests run side by side on few cores.
export OMP_WAIT_POLICY=passive
jobs=$(nproc)

targets=all
build() { # build PRESET [cmake option...]: what is in $targets
  cmake --preset "$@" >/dev/null
  # shellcheck disable=SC2086
  cmake --build "build/$1" --parallel "$jobs" --target $targets >build/"$1".log 2>&1 || {
    grep -E -A5 'error|undefined reference' "build/$1.log" >&2 || tail -n 30 "build/$1.log" >&2
    exit 1
  }
}
check() { # check PRESET [ctest argument...]
  ctest --preset "$1" --parallel "$jobs" "${@:2}"
}

nvidia_headers() {
  local dir
  for dir in "${CUDA_HOME-}" "${CUDA_PATH-}" /usr/local/cuda /usr; do
    [ -n "$dir" ] && [ -f "$dir/include/cuda_runtime.h" ] && [ -f "$dir/include/cudnn.h" ] && return
  done
  return 1
}

part_cpu() {
  build sanitize
  check sanitize "$@"
}
# The threads of the input pipeline under ThreadSanitizer; nothing but these tests is built.
part_threads() {
  local names=(test_data_{loader,sampler,packed,threads})
  targets="${names[*]}"
  build tsan
  targets=all
  check tsan "$@"
}
# Queued work runs as late as it may, and device memory is closed to the host.
part_sanitize() {
  build emulate-sanitize
  II_EMU_STREAMS=lazy II_EMU_GUARD=1 check emulate-sanitize -L cuda "$@"
}
# Threads in their order, in the opposite one, and at random.
part_race() {
  build emulate-race
  check emulate-race -L cuda "$@"
  for seed in -1 3; do
    II_EMU_SEED=$seed check emulate-race -R '^test_(ops_cuda|ops_dcn_cuda|cuda_dcn|cuda_matrix)$' "$@"
  done
}
# The emulator's own tests, and the programs with it.
part_emulate() {
  build emulate
  check emulate -E '^test_(cuda_gate|conv_plans|data.*|config.*)$' "$@"
  build/emulate/bin/train --doctor
}
# Counts of memory accesses against their bounds.
part_profile() {
  targets="profile_dcn profile_dwconv" build emulate-profile
  check emulate-profile -R '^profile_(dcn|dwconv)$' "$@"
}
part_gate() {
  bash scripts/cuda_gate.sh
  bash scripts/cuda_gate.sh --dir bench/variants
}
# PTX alone: what is asked here is that the programs link, start, and say that there is no GPU.
part_cuda() {
  build cuda -DCMAKE_CUDA_ARCHITECTURES=90-virtual
  build/cuda/bin/train --doctor
  check cuda -L cuda "$@"
  check cuda -R "^test_conv_plans$"
}

for part in $parts; do
  case $part in
  sanitize | race | emulate | profile)
    if ! nvidia_headers; then
      echo "NOT TESTED: part $part, the CUDA engine on the processor: cuda_runtime.h and cudnn.h" \
        "were not found (CUDA Toolkit and cuDNN; set CUDA_HOME if they are elsewhere)"
      continue
    fi
    ;;
  gate | cuda)
    if ! command -v nvcc >/dev/null; then
      echo "NOT TESTED: part $part, what needs NVIDIA's compiler: nvcc was not found"
      continue
    fi
    ;;
  esac
  echo "== part $part"
  "part_$part" "$@"
done
