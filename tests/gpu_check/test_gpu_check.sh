#!/usr/bin/env bash
# scripts/gpu_check.sh over programs that hang, die, or cannot be killed: the report is written and
# says so. No GPU and nothing of this build is needed; every program is a few lines of shell.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failures=0

program() { # PATH: its lines on stdin
  mkdir -p "$(dirname "$1")"
  { echo '#!/bin/bash' && cat; } >"$1"
  chmod +x "$1"
}
doctor() { # FOLDER
  program "$1/bin/train" <<'END'
case "$*" in *--doctor*) printf 'engines  cpu, cuda\n100 kernels passed\n' ;; esac
END
}
expect() { # WHAT GOT WANTED, an extended regular expression
  [[ $2 =~ $3 ]] && return
  echo "$1: got '$2', wanted '$3'"
  failures=$((failures + 1))
}
check() { # FOLDER ARGUMENT...
  PATH=$work/path:$PATH "$root/scripts/gpu_check.sh" --build "$1" --out "$1/out" "${@:2}" \
    >"$1/screen" 2>&1
}
note_of() { grep -hxA4 "name $2" "$1"/out/phases/* | sed -n 's/^status //p; s/^note //p' | paste -sd' '; }

# `timeout` of the program `stuck` does not return, as where SIGKILL has no effect
program "$work/path/timeout" <<'END'
case "$*" in */test_cuda_stuck*) trap '' TERM; sleep 40 ;; esac
exec /usr/bin/timeout "$@"
END
program "$work/path/python3" <<<'exit 1'
program "$work/path/compute-sanitizer" <<'END'
case "$*" in *racecheck*) sleep 60 ;; esac
END

bad=$work/bad good=$work/good ended=$work/ended none=$work/none
for folder in "$bad" "$good" "$ended"; do doctor "$folder"; done
program "$bad/bin/test_cuda_deaf" <<<'trap "" TERM; while :; do sleep 1; done'
program "$bad/bin/test_cuda_dies" <<<'kill -SEGV $$'
program "$bad/bin/test_cuda_stuck" <<<'exit 0'
program "$good/bin/test_ops" <<<'exit 0'
program "$ended/bin/test_ops" <<<'sleep 50'
program "$none/bin/train" <<<'echo "cuda: not tested: no driver"'

check "$bad" --limit 9 &
bad_pid=$!
check "$good" --limit 20 --quick &
good_pid=$!
PATH=$work/path:$PATH "$root/scripts/gpu_check.sh" --build "$ended" --out "$ended/out" >"$ended/screen" 2>&1 &
ended_pid=$!
for ((i = 0; i < 300; i++)); do [ ! -e "$ended/out/logs/test_ops.log" ] || break; sleep 0.1; done
kill -TERM $ended_pid
wait $ended_pid
expect "status of the check that was sent SIGTERM" $? '^1$'
expect "its verdict" "$(head -1 "$ended/out/report.md")" 'FAILED: stopped from outside'
expect "what is left of its programs" "$(pgrep -f "$ended/bin/test_ops")" '^$'
check "$none"
expect "status without a GPU" $? '^77$'
expect "its verdict" "$(head -1 "$none/out/report.md")" 'no GPU was checked: no driver'
wait $bad_pid
expect "status of the check with failures" $? '^1$'
expect "its verdict" "$(head -1 "$bad/out/report.md")" 'FAILED: 3 tests failed'
expect "a program that ignores SIGTERM" "$(note_of "$bad" test_cuda_deaf)" '^timeout stopped after'
expect "a program that dies" "$(note_of "$bad" test_cuda_dies)" '^failed exit status 139, signal 11'
expect "a program that stays" "$(note_of "$bad" test_cuda_stuck)" '^timeout not ended by SIGKILL'
wait $good_pid
expect "status of the check with gaps" $? '^0$'
expect "its verdict" "$(head -1 "$good/out/report.md")" 'all tests passed, with [0-9]+ gaps'

# a sanitizer without an end is a gap, named
rm -rf "$good/out"
check "$good" --limit 20
expect "status with a sanitizer that hangs" $? '^0$'
expect "that sanitizer" "$(note_of "$good" sanitizer-racecheck)" '^timeout stopped after [0-9]+ s'
expect "the gaps" "$(grep -c '^- sanitizer-' "$good/out/report.md")" '^1$'
expect "the sanitizer after it" "$(note_of "$good" sanitizer-initcheck)" '^passed'

for wrong in '--limit 0' '--limit 9x' '--quick --full' '--limit'; do
  # shellcheck disable=SC2086 # two words
  check "$good" $wrong
  expect "status of $wrong" $? '^2$'
done
if [ $failures -ne 0 ]; then
  tail -n 30 "$work"/*/screen
  exit 1
fi
echo "gpu_check reports what hangs and what dies"
