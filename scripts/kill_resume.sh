#!/usr/bin/env bash
# kill_resume.sh [KILLS [THREADS]]: kills a small training run with SIGKILL at random moments (default
# 50), half of them while a checkpoint is being written, resumes after each, and compares the final
# weights with those of an undisturbed run, bit for bit; with one and with two loader threads.
# THREADS: compute threads (default 1). Needs the programs: cmake --preset release && cmake --build
# --preset release; II_BIN names another folder with them.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${II_BIN:-build/release/bin}/test_train_kill" "${1:-50}" "${2:-1}"
