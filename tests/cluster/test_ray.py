"""The engine against a real Ray cluster of two machines on loopback: lost machines, lost workers, broken ones."""

import argparse
import os
import subprocess
import sys
import threading
import time

import pytest

from alip.build import unit_shuffle, units
from alip.caption.command_line import parse
from alip.caption.jobs import choice_of
from alip.caption.pipeline import caption_on_cluster, main, open_input
from alip.cluster.ray_engine import engine_of
from alip.errors import UserError
from tests.helpers import waiting_pieces
from tests.helpers.captioning import write_captioner
from tests.helpers.engines import build_captioned, make_captioned_tars
from tests.helpers.shards import ROOT

pytest.importorskip("ray")
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return make_captioned_tars(tmp_path_factory.mktemp("ray"))


def test_without_a_cluster_one_line(tars, tmp_path):
    from ray._private.services import find_gcs_addresses

    if find_gcs_addresses():
        pytest.skip("a Ray cluster runs on this machine, and --ray-address auto finds it")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = ["--input", tars / "tars", "--output", tmp_path / "set", "--engine", "ray", "--quiet"]
    command = [sys.executable, "-W", "ignore", str(ROOT / "data2rec.py"), *map(str, words)]
    environment["RAY_TMPDIR"] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster answers" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("flags", "ranks", "message"),
    [
        ({"ray_address": "nowhere"}, 1, "--ray-address nowhere: no Ray cluster answers"),
        ({"device": "cuda:1"}, 1, "gives each worker its GPU"),
        ({}, 2, "start the command without torchrun"),
    ],
)
def test_no_engine_is_one_line(flags, ranks, message):
    arguments = argparse.Namespace(**{"engine": "ray", "ray_address": "auto", "device": "cuda", **flags})
    with pytest.raises(UserError, match=message):
        engine_of(arguments, ranks)


@pytest.mark.slow
def test_a_cluster_of_two_machines(tars, tmp_path, monkeypatch):
    """It builds while one of them is killed in the middle of a piece; the other shuffles, though a worker is killed; a
    machine with two GPUs captions, though a worker is killed."""
    from ray.cluster_utils import Cluster

    from alip.cluster.ray_engine import RayEngine

    monkeypatch.setattr(units, "prepare_unit", waiting_pieces.prepare_unit)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    engine = None
    try:
        other = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        engine = RayEngine(cluster.address)
        with pytest.raises(UserError, match="no machine of the Ray cluster has a GPU"):
            list(engine.run_workers(waiting_pieces.cannot_be_made, None, [(1,)], "cuda"))
        _build_while_a_machine_is_lost(engine, cluster, other, tars, tmp_path)
        monkeypatch.undo()
        _shuffle_while_a_worker_is_lost(engine, tars, tmp_path, monkeypatch)
        cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=NODE["object_store_memory"])
        cluster.wait_for_nodes()
        _caption_on_two_gpus_while_a_worker_is_lost(engine, tars, tmp_path)
        with pytest.raises(UserError, match="no such model"):
            list(engine.run_workers(waiting_pieces.cannot_be_made, None, [(1,), (2,)]))
        with pytest.raises(UserError, match="no worker can be made on the Ray cluster: ValueError: no number"):
            list(engine.run_workers(waiting_pieces.is_broken, None, [(1,)]))
    finally:
        if engine:
            engine.close()
        cluster.shutdown()


def _build_while_a_machine_is_lost(engine, cluster, other, tars, tmp_path):
    log = tmp_path / waiting_pieces.LOG
    log.write_text("")
    log.with_suffix(".doomed").write_text(other.node_id)

    def kill():
        while other.node_id not in log.read_text():
            time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    manifest = build_captioned(tars, tmp_path / "out" / "set", engine=engine)
    killer.join(10)
    local = build_captioned(tars, tmp_path / "local" / "set")
    assert manifest.fingerprint == local.fingerprint and manifest.to_json() == local.to_json()
    for path in local.folder.iterdir():
        assert path.name == "set.json" or path.read_bytes() == (manifest.folder / path.name).read_bytes()
    attempts = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(set(attempts)) == ["0", "1", "2", "3", "4"] and len(attempts) == 6, "the lost one twice, others once"


def _shuffle_while_a_worker_is_lost(engine, tars, tmp_path, monkeypatch):
    monkeypatch.setattr(unit_shuffle, "spill_unit", waiting_pieces.spill_unit)
    manifest = build_captioned(tars, tmp_path / "shuffled" / "out" / "set", engine=engine, shuffle_seed=3)
    monkeypatch.undo()
    local = build_captioned(tars, tmp_path / "shuffled here" / "set", shuffle_seed=3)
    assert manifest.fingerprint == local.fingerprint and manifest.to_json() == local.to_json()
    for path in local.folder.iterdir():
        assert path.name == "set.json" or path.read_bytes() == (manifest.folder / path.name).read_bytes()
    spilled = (manifest.folder.parent / waiting_pieces.LOG).read_text().split()
    assert sorted(set(spilled)) == ["0", "1", "2", "3", "4"] and len(spilled) == 6, "the lost one twice, others once"


def _caption_on_two_gpus_while_a_worker_is_lost(engine, tars, tmp_path):
    """A worker for each GPU, which loads the model once and sees its own GPU alone."""
    captioner = write_captioner(tmp_path, waiting_pieces.CAPTIONER)

    def words(name, *more):
        shared = ["--captioner", f"file:{captioner}", "--option", f"log={tmp_path / name}.log", "--workers", "0"]
        return ["--input", str(tars / "tars"), "--output", str(tmp_path / f"{name}.jsonl"), *shared, *more]

    assert main(words("one")) == 1
    (tmp_path / "two.log.doomed").touch()
    arguments = parse(words("two", "--engine", "ray"))
    assert caption_on_cluster(engine, open_input(arguments), choice_of(arguments), arguments, quiet=True) == 1
    for ending in (".jsonl", "-failures.jsonl"):
        assert (tmp_path / f"two{ending}").read_bytes() == (tmp_path / f"one{ending}").read_bytes()
    lines = [line.split(":") for line in (tmp_path / "two.log").read_text().split()]
    made = {process: gpu for process, gpu, what in lines if what == "made"}
    batches = [(process, gpu) for process, gpu, what in lines if what != "made"]
    assert len(batches) == 6, "one batch twice"
    assert len(made) == [what for *_, what in lines].count("made") <= 3, "two workers, and one for that which was lost"
    assert set(made.values()) == {"0", "1"} and all(made[process] == gpu for process, gpu in batches)
