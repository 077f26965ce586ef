#!/usr/bin/env bash
# The quickstart's recipe, for quickstart.sh and benchmarks/demo_seeds.py: further flags of train.py may follow.
#
#     bash scripts/demo/train.sh --output RUN [--objective clip-text] [--seed 1]
set -euo pipefail
cd "$(dirname "$0")/../.."

DATA=${DATA:-data/demo}           # the demo's shards
EPOCHS=${EPOCHS:-84}
BATCH_SIZE=${BATCH_SIZE:-256}
PROCESSES=${PROCESSES:-1}         # training processes; one per GPU, or 1 on a CPU

# The recipe differs from the paper's where the demo's size asks for it: a run of 2,016 steps is too short for a history
# with momentum 0.99, which would lag behind the similarities; and 1,368 concepts need more augmentation. Some early
# checkpoints stay (1.2 GB), as they find mismatched texts best (docs/gates.md).
python -m alip.train.launch --standalone --nproc-per-node "$PROCESSES" train.py \
    --train-data "$DATA/train" --model scripts/demo/model.json --resume auto \
    --epochs "$EPOCHS" --batch-size "$((BATCH_SIZE / PROCESSES))" --workers 1 \
    --lr-scheduler one-cycle --lr 4e-3 --wd 0.5 \
    --history-init first-batch --history-momentum 0.9 \
    --crop-area 1 1 --crop-aspect 1 1 --zoom 0.8 1.25 --shift 0.15 --rotation 15 --brightness 0.3 --contrast 0.3 \
    --mismatch-column is_mismatched --log-every 10 --save-every 100 --keep 2 --keep-epochs 6 "$@"
