#!/usr/bin/env bash
# Zero-shot retrieval. Without settings it measures the quickstart's model on the demo datasets; for the paper's numbers:
#   CHECKPOINT=runs/yfcc15m DATASETS="coco flickr30k" DATA_ROOT=/data bash run_retrieval.sh
set -euo pipefail
cd "$(dirname "$0")"

CHECKPOINT=${CHECKPOINT:-runs/quickstart}           # run folder, checkpoint file, released weights, open_clip or HF folder
DATASETS=${DATASETS:-demo-style demo-concept}      # names of docs/evaluation.md, or caption files
DATA_ROOT=${DATA_ROOT:-data}                        # the folder that holds them
PROTOCOL=${PROTOCOL:-standard}                      # standard, or alip
OUTPUT=${OUTPUT:-}                                  # results and plots; empty: in the run folder
BATCH_SIZE=${BATCH_SIZE:-256}                       # images per step and process
WORKERS=${WORKERS:-2}                               # threads (more than 4: processes) that read images, per process
PRECISION=${PRECISION:-auto}                        # auto, amp_bf16, amp or fp32
NPROC=${NPROC:-1}                                   # processes: one per GPU

if [[ "$CHECKPOINT" == runs/quickstart && ! -e "$CHECKPOINT" ]]; then
    echo "error: there is no demo model yet: run \`bash scripts/quickstart.sh\` first, or set CHECKPOINT" >&2
    exit 2
fi
if [[ ! "$NPROC" =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "error: NPROC is the number of processes, one per GPU, not '$NPROC'" >&2
    exit 2
fi
PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
LAUNCH=("$PYTHON")
if (( NPROC > 1 )); then LAUNCH=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NPROC"); fi

# DATASETS is split into words on purpose.
exec "${LAUNCH[@]}" eval_retrieval.py --checkpoint "$CHECKPOINT" --dataset $DATASETS --data-root "$DATA_ROOT" \
    --protocol "$PROTOCOL" --batch-size "$BATCH_SIZE" --workers "$WORKERS" --precision "$PRECISION" \
    ${OUTPUT:+--output "$OUTPUT"} "$@"
