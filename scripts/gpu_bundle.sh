#!/usr/bin/env bash
# gpu_bundle.sh [--build DIR] [--out DIR] [--with-nvidia] [--native] | --help: packs what
# gpu_check.sh needs on a GPU machine where nothing can be built, also one of another distribution:
# the programs of a build (build/cuda), the shared libraries they load, configurations, reference
# data, scripts. There:
#
#   tar xJf gpu_bundle.tar.xz && gpu_bundle/scripts/gpu_check.sh --build gpu_bundle --out report
#
# Left out, and said: the C library (the machine's own must be as new as this one's), the driver, and
# without --with-nvidia the libraries of the CUDA toolkit and cuDNN, which are many times as large as
# all the rest; gpu_check.sh finds those of the system or of a PyTorch installation. With it, they are
# packed with what cuDNN opens at run time: its other parts, and NVRTC, without which it lacks the
# kernels that it compiles itself. A build for this machine's processor alone (II_NATIVE, the default)
# is packed with --native only. Writes DIR (gpu_bundle) and DIR.tar.xz. Exit status: 0 packed, 1 an
# error, 2 wrong usage.
set -euo pipefail
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/cuda out=gpu_bundle nvidia=0 native=0

usage() {
  echo "gpu_bundle: $1 (see $0 --help)" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
  --help | -h)
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
    exit 0
    ;;
  --with-nvidia) nvidia=1 ;;
  --native) native=1 ;;
  --build | --out)
    [ $# -ge 2 ] || usage "$1 needs a value"
    declare "${1#--}=$2"
    shift
    ;;
  *) usage "unknown flag $1" ;;
  esac
  shift
done
[ -x "$build/bin/train" ] || usage "$build/bin/train is missing: build first (cmake --preset cuda)"
if [ $native = 0 ] && grep -qs '^II_NATIVE:BOOL=ON' "$build/CMakeCache.txt"; then
  usage "$build is for this machine's processor alone: configure with -DII_NATIVE=OFF -DCMAKE_C_FLAGS=-march=x86-64-v3, or add --native"
fi
[ ! -e "$out" ] || [ -e "$out/VERSION_BUILT" ] || usage "$out exists and is no bundle"
command -v xz >/dev/null || usage "xz is missing (package xz-utils)"
rm -rf "$out" "$out.tar.xz"
mkdir -p "$out"/{bin,lib,scripts,bench,tests/golden/{augment,optim},configs}

programs=(train eval golden_check bench_step bench_ops bench_dcn bench_variants make_sample_data
  test_ops test_ops_dcn test_ops_special test_ops_update test_joint test_optimizer test_drop_path
  test_mix test_selftest)
for p in "$build"/bin/test_cuda_*; do
  if [ -x "$p" ]; then programs+=("$(basename "$p")"); fi
done
absent=()
for p in "${programs[@]}"; do
  if [ -x "$build/bin/$p" ]; then
    cp "$build/bin/$p" "$out/bin/"
    strip --strip-debug "$out/bin/$p"
  else
    absent+=("$p")
  fi
done

# Libraries: by the loader's own answer, and those that cuDNN opens later, by their names.
left_out=() nvidia_folders=()
is_libc='/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv))\.so'
is_nvidia='/lib(cudart|cublas|cublasLt|cudnn[a-z_]*|nccl|nvrtc[^/]*|nvJitLink)\.so'
while read -r path; do
  if [[ $path =~ $is_libc ]]; then
    left_out+=("$(basename "$path")")
  elif [[ $path =~ $is_nvidia ]] && [ $nvidia = 0 ]; then
    left_out+=("$(basename "$path") ($(du -hL "$path" | cut -f1))")
  else
    cp -L "$path" "$out/lib/"
    if [[ $path =~ $is_nvidia ]]; then nvidia_folders+=("$(dirname "$path")"); fi
  fi
done < <(ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// && !seen[$1]++ { print $3 }' | sort)

# Copies each library beside the ones above whose name is PATTERN, an extended regular expression.
copy_opened() { # PATTERN
  local folder path found=0
  for folder in "${nvidia_folders[@]}" "${CUDA_HOME:-/usr/local/cuda}/lib64"; do
    for path in "$folder"/*.so.*; do
      if [[ $(basename "$path") =~ ^$1$ ]]; then
        [ -e "$out/lib/$(basename "$path")" ] || cp -L "$path" "$out/lib/"
        found=1
      fi
    done
    [ $found = 0 ] || return 0
  done
  echo "gpu_bundle: no library here is named $1, which cuDNN needs at run time" >&2
  exit 1
}
if [ -e "$out/lib/libcudnn.so.9" ]; then
  for part in graph engines_precompiled engines_runtime_compiled heuristic ops cnn adv; do
    copy_opened "libcudnn_$part\\.so\\.9"
  done
  copy_opened 'libnvrtc\.so\.[0-9]+'
  copy_opened 'libnvrtc-builtins\.so\.[0-9]+\.[0-9]+'
fi
unresolved=$(ldd "$out"/bin/* | awk '/not found/ { print $1 }' | sort -u | paste -sd' ')

cp "$root"/scripts/gpu_check.sh "$out/scripts/"
cp "$root"/bench/torch_*.py "$out/bench/"
cp "$root"/configs/*.cfg "$out/configs/"
cp "$root"/tests/golden/*.h5 "$root"/tests/golden/*.json.gz "$out/tests/golden/"
cp "$root"/tests/golden/augment/{mix.txt,*.f32} "$out/tests/golden/augment/"
cp "$root"/tests/golden/optim/steps.txt "$out/tests/golden/optim/"
(cd "$root" && git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown) >"$out/VERSION_BUILT"
# The window of xz holds several programs, each of which is mostly the same kernels.
effort=$((nvidia ? 1 : 6))
tar -C "$(dirname "$out")" -c "$(basename "$out")" |
  xz --lzma2=preset=$effort,dict=128MiB -c >"$out.tar.xz"

size() { du -sh "$@" | awk '{ s = s (NR > 1 ? ", " : "") $2 " " $1 } END { print s }'; }
echo "gpu_bundle: $out.tar.xz, $(du -h "$out.tar.xz" | cut -f1)"
(cd "$out" && echo "unpacked: $(size bin lib tests configs)")
echo "left out: ${left_out[*]:-nothing}"
[ ${#absent[@]} -eq 0 ] || echo "not in this build: ${absent[*]}"
[ -z "$unresolved" ] || echo "not found here, and needed there: $unresolved"
libc=$(grep -aoh 'GLIBC_2\.[0-9]*' "$out"/bin/* "$out"/lib/* | sort -uV | tail -1)
echo "the machine needs the GNU C library ${libc#GLIBC_} or newer"
if [ "$(stat -c %s "$out.tar.xz")" -gt $((64 << 20)) ]; then
  echo "note: larger than 64 MiB; build for the machine's GPU alone (CMAKE_CUDA_ARCHITECTURES=90-real)"
fi
