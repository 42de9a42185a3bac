#!/usr/bin/env bash
# Decides on a machine with a CUDA device what a machine without cannot: builds the extension in place, runs every parity
# test that needs the device, then the engine's and the operators' benchmarks. Each result is written to OUTDIR as it is
# made. No network is needed; torch, triton, pytest and pytest-benchmark are taken as they are there.
#
#   scripts/gpu_check.sh OUTDIR [PYTHON]
set -uo pipefail
if [ $# -lt 1 ]; then
  echo "usage: scripts/gpu_check.sh OUTDIR [PYTHON]" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${2:-python3}
failed=0

step() {  # name, command ...: its output goes to OUTDIR/name.log, its exit status to OUTDIR/summary.txt
  local name=$1 start status
  shift
  start=$(date +%s)
  "$@" >"$out/$name.log" 2>&1
  status=$?
  echo "$name: exit $status after $(($(date +%s) - start)) s" | tee -a "$out/summary.txt"
  [ "$status" -eq 0 ] || failed=1
}

: >"$out/summary.txt"
step build "$python" setup.py build_ext --inplace
step doctor "$python" -c 'from hrnet_fast.cli import main; main(["doctor", "--json"])'
step operators "$python" -m pytest tests/ops -q -k "cuda or triton" --junitxml="$out/operators.xml"
step inference "$python" -m pytest tests/inference/test_cuda.py -q --junitxml="$out/inference.xml"
step engine "$python" -m pytest benchmarks/bench_inference_cuda.py --benchmark -q -s --benchmark-json="$out/engine.json"
for operator in fuse_sum bn_act upsample_conv1x1_sum strided_conv_chain grouped_conv3x3; do
  step "bench_$operator" "$python" -m pytest "benchmarks/bench_$operator.py" --benchmark -q -s \
    --benchmark-json="$out/$operator.json"
done
cat "$out/summary.txt"
exit "$failed"
