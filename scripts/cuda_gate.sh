#!/usr/bin/env bash
# cuda_gate.sh [--update] [--dir DIR] [--table FILE] [--out DIR] [FILE.cu ...]: compiles the CUDA
# kernels for every GPU we ship code for, without a GPU, and refuses
#   - warnings of nvcc, the host compiler and ptxas, and registers spilled to memory;
#   - a kernel that uses more registers than DIR/registers.txt allows it;
#   - a kernel with fewer 128-bit loads and stores of global memory than that table says;
#   - double-precision arithmetic in a kernel without a `double` among its template arguments;
#   - a kernel that the table does not know and, when all files are compiled, a row of the table
#     that no kernel has.
# DIR is kernels/cuda; --table names another table. Without FILEs: all of DIR. --update writes the
# table anew (of the given FILEs: their rows) and still refuses the rest.
# Exit status: 0 passed, 1 refused, 2 wrong usage, 77 no nvcc.
# What was compiled once is kept in --out (build/gate), by the contents of the file and the headers.
set -euo pipefail
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
archs="80 90 100"
counted=90 # the architecture whose PTX the 128-bit accesses are counted in
warnings=-Wall,-Wextra,-Wno-unused-parameter

# ---- one file for one architecture: a child of the main call ------------------------------------

# Reads ptxas -v's report and the PTX; prints lines "kernel TAB registers TAB wide TAB f64" with the
# names as the linker knows them. wide: instructions that move at least 128 bits from or to global
# memory; f64: 1 when the kernel, or a function it calls, computes in double precision.
measure() { # REPORT PTX
  awk '
    FNR == 1 { file++ }
    file == 1 && /Compiling entry function/ { split($0, q, "\047"); name = q[2] }
    file == 1 && /: Used [0-9]+ registers/ {
      for (i = 1; i < NF; i++) if ($i == "Used") registers[name] = $(i + 1)
    }
    file == 1 { next }
    /^[ \t]*(\.[a-z]+[ \t]+)*\.(entry|func)[ \t]/ {
      match($0, /(_Z|__)[A-Za-z0-9_$]+/)
      at = substr($0, RSTART, RLENGTH)
    }
    /^[ \t]*\./ { next } # declarations
    { sub(/\/\/.*/, "") }
    /(ld|st)(\.[a-z_:0-9A-Z]+)*\.global/ && /\.(v4\.[a-z](32|64)|v2\.[a-z]64|v8\.[a-z]32|b128)/ {
      wide[at]++
    }
    /\.f64/ && $0 !~ /[ \t](mov|ld|st)[.a-zA-Z_:0-9]*\.f64/ { f64[at] = 1 }
    /^[ \t]*[A-Za-z_][A-Za-z0-9_$]*,[ \t]*$/ { # the callee of a call stands on a line of its own
      callee = $1; sub(/,/, "", callee); calls[at] = calls[at] " " callee
    }
    END {
      do { # what a callee computes, its caller computes
        more = 0
        for (f in calls) {
          n = split(calls[f], c, " ")
          for (i = 1; i <= n; i++) if (f64[c[i]] && !f64[f]) { f64[f] = 1; more = 1 }
        }
      } while (more)
      for (f in registers) printf "%s\t%d\t%d\t%d\n", f, registers[f], wide[f], f64[f]
    }' "$1" "$2"
}

# Names as people write them: no namespace, return type or parameters.
readable() {
  c++filt -i | awk -F '\t' -v OFS='\t' '
    {
      s = $1
      gsub(/\(anonymous namespace\)::/, "", s); gsub(/_INTERNAL_[0-9A-Za-z_]*::/, "", s)
      gsub(/__nv_bfloat16/, "bf16", s); gsub(/__half/, "half", s); gsub(/> >/, ">>", s)
      depth = 0; end = length(s) + 1; start = 1
      for (i = 1; i < end; i++) {
        ch = substr(s, i, 1)
        if (ch == "<") depth++
        else if (ch == ">") depth--
        else if (ch == " " && depth == 0) start = i + 1
        else if (ch == "(" && depth == 0) end = i
      }
      $1 = substr(s, start, end - start); gsub(/ /, "", $1); print
    }'
}

job() { # FILE ARCH CACHE: leaves CACHE with the kernels, or CACHE.err with what the tools said
  local file=$1 arch=$2 cache=$3 dir stem code=sm_$2 kind=-cubin
  if [ "$arch" = "${archs##* }" ]; then # the last one also compiles the host's part and keeps PTX
    code="[sm_$arch,compute_$arch]" kind=-c
  fi
  stem=$(basename "$file" .cu)
  dir=$(mktemp -d "${cache%/*}/work.XXXXXX")
  rm -f "$cache.err"
  if nice -n 19 "$nvcc" -std=c++17 -O3 $kind -gencode "arch=compute_$arch,code=$code" --keep \
    --keep-dir "$dir" -I"$root" -Werror all-warnings -Xcompiler "$warnings" \
    -Xptxas -v,--warn-on-spills,--warning-as-error -o "$dir/out" "$file" >"$dir/report" 2>&1; then
    measure "$dir/report" "$dir/$stem.ptx" | readable | sort -k1,1 >"$dir/result"
    mv "$dir/result" "$cache"
  else
    mv "$dir/report" "$cache.err"
  fi
  rm -rf "$dir"
}

if [ "${1:-}" = --job ]; then
  job "$2" "$3" "$4"
  exit 0
fi

# ---- the command line ---------------------------------------------------------------------------

dir=$root/kernels/cuda table='' out=$root/build/gate update=0 files=()
usage() {
  echo "cuda_gate: $1 (usage: cuda_gate.sh [--update] [--dir DIR] [--table FILE] [--out DIR]" \
    "[FILE.cu ...])" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
  --update) update=1 ;;
  --dir | --table | --out)
    [ $# -ge 2 ] || usage "$1 needs a value"
    declare "${1#--}=$2"
    shift
    ;;
  -*) usage "unknown flag $1" ;;
  *)
    [ -r "$1" ] || usage "there is no file $1"
    files+=("$1")
    ;;
  esac
  shift
done
table=${table:-$dir/registers.txt}

nvcc=$(command -v nvcc || true)
[ -n "$nvcc" ] || nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
if [ ! -x "$nvcc" ]; then
  echo "cuda_gate: skipped: no nvcc in PATH or ${CUDA_HOME:-/usr/local/cuda}/bin" \
    "(CUDA toolkit 13.0 or newer is needed to check the kernels)"
  exit 77
fi
export nvcc
if ! command -v c++filt >/dev/null; then
  echo "cuda_gate: c++filt is missing (package binutils): kernels cannot be named" >&2
  exit 1
fi
[ -r "$table" ] || [ $update = 1 ] || usage "there is no table $table (--update writes one)"
all=0
if [ ${#files[@]} -eq 0 ]; then
  all=1
  files=("$dir"/*.cu)
  [ -r "${files[0]}" ] || usage "there is no .cu file in $dir"
fi

# ---- compile ------------------------------------------------------------------------------------

mkdir -p "$out"
out=$(cd "$out" && pwd)
common=$( ("$nvcc" --version; cat "$0" "$root"/kernels/*.h "$root"/kernels/*.def \
  "$root"/kernels/cuda/*.h "$root"/bench/variants/*.h) | sha256sum)
jobs=() caches=()
for f in "${files[@]}"; do
  key=$( (echo "$common"; cat "$f") | sha256sum | cut -c1-16)
  for a in $archs; do
    cache=$out/$(basename "$f" .cu).$a.$key
    caches+=("$f" "$a" "$cache")
    [ -e "$cache" ] || jobs+=("$f" "$a" "$cache")
  done
done
echo "cuda_gate: ${#files[@]} files for sm_${archs// /, sm_} and PTX;" \
  "$((${#jobs[@]} / 3)) of $((${#caches[@]} / 3)) compilations are not cached"
if [ ${#jobs[@]} -gt 0 ]; then
  printf '%s\0' "${jobs[@]}" | xargs -0 -n 3 -P "${II_GATE_JOBS:-$(nproc)}" bash "$0" --job
fi

refused=0
refuse() {
  echo "cuda_gate: $*" >&2
  refused=1
}
: >"$out/kernels"
for ((i = 0; i < ${#caches[@]}; i += 3)); do
  f=${caches[i]} a=${caches[i + 1]} cache=${caches[i + 2]}
  if [ -e "$cache" ]; then
    sed "s|^|$(basename "$f")\t$a\t|" "$cache" >>"$out/kernels"
  elif grep -q 'spill' "$cache.err" 2>/dev/null; then
    refuse "$f: registers are spilled to memory on sm_$a: use fewer live values, smaller tiles or" \
      "looser launch bounds"
    grep -i 'spill' "$cache.err" | grep -v ' 0 bytes spill stores, 0 bytes' | c++filt -i >&2
  else
    refuse "$f: does not compile without warnings for sm_$a:"
    grep -v '^ptxas info\|bytes stack frame' "$cache.err" | head -40 >&2 || true
  fi
done

# ---- compare with the table ---------------------------------------------------------------------

# One row per kernel: file, kernel, registers on each architecture, wide accesses, f64 (0 or 1).
# Overloads of one name count as one kernel: the most registers, the fewest wide accesses.
awk -F '\t' -v OFS='\t' -v counted=$counted -v archs="$archs" '
  { id = $1 OFS $3; known[id] = 1; if ($4 > r[id, $2]) r[id, $2] = $4; if ($6) f64[id] = 1 }
  $2 == counted && (!(id in wide) || $5 < wide[id]) { wide[id] = $5 }
  END {
    n = split(archs, a, " ")
    for (id in known) {
      line = id
      for (i = 1; i <= n; i++) line = line OFS (r[id, a[i]] ? r[id, a[i]] : "?")
      print line, wide[id] + 0, f64[id] + 0
    }
  }' "$out/kernels" | sort >"$out/measured"

heading="# The budget of the kernels, checked by scripts/cuda_gate.sh (--update writes this file anew):
# file, kernel, most registers on sm_${archs// /, sm_}, fewest 128-bit accesses of global memory;
# a last column \"double\" allows double-precision arithmetic in a kernel whose name has no double."
if [ $update = 1 ] && [ $refused = 0 ]; then
  [ -e "$table" ] || : >"$table"
  awk -v OFS=' ' -v all=$all '
    /^#/ { next }
    FNR == 1 { file++ }
    NR == FNR && FILENAME == ARGV[1] { split($0, c, "\t"); seen[c[1]] = 1
      row[c[1] " " c[2]] = c[3] " " c[4] " " c[5] " " c[6]; computes[c[1] " " c[2]] = c[7]; next }
    $7 == "double" { allowed[$1 " " $2] = 1 }
    !all && !($1 in seen) { print }
    END { for (id in row) print id, row[id] (allowed[id] && computes[id] ? " double" : "") }
  ' "$out/measured" "$table" | sort >"$out/rows"
  { echo "$heading"; column -t "$out/rows" 2>/dev/null || cat "$out/rows"; } >"$out/table"
  cp "$out/table" "$table"
  echo "cuda_gate: wrote $table"
fi

awk -v archs="$archs" -v table="$table" -v all=$all -v heading="$heading" '
  function refuse(text) { print "cuda_gate: " text; bad = 1 }
  BEGIN { n = split(archs, arch, " ") }
  FILENAME == ARGV[1] {
    if ($0 ~ /^#/ || NF == 0) next
    if (NF < n + 3) refuse(table ":" FNR ": a row needs file, kernel, " n " counts of registers and one of accesses")
    id = $1 " " $2; known[id] = 1; wide[id] = $(n + 3); allowed[id] = $(n + 4) == "double"
    for (i = 1; i <= n; i++) most[id, i] = $(i + 2)
    next
  }
  {
    split($0, c, "\t"); id = c[1] " " c[2]; kernels++; found[id] = 1
    name = c[1] ": " c[2]; arguments = ""
    if (match(c[2], /<.*>/)) arguments = substr(c[2], RSTART, RLENGTH)
    if (c[n + 4] && arguments !~ /double/ && !allowed[id])
      refuse(name " computes in double precision (.f64), though no template argument is double:" \
        " write literals as 1.0f or R(1), pass R instead of double, or mark its row in " table \
        " with double")
    if (!known[id]) {
      line = id
      for (i = 1; i <= n + 1; i++) line = line " " c[i + 2]
      refuse(name " is not in " table "; add the line (or run with --update)\n  " line)
      next
    }
    for (i = 1; i <= n; i++)
      if (c[i + 2] == "?") unmeasured = 1
      else if (c[i + 2] > most[id, i] + 0)
        refuse(name " uses " c[i + 2] " registers on sm_" arch[i] ", " most[id, i] \
          " are allowed (" table ")")
    if (c[n + 3] < wide[id] + 0)
      refuse(name " has " c[n + 3] " 128-bit accesses of global memory, " wide[id] \
        " are expected (" table ")")
  }
  END {
    if (all) for (id in known) if (!found[id])
      refuse(table " has a row for \"" id "\", but there is no such kernel: remove it (or run with --update)")
    printf "cuda_gate: %d kernels compared with %s\n", kernels, table
    exit bad
  }' "$table" "$out/measured" || refused=1

if [ $refused = 1 ]; then
  echo "cuda_gate: REFUSED" >&2
  exit 1
fi
echo "cuda_gate: passed"
