"""Runs in the environment that has real MXNet: `write|read FOLDER`, to exchange rec files with the tests."""

import json
import sys
from pathlib import Path

import mxnet
import numpy

MAGIC = b"\x0a\x23\xd7\xce"


def main():
    task, folder = sys.argv[1], Path(sys.argv[2])
    payloads = [bytes.fromhex(line) for line in json.loads((folder / "payloads.json").read_text())]
    assert any(MAGIC in payload for payload in payloads)
    if task == "write":
        file = mxnet.recordio.MXIndexedRecordIO(str(folder / "theirs.idx"), str(folder / "theirs.rec"), "w")
        for i, payload in enumerate(payloads):
            header = mxnet.recordio.IRHeader(0, numpy.arange(154, dtype=numpy.float32) + i, i, 0)
            file.write_idx(i, mxnet.recordio.pack(header, payload))
        file.close()
    else:
        file = mxnet.recordio.MXIndexedRecordIO(str(folder / "ours.idx"), str(folder / "ours.rec"), "r")
        assert file.keys == list(range(len(payloads)))
        for i in reversed(range(len(payloads))):
            header, payload = mxnet.recordio.unpack(file.read_idx(i))
            assert payload == payloads[i], i
            assert header.id == i and header.flag == 154, header
            assert (header.label == numpy.arange(154, dtype=numpy.float32) + i).all()
    print("done", len(payloads))


main()
