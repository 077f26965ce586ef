"""MATLAB files of datasets, checked before they are parsed in this process.

A malformed file can crash SciPy's parser (segmentation fault) or make it allocate without bounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 120
_PARSE_MATLAB = """
import resource, sys
import scipy.io
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for path in sys.argv[1:]:
    scipy.io.loadmat(path, squeeze_me=True)
"""


def check_matlab_files(paths: Sequence[Path]) -> None:
    """Raises RuntimeError unless SciPy reads all of the files, in a process of its own with 2 GiB of memory."""
    for path in paths:
        if not path.is_file():
            raise RuntimeError(f"{path} is missing")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PARSE_MATLAB, *map(str, paths)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"SciPy does not come to an end with {' or '.join(path.name for path in paths)}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RuntimeError(f"SciPy cannot read {' or '.join(path.name for path in paths)} ({reason})")
