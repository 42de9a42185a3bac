#!/usr/bin/env bash
# Verifies the package on a machine with a CUDA device, most important steps first: builds the extension in place, runs
# the tests that need the device, the memory checker, then the benchmarks. Needs no network; uses the installed torch,
# triton, nvcc, pytest and pytest-benchmark. Reports what is missing, and runs the other steps.
#
#   scripts/gpu_check.sh OUTDIR [MINUTES] [--quick] [--dry-run] [--only STEPS] [--python PATH]
#
# MINUTES limits the whole run (default 9; with --quick 2.8). --dry-run runs without a device. --only names the steps to
# run, separated by commas. Results are written to OUTDIR as soon as they exist; summary.jsonl has one line per step.
# Exits with 0 only if nothing failed.
set -uo pipefail
interpreter=$(command -v python3 || command -v python) || { echo "gpu_check: no python3 on the path" >&2; exit 2; }
# exec, so that signals reach the script.
exec "$interpreter" "$(dirname "$0")/gpu_check.py" "$@"
