#!/usr/bin/env bash
# The paper's run: ViT-B/32 on YFCC15M, global batch 4096, 32 epochs.
#
#     DATA=/data/yfcc15m/train bash scripts/train_yfcc15m_B32_ALIP.sh                    # this machine, all its GPUs
#     HOSTS="node1 node2" DATA=... OUTPUT=/shared/runs/b32 bash scripts/train_yfcc15m_B32_ALIP.sh     # several, by ssh
#
# Run again, it resumes where it stopped. More flags of train.py can follow. Under SLURM: scripts/train_slurm.sh.
# Everything is checked before a rank starts; a mistake is one line and status 2. CHECK_ONLY=1 stops after the check.
# Relative paths are those of this repository's folder, in which everything runs.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-}                          # DIR/NAME of rec shards (data2rec.py makes them); every machine reads it
OUTPUT=${OUTPUT:-runs/yfcc15m_B32_ALIP} # run folder; on several machines: on storage that all of them share
GLOBAL_BATCH=${GLOBAL_BATCH:-4096}      # samples of one optimizer step, over all GPUs
MICRO_BATCH=${MICRO_BATCH:-auto}        # samples at a time on one GPU, auto: what fits; the rest is accumulated, exactly
EPOCHS=${EPOCHS:-32}
PRESET=${PRESET:-alip-paper}            # or alip-released
MODEL=${MODEL:-ViT-B-32}
WORKERS=${WORKERS:-${THREADS:-8}}       # preprocessing workers per GPU
HOSTS=${HOSTS:-}                        # names for ssh, separated by spaces; the first one leads
NODES=${NODES:-}                        # set by the ssh call below, or by hand with NODE_RANK and LEADER
NODE_RANK=${NODE_RANK:-0}
LEADER=${LEADER:-localhost}
PORT=${PORT:-29400}
MAX_RESTARTS=${MAX_RESTARTS:-3}         # a lost rank restarts the job from its last checkpoint
SHUTDOWN_S=${SHUTDOWN_S:-120}           # seconds that a stopped rank has to save
CHECK_ONLY=${CHECK_ONLY:-}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if ! command -v "$PYTHON" > /dev/null; then
    echo "error: PYTHON=$PYTHON: there is no such command" >&2
    exit 2
fi
if [ -z "$DATA" ]; then
    echo "error: set DATA to the rec shards, e.g. DATA=/data/yfcc15m/train (data2rec.py makes them, docs/data.md)" >&2
    exit 2
fi
gpus() { "$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))'; }
PROCESSES=${PROCESSES:-$(gpus)}         # per machine; every machine has as many

# Each machine runs this very script; what was set here is passed on, quoted for the shell on the other side.
on_host() { # HOST NUMBER ALL CHECK_ONLY [flags]
    local host=$1 words=(env "HOSTS=$HOSTS" "NODES=$3" "NODE_RANK=$2" "LEADER=${hosts[0]}" "PORT=$PORT" "CHECK_ONLY=$4")
    shift 4
    for name in DATA OUTPUT GLOBAL_BATCH MICRO_BATCH EPOCHS PRESET MODEL WORKERS PROCESSES MAX_RESTARTS SHUTDOWN_S PYTHON; do
        words+=("$name=${!name}")
    done
    words+=(bash scripts/train_yfcc15m_B32_ALIP.sh "$@")
    exec ${SSH:-ssh} "$host" "cd $(printf %q "$PWD") && $(printf '%q ' "${words[@]}")"
}
if [ -n "$HOSTS" ] && [ -z "$NODES" ]; then
    read -r -a hosts <<< "$HOSTS"
    if [ "${#hosts[@]}" -eq 0 ]; then
        echo "error: HOSTS names no machine: write HOSTS=\"node1 node2\", or leave it out" >&2
        exit 2
    fi
    (on_host "${hosts[0]}" 0 "${#hosts[@]}" 1 "$@") || {
        status=$?
        [ "$status" -eq 2 ] || echo "error: ${hosts[0]}: the check there ended with status $status" >&2
        exit "$status"
    }
    [ -z "$CHECK_ONLY" ] || exit 0
    pids=()
    for i in "${!hosts[@]}"; do
        (on_host "${hosts[$i]}" "$i" "${#hosts[@]}" "" "$@") &
        pids+=($!)
    done
    trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
    status=0
    for pid in "${pids[@]}"; do
        ended=0
        wait "$pid" || ended=$?
        # A mistake on one machine is the reason that the others failed.
        if [ "$ended" -eq 2 ] || [ "$status" -ne 2 ] && [ "$ended" -ne 0 ]; then status=$ended; fi
    done
    exit "$status"
fi

NODES=${NODES:-1}
if [[ ! "$NODES" =~ ^[1-9][0-9]{0,5}$ ]]; then
    echo "error: NODES is the number of machines, not '$NODES'" >&2
    exit 2
fi
if [ "$NODES" -eq 1 ]; then
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes "$NODES" --node-rank "$NODE_RANK" --rdzv-id alip --rdzv-backend c10d)
    rendezvous+=(--rdzv-endpoint "$LEADER:$PORT")
fi
# Steps have changing numbers of tokens: without this, freed memory falls into pieces that no later step can use.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF-expandable_segments:True}
exec "$PYTHON" -m alip.train.launch ${CHECK_ONLY:+--check-only} "${rendezvous[@]}" --nproc-per-node "$PROCESSES" \
    --max-restarts "$MAX_RESTARTS" --shutdown-timeout "$SHUTDOWN_S" \
    train.py --train-data "$DATA" --model "$MODEL" --output "$OUTPUT" --resume auto \
    --preset "$PRESET" --epochs "$EPOCHS" --batch-size "$MICRO_BATCH" --global-batch-size "$GLOBAL_BATCH" \
    --workers "$WORKERS" "$@"
