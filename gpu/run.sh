#!/usr/bin/env bash
# What a GPU machine is for, in nine minutes: the tests marked gpu, the benchmark, the recipes.
#
#   OUT=/tmp/out bash gpu/run.sh              # on the machine, after make gpu-bundle on another one
#   DEVICE=cpu OUT=/tmp/out bash gpu/run.sh   # a rehearsal, shorter, with the CPU in its place
#
# Each step is bounded in time and leaves what it found in $OUT as it ends, whatever the others do.
set -uo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda}
OUT=${OUT:?a folder for the results}
PYTHON=${PYTHON:-python3}
BUNDLE=${BUNDLE:-gpu/bundle}
mkdir -p "$OUT"

site=$(mktemp -d)
if compgen -G "$BUNDLE/*.whl" >/dev/null && [ "$DEVICE" != cpu ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$BUNDLE"/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$PWD/src:$site" PYTHONUNBUFFERED=1

"$PYTHON" - <<'PY' | tee "$OUT/machine.txt"
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__)
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory)
PY

failed=()
step() { # NAME SECONDS COMMAND...: run a command for so long at most, and keep what it says
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$OUT/$name.txt" 2>&1
  local status=$?
  echo "$name: exit $status after $((SECONDS - began)) s of at most $seconds" | tee -a "$OUT/steps.txt"
  ((status)) && failed+=("$name")
  tail -n 5 "$OUT/$name.txt"
}

# The others import MLflow, which is not there.
tests=(tests/engine tests/training tests/metrics tests/data tests/checkpoint tests/plan)
if [ "$DEVICE" = cpu ]; then
  step tests "${TESTS_SECONDS:-170}" "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider -rs "${tests[@]}"
  step benchmark "${BENCHMARK_SECONDS:-150}" "$PYTHON" -m benchmarks.gpu --device cpu --quick
  recipes=(digits_mlp)
else
  step tests 170 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider -rs "${tests[@]}"
  step benchmark 210 "$PYTHON" -m benchmarks.gpu --out "$OUT/benchmark.json"
  recipes=(digits_mlp digits_cnn pydocs_gpt)
fi
for recipe in "${recipes[@]}"; do
  step "$recipe" "${RECIPE_SECONDS:-45}" "$PYTHON" -m src.train experiment="$recipe" \
    device="$DEVICE" track=none trainer.max_seconds=15 hydra.run.dir="$OUT/runs/$recipe"
  cp "$OUT/runs/$recipe/summary.json" "$OUT/$recipe.json" 2>/dev/null
done
rm -r "$site"
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}"; exit 1; }
