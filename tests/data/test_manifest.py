"""Opening datasets by name, and what their sidecars must have."""

import os

import pyarrow.parquet as pq
import pytest

from alip.data.shards import load_manifest, read_texts
from alip.errors import UserError
from tests.helpers.shards import build_shards, make_tars


@pytest.fixture
def dataset(tmp_path):
    make_tars(tmp_path / "tars", 12)
    build_shards(tmp_path / "tars", tmp_path / "data" / "set")
    return tmp_path / "data" / "set"


def test_a_dataset_of_the_folder_that_a_command_stands_in(dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(dataset.parent)
    assert load_manifest(".").samples == 12
    monkeypatch.chdir(tmp_path)
    for name in (".", "/", ""):
        with pytest.raises(UserError, match="no shards at"):
            load_manifest(name)


def test_a_pipe_beside_the_shards_is_not_waited_for(dataset):
    os.mkfifo(dataset.parent / "notes.json")
    assert load_manifest(dataset.parent).samples == 12


@pytest.mark.parametrize(
    "change, column",
    [
        (lambda table: table.drop_columns(["metadata"]), "metadata"),
        (lambda table: table.append_column("key", table["key"]), "key"),
        (lambda table: table.set_column(1, "text", [list(range(12))]), "text"),
        (lambda table: table.rename_columns(["Key", *table.column_names[1:]]), "key"),
    ],
)
def test_a_sidecar_of_other_columns_is_refused(dataset, change, column):
    path = dataset.with_name("set-00000.parquet")
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(UserError, match=f"set-00000.parquet: its column '{column}' is .*build it again"):
        list(read_texts(load_manifest(dataset)))


def test_a_dataset_needs_a_name(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in (".", "..", f"{tmp_path}/"):
        with pytest.raises(UserError, match="give the dataset a name, DIR/NAME"):
            build_shards(tmp_path / "tars", output)
