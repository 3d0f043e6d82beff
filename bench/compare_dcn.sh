#!/bin/sh
# Runs bench_dcn and torch_dcnv3.py in turn, several rounds in one go, and prints how many times
# faster ours is, from the medians of all rounds and from the best of all rounds.
#
#   bench/compare_dcn.sh BUILD_DIR [ROUNDS [THREADS [OFFICIAL_FILE]]]
#
# BUILD_DIR contains bin/bench_dcn. OFFICIAL_FILE: see torch_dcnv3.py --official. PYTHON chooses the
# interpreter that has torch (python3-torch of Debian belongs to /usr/bin/python3).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=${1:?usage: compare_dcn.sh BUILD_DIR [ROUNDS [THREADS [OFFICIAL_FILE]]]}
rounds=${2:-3}
threads=${3:-2}
official=${4:-}
python=${PYTHON:-/usr/bin/python3}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

i=0
while [ "$i" -lt "$rounds" ]; do
  "$build/bin/bench_dcn" --threads "$threads" --repeat 20 --only dcnv3 --softmax 0 >>"$out"
  "$python" -W ignore "$here/torch_dcnv3.py" --threads "$threads" --repeat 3 \
    ${official:+--official "$official"} >>"$out"
  i=$((i + 1))
done

"$python" - "$out" <<'PYTHON'
import json
import statistics
import sys

runs = {}
for line in open(sys.argv[1], encoding='utf-8'):
    d = json.loads(line)
    if d['dtype'] == 'f32':
        runs.setdefault(d['op'], {}).setdefault(d['shape'], []).append(d)
shapes = list(runs['dcnv3'])
for kind, combine in (('median', statistics.median), ('best', min)):
    part = {'median': '', 'best': '_min'}[kind]
    print(f'{kind} of all rounds; milliseconds forward, forward+backward; ratio to ours')
    for shape in shapes:
        ms = {op: [combine(r[f'{what}{part}_ms'] for r in runs[op][shape])
                   for what in ('fwd', 'fwd_bwd')] for op in runs}
        ours = ms['dcnv3']
        cells = [f'  {shape:14} ours {ours[0]:8.3f} {ours[1]:8.3f}']
        for op in runs:
            if op != 'dcnv3':
                f, b = ms[op]
                cells.append(f'{op} {f:8.1f} {b:8.1f}  {f / ours[0]:5.1f}x {b / ours[1]:5.1f}x')
        print(' | '.join(cells))
PYTHON
