#!/usr/bin/env bash
# Captions for YFCC15M: one synthetic sentence for each of 15,061,515 images, ready for data2rec.py --captions.
# Run it again after any interruption: it resumes. Settings are environment variables:
#
#   INPUT='/data/yfcc15m/{00000..01506}.tar' OUTPUT=/data/yfcc15m/captions.jsonl bash scripts/caption_yfcc15m.sh
#
# Time: 15,061,515 images at R images/s take 15061515 / R / 3600 hours: at 100 images/s for each GPU that is 42 hours
# on one GPU, 5.2 hours on eight, 2.6 hours on sixteen. The progress bar shows your own R after a minute; try --limit 2000 first.
# Not run here: the dataset, a GPU, and the released captioners' weights. docs/captions.md lists what was run.
set -euo pipefail

INPUT=${INPUT:-}                              # tars with braces or globs, a table, COCO JSON or a folder
OUTPUT=${OUTPUT:-}                            # FILE.jsonl
CAPTIONER=${CAPTIONER:-blip}                  # blip, florence2, qwen2.5-vl, coca …, a model name, file:PATH, openai:MODEL
                                              # (with --base-url URL), or existing:FILE for the paper's captions by OFA
BATCH_SIZE=${BATCH_SIZE:-128}                 # images per GPU and step; halved when memory runs out
NUM_BEAMS=${NUM_BEAMS:-}                      # default 3 (servers: 1); 1 is about twice as fast, with plainer sentences
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-30}          # the paper's captions have mostly 10 to 15 tokens
WORKERS=${WORKERS:-8}                         # decoding processes for each GPU
ALLOW_FAILURES=${ALLOW_FAILURES:-0.001}       # fraction of images without a caption up to which the status is 0
SHARD=${SHARD:-1/1}                           # K/N: machine K of N machines; then join the N outputs with --merge

repository=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$([ -x "$repository/.venv/bin/python" ] && echo "$repository/.venv/bin/python" || echo python3)}
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"

if [ -z "$INPUT" ] || [ -z "$OUTPUT" ]; then
    echo "error: set INPUT (the images, such as '/data/yfcc15m/{00000..01506}.tar') and OUTPUT (FILE.jsonl)" >&2
    exit 2
fi
GPUS=${GPUS:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}   # processes on this machine
if [[ ! "$GPUS" =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "error: GPUS is the number of processes on this machine, one per GPU, not '$GPUS'" >&2
    exit 2
fi
launch=("$PYTHON")
if [ "$GPUS" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS")
fi
exec "${launch[@]}" -m alip.caption --input "$INPUT" --output "$OUTPUT" --captioner "$CAPTIONER" --shard "$SHARD" \
    --batch-size "$BATCH_SIZE" ${NUM_BEAMS:+--num-beams "$NUM_BEAMS"} --max-new-tokens "$MAX_NEW_TOKENS" --workers "$WORKERS" \
    --allow-failures "$ALLOW_FAILURES" --strip-lead "$@"
