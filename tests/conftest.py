"""Shared by all tests: one thread per process (tests run side by side), no network by accident, Ctrl-C as usual."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import signal

import torch

torch.set_num_threads(1)
# A test run started in the background inherits "ignore Ctrl-C" and would hand it on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
