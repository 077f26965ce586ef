#!/usr/bin/env bash
# The environment, then every test:
#
#     bash scripts/test.sh              # all
#     bash scripts/test.sh tests/data   # what follows is handed to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/env.sh
make_environment .venv requirements-dev.txt

# Real MXNet judges our rec files. It runs on Python 3.11 or older only; without one, its tests say so and are skipped
# (in CI they fail).
old_python=$(find_python 11 || true)
if [ -n "$old_python" ]; then
    make_environment .venv-mxnet requirements-mxnet.txt "$old_python"
    export ALIP_MXNET_PYTHON=$PWD/.venv-mxnet/bin/python
else
    echo "no Python 3.10 or 3.11 found: the tests against real MXNet cannot run"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
# Two at a time: the tests start processes of their own.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
