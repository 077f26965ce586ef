"""The judge: real MXNet 1.9.1 reads what we write and writes what we read."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alip.data.recordio import IndexedReader, Writer, pack, record_id, unpack
from tests.helpers.shards import PLANTED, encoded, make_image


@pytest.fixture
def exchange(tmp_path):
    payloads = [*PLANTED, *[encoded(make_image(i), quality=95) for i in range(10)]]
    (tmp_path / "payloads.json").write_text(json.dumps([payload.hex() for payload in payloads]))
    return tmp_path, payloads


def run_theirs(python: str, task: str, folder: Path, count: int) -> None:
    script = Path(__file__).parents[1] / "helpers" / "mxnet_side.py"
    done = subprocess.run([python, str(script), task, str(folder)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"done {count}" in done.stdout


def label_of(i: int) -> np.ndarray:
    return np.arange(154, dtype=np.float32) + i


def test_mxnet_reads_ours(mxnet_python, exchange):
    folder, payloads = exchange
    with Writer(folder / "ours.rec", folder / "ours.idx") as writer:
        for i, payload in enumerate(payloads):
            writer.write(pack(label_of(i), payload, i))
    run_theirs(mxnet_python, "read", folder, len(payloads))


def test_we_read_mxnets_and_write_the_same_bytes(mxnet_python, exchange):
    folder, payloads = exchange
    run_theirs(mxnet_python, "write", folder, len(payloads))
    with IndexedReader(folder / "theirs.rec", folder / "theirs.idx") as reader:
        assert len(reader) == len(payloads)
        for i, payload in enumerate(payloads):
            label, image = unpack(reader[i])
            assert (label == label_of(i)).all() and image == payload and record_id(reader[i]) == i
    with Writer(folder / "ours.rec", folder / "ours.idx") as writer:
        for i, payload in enumerate(payloads):
            writer.write(pack(label_of(i), payload, i))
    for kind in ("rec", "idx"):
        assert (folder / f"ours.{kind}").read_bytes() == (folder / f"theirs.{kind}").read_bytes()
