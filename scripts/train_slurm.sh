#!/usr/bin/env bash
#SBATCH --job-name=alip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# The paper's run under SLURM: one launcher on each node, which starts one process for each GPU.
#
#     sbatch --export=ALL,DATA=/data/yfcc15m/train,OUTPUT=/shared/runs/b32 scripts/train_slurm.sh
#
# Two minutes before the time limit, and on pre-emption, the run saves and ends; submitted or requeued again, it
# resumes. Settings: see scripts/train_yfcc15m_B32_ALIP.sh; more flags of train.py can follow.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: not in a SLURM job; submit it with: sbatch $0 (on one machine use scripts/train_yfcc15m_B32_ALIP.sh)" >&2
    exit 2
fi
NODES=${SLURM_JOB_NUM_NODES:-1}
NODE_LIST=${SLURM_JOB_NODELIST:-}
if ! NAMES=$(scontrol show hostnames "$NODE_LIST" 2>/dev/null) || [ -z "$NAMES" ]; then
    echo "error: no names of this job's nodes: try 'scontrol show hostnames \"$NODE_LIST\"' (SLURM_JOB_NODELIST) there" >&2
    exit 2
fi
LEADER=${NAMES%%$'\n'*} # the first line; `| head -n 1` ends scontrol by SIGPIPE now and then, and pipefail the job
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
SHUTDOWN_S=${SHUTDOWN_S:-110} # of the 120 s between SIGTERM and SIGKILL
export NODES LEADER PORT PROCESSES SHUTDOWN_S
# srun no longer inherits the job's --cpus-per-task, and would give all ranks of a node one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

CHECK_ONLY=1 NODE_RANK=0 bash scripts/train_yfcc15m_B32_ALIP.sh "$@" # a mistake is one line, from here, not one a node
# SLURM_* would make the training processes look like SLURM's own tasks; torchrun's variables come first there.
exec srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash scripts/train_yfcc15m_B32_ALIP.sh "$@"' bash "$@"
