#!/usr/bin/env bash
# Everything that is to be known about a GPU, in one call of at most 8 minutes: correctness, then speed.
#
#     bash benchmarks/gpu.sh [--output DIR] [--only steps profile]      # report: build/gpu/gpu.md
#
# Needs torch 2.11 or later and nothing else; what is missing is replaced or left out, and named. --dry-run: on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout --kill-after 5 480 "$PYTHON" -W ignore benchmarks/gpu.py "$@"
