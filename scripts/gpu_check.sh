#!/usr/bin/env bash
# Decides on a machine with a CUDA device what a machine without cannot, most important first: builds the extension in
# place, runs every test that needs the device, the memory checker, then the benchmarks. Needs no network; torch, triton,
# nvcc, pytest and pytest-benchmark are taken as they are there. What is missing is named, and the rest goes on.
#
#   scripts/gpu_check.sh OUTDIR [MINUTES] [--quick] [--dry-run] [--python PATH]
#
# MINUTES is for everything together (9; with --quick 2.8). --dry-run rehearses without a device. Every result lies in
# OUTDIR as soon as it is made; summary.jsonl has one line per step. Exits with 0 only if nothing failed.
set -uo pipefail
interpreter=$(command -v python3 || command -v python) || { echo "gpu_check: no python3 on the path" >&2; exit 2; }
# In the place of this shell: who stops the one stops the other.
exec "$interpreter" "$(dirname "$0")/gpu_check.py" "$@"
