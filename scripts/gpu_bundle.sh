#!/usr/bin/env bash
# gpu_bundle.sh [--build DIR] [--out DIR] [--with-nvidia] [--native]: packs what gpu_check.sh needs on a GPU
# machine where nothing can be built, also one of another distribution: the programs of a build
# (build/cuda), the shared libraries they load, configurations, reference data, scripts. There:
#
#   tar xzf gpu_bundle.tar.gz && gpu_bundle/scripts/gpu_check.sh --build gpu_bundle --out report
#
# Left out, and said: the C library (the machine's own must be as new as this one's), the driver, and
# without --with-nvidia the libraries of the CUDA toolkit and cuDNN, which are ten times as large as
# all the rest; gpu_check.sh finds those of the system or of a PyTorch installation. A build for this
# machine's processor alone (II_NATIVE, the default) is packed with --native only. Writes
# DIR (gpu_bundle) and DIR.tar.gz. Exit status: 0 packed, 1 an error, 2 wrong usage.
set -euo pipefail
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/cuda out=gpu_bundle nvidia=0 native=0

usage() {
  echo "gpu_bundle: $1 (see the head of $0)" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
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
rm -rf "$out" "$out.tar.gz"
mkdir -p "$out"/{bin,lib,scripts,bench,tests/golden,configs}

programs=(train eval golden_check bench_step bench_ops bench_dcn bench_variants make_sample_data
  test_ops test_ops_dcn test_ops_special test_ops_update test_selftest)
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

# Libraries: by the loader's own answer, the ones it opens later (cuDNN's parts) by their names.
left_out=()
is_libc='/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv))\.so'
is_nvidia='/lib(cudart|cublas|cublasLt|cudnn[a-z_]*|nccl|nvrtc[^/]*|nvJitLink)\.so'
while read -r path; do
  if [[ $path =~ $is_libc ]]; then
    left_out+=("$(basename "$path")")
  elif [[ $path =~ $is_nvidia ]] && [ $nvidia = 0 ]; then
    left_out+=("$(basename "$path") ($(du -hL "$path" | cut -f1))")
  else
    cp -L "$path" "$out/lib/"
    if [[ $path =~ libcudnn\.so ]]; then cp -L "$(dirname "$path")"/libcudnn_*.so.9 "$out/lib/"; fi
  fi
done < <(ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u)
unresolved=$(ldd "$out"/bin/* | awk '/not found/ { print $1 }' | sort -u | paste -sd' ')

cp "$root"/scripts/gpu_check.sh "$out/scripts/"
cp "$root"/bench/torch_*.py "$out/bench/"
cp "$root"/configs/*.cfg "$out/configs/"
cp "$root"/tests/golden/*.h5 "$root"/tests/golden/*.json.gz "$out/tests/golden/"
(cd "$root" && git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown) >"$out/VERSION_BUILT"
tar -C "$(dirname "$out")" -czf "$out.tar.gz" "$(basename "$out")"

echo "gpu_bundle: $out.tar.gz, $(du -h "$out.tar.gz" | cut -f1) ($(du -sh "$out" | cut -f1) unpacked)"
echo "left out: ${left_out[*]:-nothing}"
[ ${#absent[@]} -eq 0 ] || echo "not in this build: ${absent[*]}"
[ -z "$unresolved" ] || echo "not found here, and needed there: $unresolved"
libc=$(grep -aoh 'GLIBC_2\.[0-9]*' "$out"/bin/* "$out"/lib/* | sort -uV | tail -1)
echo "the machine needs the GNU C library ${libc#GLIBC_} or newer"
if [ "$(stat -c %s "$out.tar.gz")" -gt $((64 << 20)) ]; then
  echo "note: larger than 64 MiB"
fi
