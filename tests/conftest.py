"""Shared by all tests: one thread per process (tests run side by side), no network by accident, Ctrl-C as usual."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import signal
from pathlib import Path

import pytest
import torch

from tests.helpers.shards import ROOT, build_shards, make_tars

torch.set_num_threads(1)
# A test run started in the background inherits "ignore Ctrl-C" and would hand it on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """DIR/NAME of 230 samples in 4 shards of up to 64."""
    folder = tmp_path_factory.mktemp("shards")
    make_tars(folder / "tars", 230)
    build_shards(folder / "tars", folder / "set", samples_per_shard=64)
    return folder / "set"


@pytest.fixture(scope="session")
def mxnet_python() -> str:
    """The Python that has real MXNet 1.9.1: $ALIP_MXNET_PYTHON or .venv-mxnet at the root of the repository."""
    named = os.environ.get("ALIP_MXNET_PYTHON")
    if named and os.path.exists(named):
        return named
    beside = ROOT / ".venv-mxnet" / "bin" / "python"
    if beside.exists():
        return str(beside)
    message = "no environment with MXNet 1.9.1: make .venv-mxnet from requirements-mxnet.txt with Python 3.11 or older"
    # Where no such Python is at hand the judge cannot sit; in CI it must.
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
