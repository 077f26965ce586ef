#!/usr/bin/env bash
# From a fresh Linux machine to a trained and evaluated model, on the demo data in scripts/demo:
#
#     bash scripts/quickstart.sh
#
# Makes .venv, builds rec shards, trains, evaluates, plots. Run again, it re-uses what is there; interrupted, it resumes.
# The settings of scripts/demo/train.sh may be given too, e.g. EPOCHS=4 or, with eight GPUs, PROCESSES=8.
set -euo pipefail
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/quickstart}       # ALIP's run folder: checkpoints, metrics, results, plots
CLIP=${CLIP:-0}                   # 1: train CLIP on the raw texts too, into $RUN-clip; 0: its row is a recorded run's
DATA=${DATA:-data/demo}           # where the demo's shards and benchmarks go

say() { printf '\n== %s\n' "$*"; }

. scripts/env.sh
say "1/7 environment"
make_environment .venv requirements.txt
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
started=$SECONDS

say "2/7 rec shards of the demo's 6,164 training samples"
python data2rec.py --input 'scripts/demo/train-*.tar' --output "$DATA/train" \
    --captions scripts/demo/captions.jsonl --captions-per-image 4 --samples-per-shard 1000 --workers 2

say "3/7 benchmarks"
if [ -d "$DATA/eval" ]; then
    echo "$DATA/eval is there already"
else
    python scripts/demo/unpack.py --output "$DATA/eval"
fi

say "4/7 training"
export DATA
bash scripts/demo/train.sh --output "$RUN"
runs=("$RUN")
clip=()
if [ "$CLIP" = 1 ]; then
    say "4/7 training: CLIP on the raw texts alone with the same steps, order and hyper-parameters"
    bash scripts/demo/train.sh --output "$RUN-clip" --objective clip-text
    runs+=("$RUN-clip")
    clip=(--clip "$RUN-clip")
fi

say "5/7 evaluation"
for run in "${runs[@]}"; do
    CHECKPOINT=$run DATA_ROOT=$(dirname "$DATA") OUTPUT=$run/results bash run_retrieval.sh
    CHECKPOINT=$run DATA_ROOT=$(dirname "$DATA") OUTPUT=$run/results bash run_zeroshot.sh
done

say "6/7 what the gates saw, and plots"
python -m alip.eval.gates --checkpoint "$RUN" --data "$DATA/train" --output "$RUN/results" \
    --mismatch-column is_mismatched --caption-mismatch-column caption_is_wrong
python scripts/demo/baseline.py --data-root "$(dirname "$DATA")" --output "$RUN/results/pixels.json"
python -m alip.eval.plots --run "$RUN" --data "$DATA/train" --mismatch-column is_mismatched \
    --scores "$RUN/results/gates.parquet" --output "$RUN/plots"
python scripts/demo/answers.py --run "$RUN" "${clip[@]}" --data-root "$(dirname "$DATA")" --output "$RUN/plots/answers"

say "7/7 summary (everything after the installation took $((SECONDS - started)) s)"
python scripts/demo/summary.py --run "$RUN" "${clip[@]}"
