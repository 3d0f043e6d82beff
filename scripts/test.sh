#!/usr/bin/env bash
# Passes every test from a fresh machine: installs what is missing, builds with AddressSanitizer and
# UndefinedBehaviorSanitizer, and runs the tests. Arguments go to ctest (e.g. -R loader).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh

# Idle OpenMP threads sleep instead of spinning: tests run side by side on few cores.
export OMP_WAIT_POLICY=passive
cmake --preset sanitize >/dev/null
cmake --build --preset sanitize --parallel "$(nproc)"
ctest --preset sanitize --parallel "$(nproc)" "$@"
