#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in parts of at most ten minutes each. Needs no network.
#
#   scripts/gpu_check.sh                     all parts, one after the other; what fails doesn't stop the rest
#   scripts/gpu_check.sh build test          some of them
#
#   build      compile for the GPU in this machine and install into the environment
#   test       the GPU tests, then the quick tests of everything else
#   sanitizer  small shapes under compute-sanitizer: memcheck, racecheck, synccheck
#   bench      benchmarks/unroll_speed.py, forward and training, with torch.nn.LSTM (cuDNN) beside it
#   micro      benchmarks/step_speed.py: steps of the recurrent kernels beside what the planner predicts; groups and layers
#              side by side beside one after the other; closed loops by the backend triton beside plain torch
#
# PYTHON names the interpreter (.venv's, else python3), BENCH_SECONDS after how many seconds bench starts nothing more (480;
# the claims come first), OUT the folder of the results (build/gpu_check): gpu_check.json
# with device, versions, commit and each part's outcome; gpu_check.log; and what the benchmarks write. Exits with 1 if
# any part failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

parts=(build test sanitizer bench micro)
limit=590 # seconds a part
out=${OUT:-build/gpu_check}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # what torch's deterministic mode, in which tests poison memory, asks of cuBLAS
export PYTHONUNBUFFERED=1

# Without this the GPU tests would all be skipped, which pytest takes for success.
need_gpu() {
  "$python" -c 'import sys, torch
from lstmvid import _native
count, why = _native.cuda_device_count()
sys.exit(why if not count else None if torch.cuda.is_available() else "this torch has no CUDA")'
}

find_sanitizer() {
  command -v compute-sanitizer && return
  for folder in "$(dirname "$(command -v nvcc || echo /none)")" /usr/local/cuda/bin; do
    [ -x "$folder/compute-sanitizer" ] && echo "$folder/compute-sanitizer" && return
  done
  echo "compute-sanitizer is neither on PATH nor beside nvcc" >&2
  return 1
}

usage() { awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "${BASH_SOURCE[0]}"; }

part_build() {
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv
  env -u LSTMVID_CUDA_ARCHS LSTMVID_CUDA=ON "$python" -m pip install --no-build-isolation --no-deps --editable .
  need_gpu
  "$python" -c 'from lstmvid import _native
print(*map(_native.cuda_device_limits, range(_native.cuda_device_count()[0])), sep="\n")'
}

part_test() {
  local failed=0 spread=()
  need_gpu
  "$python" -c 'import xdist' 2>/dev/null && spread=(--numprocesses auto --maxprocesses 8)
  "$python" -m pytest -m gpu --continue-on-collection-errors --junitxml "$out/.gpu.xml" || failed=1
  OMP_NUM_THREADS=1 "$python" -m pytest -q -m 'not gpu and not slow' --continue-on-collection-errors \
    "${spread[@]}" --junitxml "$out/.quick.xml" || failed=1
  return $failed
}

part_sanitizer() {
  local sanitizer failed=0
  need_gpu
  sanitizer=$(find_sanitizer)
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    # Without torch's cache each tensor is an allocation of its own, past whose end memcheck sees every access.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=10 190 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$python" scripts/gpu_sanitizer.py || { echo "== $tool failed"; failed=1; }
  done
  return $failed
}

part_bench() {
  "$python" benchmarks/unroll_speed.py --device cuda --mode forward forward+backward --backend cuda \
    --seconds "${BENCH_SECONDS:-480}" --output "$out"
}

part_micro() { "$python" benchmarks/step_speed.py --seconds "${BENCH_SECONDS:-480}" --output "$out"; }

if [ "${1:-}" = --part ]; then # by this script itself, below
  "part_$2"
  exit
fi

chosen=("$@")
[ $# -eq 0 ] || [ "$*" = all ] && chosen=("${parts[@]}")
for part in "${chosen[@]}"; do
  case "$part" in
    -h | --help) usage; exit 0 ;;
    *) [[ " ${parts[*]} " == *" $part "* ]] || {
      echo "gpu_check.sh: no part '$part': all, or some of ${parts[*]} (--help explains them)" >&2
      exit 2
    } ;;
  esac
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
export OUT=$out
failed=()
for part in "${chosen[@]}"; do
  echo "==== $part" | tee -a "$out/gpu_check.log"
  start=$SECONDS status=0
  timeout --kill-after=10 $limit bash "${BASH_SOURCE[0]}" --part "$part" 2>&1 | tee -a "$out/gpu_check.log" || status=$?
  case $status in
    0) outcome=passed ;;
    124 | 137) outcome="stopped after $limit seconds" ;;
    *) outcome="failed (exit code $status)" ;;
  esac
  [ $status -eq 0 ] || failed+=("$part")
  echo "==== $part: $outcome, $((SECONDS - start)) s" | tee -a "$out/gpu_check.log"
  "$python" scripts/gpu_result.py "$out" "$part" "$outcome" $((SECONDS - start)) || failed+=("the result of $part")
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu_check.sh: failed: ${failed[*]} (see $out/gpu_check.log)" >&2
  exit 1
fi
echo "gpu_check.sh: passed: ${chosen[*]}; results in $out"
