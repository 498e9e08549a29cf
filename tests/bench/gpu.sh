#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most nine minutes; results go to one folder.
#
#   bash tests/bench/gpu.sh OUT DATA [SECONDS of the studies]
#
# OUT: a folder for what comes of it. DATA: the folder of the real data sets. Models are taken from the cache (make real).
set -uo pipefail
out=$1 data=$2 seconds=${3:-260}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$here/../..:${PYTHONPATH:-}"
python3 -c "import torch, transformers; print(torch.cuda.get_device_name(), torch.__version__, transformers.__version__)"

# both models at once: a study waits for Python longer than for the card
for model in smollm2-135m-instruct gemma-3-270m; do
  python3 "$here/_gpu_runs.py" $model --data "$data" --out "$out/runs" --seconds "$seconds" >"$out/runs-$model.log" 2>&1 &
done
wait
tail -n 5 "$out"/runs-*.log
tar -C "$out" -czf "$out/runs.tar.gz" runs && rm -r "$out/runs"

results="$here/results"
touch "$out/.begun"
timeout 70 python3 "$here/real.py" --data "$data" --device cuda --repeats 5 --save 2>&1 | tee "$out/real.log"
timeout 110 python3 "$here/forward.py" --device cuda --repeats 5 --save 2>&1 | tee "$out/forward.log"
timeout 50 python3 "$here/many.py" --device cuda --repeats 2 --save 2>&1 | tee "$out/many.log"
find "$results" -name '*.json' -newer "$out/.begun" -exec cp {} "$out" \;
