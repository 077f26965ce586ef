"""The command: completeness after any interruption, changed sources, ranks and shards, failures and exit status."""

import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from alip.caption.lines import PartWriter
from alip.caption.pipeline import main
from alip.errors import UserError
from tests.helpers.captioning import caption_of, numbered, png, read_captions, read_failures, write_captioner, write_tar

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path):
    """A folder with a tar of 40 images and a captioner file."""
    write_tar(tmp_path / "a.tar", numbered(0, 40))
    write_captioner(tmp_path)
    return tmp_path


def arguments(workspace, *more, source="a.tar", output="c.jsonl"):
    common = ["--captioner", f"file:{workspace / 'sizes.py'}", "--workers", "0", "--batch-size", "8"]
    return ["--input", str(workspace / source), "--output", str(workspace / output), *common, *map(str, more)]


def record(workspace, output="c-run.json"):
    return json.loads((workspace / output).read_text())


def wanted(first, last):
    return {f"k{n:04d}": caption_of(n) for n in range(first, last)}


def test_every_image_gets_its_caption(workspace, capsys):
    assert main(arguments(workspace)) == 0
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40)
    assert (workspace / "c-failures.jsonl").read_text() == ""
    assert (workspace / "c-samples.png").read_bytes().startswith(b"\x89PNG")
    written = record(workspace)
    assert written["complete"] and written["settings"]["captioner"] == "file:sizes.py"
    assert written["counts"]["images"] == written["counts"]["captioned_now"] == 40
    assert written["summary"]["captions"] == written["summary"]["distinct"] == 40
    assert written["summary"]["duplicate_fraction"] == 0
    shown = capsys.readouterr().out
    assert "40 images: 40 have a caption" in shown and "tokens" in shown
    assert not (workspace / "c-parts").exists()


def test_worker_processes_give_the_same_lines(workspace):
    assert main(arguments(workspace, "--limit", 10)) == 0
    assert main(arguments(workspace, "--limit", 10, "--workers", 2, output="two.jsonl")) == 0
    assert (workspace / "c.jsonl").read_bytes() == (workspace / "two.jsonl").read_bytes()


def test_cleaning_flags(workspace):
    assert main(arguments(workspace, "--strip-lead", "--limit", 3)) == 0
    assert read_captions(workspace / "c.jsonl") == {
        key: caption.removeprefix("a picture of ") for key, caption in wanted(0, 3).items()
    }


def test_run_again_and_nothing_is_captioned_twice(workspace):
    log = workspace / "log"
    assert main(arguments(workspace, "--option", f"log={log}")) == 0
    before = (workspace / "c.jsonl").read_bytes()
    log.unlink()
    for more in ([], ["--trust-keys"], ["--workers", 1]):
        assert main(arguments(workspace, "--option", f"log={log}", *more)) == 0
        assert not log.exists()
        assert (workspace / "c.jsonl").read_bytes() == before
        assert record(workspace)["counts"]["captioned_before"] == 40


def test_a_source_that_changes_between_runs(workspace, capsys):
    assert main(arguments(workspace)) == 0
    images = numbered(10, 50)  # ten are gone, ten are new
    images["k0020"] = png(200)  # and one is another image now
    write_tar(workspace / "a.tar", images)
    log = workspace / "log"
    assert main(arguments(workspace, "--restart", "--option", f"log={log}")) == 0
    write_tar(workspace / "a.tar", numbered(0, 40))
    assert main(arguments(workspace, "--option", f"log={log}")) == 0
    capsys.readouterr()
    log.unlink()
    write_tar(workspace / "a.tar", images)
    assert main(arguments(workspace, "--option", f"log={log}")) == 0
    captions = read_captions(workspace / "c.jsonl")
    assert captions == wanted(0, 50) | {"k0020": caption_of(200)}
    counts = record(workspace)["counts"]
    assert counts["images"] == 40 and counts["captions_of_other_images"] == 10
    assert log.read_text() == "1\n"  # only the changed one was captioned again
    assert "10 more captions are of images that this input does not have" in capsys.readouterr().out


def test_other_settings_are_refused(workspace):
    assert main(arguments(workspace)) == 0
    before = (workspace / "c.jsonl").read_bytes()
    with pytest.raises(UserError, match="cleaning was"):
        main(arguments(workspace, "--strip-lead"))
    with open(workspace / "sizes.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="file_sha256"):
        main(arguments(workspace))
    assert (workspace / "c.jsonl").read_bytes() == before
    assert main(arguments(workspace, "--strip-lead", "--restart")) == 0


def broken_images():
    images = numbered(0, 40)
    images["k0003"] = b""
    images["k0005"] = b"no image at all"
    images["k0007"] = png(7)[:70]
    images["k0009"] = png(9, (300, 300))
    return images


def test_unreadable_images_are_named_and_counted(workspace, capsys):
    write_tar(workspace / "a.tar", broken_images())
    assert main(arguments(workspace, "--max-pixels", 50_000)) == 1
    failures = read_failures(workspace / "c-failures.jsonl")
    assert sorted(failures) == ["k0003", "k0005", "k0007", "k0009"]
    assert failures["k0003"] == "empty" and failures["k0009"] == "too-many-pixels"
    assert read_captions(workspace / "c.jsonl") == {k: v for k, v in wanted(0, 40).items() if k not in failures}
    written = record(workspace)
    assert written["counts"]["failed"] == 4 and sum(written["counts"]["failed_by_reason"].values()) == 4
    assert not written["complete"]
    shown = capsys.readouterr().out
    assert "4 images (10.00%) have none" in shown and "exit status 1" in shown

    assert main(arguments(workspace, "--max-pixels", 50_000, "--allow-failures", 0.1)) == 0
    assert main(arguments(workspace, "--max-pixels", 50_000, "--allow-failures", 0.05)) == 1
    write_tar(workspace / "a.tar", numbered(0, 40))  # repaired
    assert main(arguments(workspace)) == 0
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40)
    assert (workspace / "c-failures.jsonl").read_text() == ""


def test_a_cut_tar_is_never_within_the_allowed_share(workspace, capsys):
    with tarfile.open(workspace / "a.tar") as tar:
        middle = tar.getmember("k0020.png").offset_data + 10
    (workspace / "a.tar").write_bytes((workspace / "a.tar").read_bytes()[:middle])
    assert main(arguments(workspace, "--allow-failures", 1.0)) == 1
    assert "1 input files are damaged or cut short" in capsys.readouterr().out
    assert record(workspace)["counts"]["unread_files"] == 1


def test_a_captioner_that_fails_on_one_image_costs_only_that_image(workspace):
    assert main(arguments(workspace, "--option", "fail=13")) == 1
    assert read_failures(workspace / "c-failures.jsonl") == {"k0013": "captioner-failed"}
    assert len(read_captions(workspace / "c.jsonl")) == 39


def test_a_batch_that_does_not_fit_is_halved_for_good(workspace, capfd):
    log = workspace / "log"
    text = (workspace / "sizes.py").read_text()
    small = (
        "        if len(batch) > 2:\n            import torch, weakref\n"
        "            assert not (getattr(self, 'held', None) and self.held()), 'a failed batch is still in memory'\n"
        "            activations = torch.zeros(1)\n            self.held = weakref.ref(activations)\n"
        "            raise torch.OutOfMemoryError('too many')\n"
    )
    write_captioner(workspace, text.replace("        time.sleep(self.delay)\n", small))
    assert main(arguments(workspace, "--option", f"log={log}")) == 0
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40)
    assert log.read_text().split() == ["2"] * 20
    assert "continuing with batches of 2" in capfd.readouterr().err


def test_a_broken_captioner_stops_the_run(workspace):
    fail = "+".join(str(n) for n in range(40))
    with pytest.raises(RuntimeError, match="cannot see"):
        main(arguments(workspace, "--option", f"fail={fail}"))


def test_empty_captions_and_wrong_numbers_of_captions(workspace):
    write_captioner(
        workspace,
        "class C:\n    def caption(self, b):\n        return [' \\n'] * len(b)\n"
        "def create_captioner(d, o):\n    return C()\n",
    )
    assert main(arguments(workspace)) == 1
    assert set(read_failures(workspace / "c-failures.jsonl").values()) == {"empty-caption"}
    write_captioner(
        workspace,
        "class C:\n    def caption(self, b):\n        return ['x']\ndef create_captioner(d, o):\n    return C()\n",
    )
    other = workspace / "sizes.py"
    other.rename(workspace / "one.py")
    with pytest.raises(UserError, match="1 results for 8 images"):
        main(
            [
                "--input",
                str(workspace / "a.tar"),
                "--output",
                str(workspace / "d.jsonl"),
                "--workers",
                "0",
                "--batch-size",
                "8",
                "--captioner",
                f"file:{workspace / 'one.py'}",
            ]
        )


def test_keys_that_come_twice(workspace):
    write_tar(workspace / "b.tar", {"k0001": png(100), "new": png(101)})
    pattern = "{a,b}.tar"
    assert main(arguments(workspace, source=pattern)) == 1
    assert read_failures(workspace / "c-failures.jsonl") == {"k0001": "duplicate-key"}
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40) | {"new": caption_of(101)}


def test_a_table_with_several_texts_of_one_image_captions_it_once(workspace):
    for n in range(3):
        (workspace / f"{n}.png").write_bytes(png(n))
    rows = [f"{n}.png,text {i}" for n in range(3) for i in range(2)]
    (workspace / "t.csv").write_text("image,text\n" + "\n".join(rows) + "\n")
    assert main(arguments(workspace, source="t.csv")) == 0
    assert read_captions(workspace / "c.jsonl") == {f"{n}.png": caption_of(n) for n in range(3)}


def test_coco_images_get_one_caption_each(workspace):
    for n in range(3):
        (workspace / f"{n}.png").write_bytes(png(n))
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
        "annotations": [{"image_id": n % 3, "caption": f"text {n}"} for n in range(7)],
    }
    (workspace / "coco.json").write_text(json.dumps(content))
    assert main(arguments(workspace, source="coco.json")) == 0
    assert read_captions(workspace / "c.jsonl") == {str(n): caption_of(n) for n in range(3)}


def test_captions_that_exist_already(workspace):
    """OFA's result file: a JSON list of image_id and caption, in any order, with one image missing."""
    results = [{"image_id": f"k{n:04d}", "caption": f"ofa says {n} "} for n in reversed(range(40)) if n != 17]
    (workspace / "test_predict.json").write_text(json.dumps(results))
    given = ["--input", str(workspace / "a.tar"), "--output", str(workspace / "c.jsonl")]
    given += ["--captioner", f"existing:{workspace / 'test_predict.json'}"]
    assert main(given) == 1
    assert read_failures(workspace / "c-failures.jsonl") == {"k0017": "no-caption"}
    assert read_captions(workspace / "c.jsonl") == {f"k{n:04d}": f"ofa says {n}" for n in range(40) if n != 17}
    assert main([*given, "--allow-failures", "0.05"]) == 0
    assert record(workspace)["counts"]["captioned_before"] == 39


def test_shards_of_several_machines_and_their_merge(workspace, capsys):
    for k in (1, 2, 3):
        assert main(arguments(workspace, "--shard", f"{k}/3", output=f"shard{k}.jsonl")) == 0
    shards = [str(workspace / f"shard{k}.jsonl") for k in (1, 2, 3)]
    sizes = [len(read_captions(Path(shard))) for shard in shards]
    assert sum(sizes) == 40 and min(sizes) > 0
    with pytest.raises(UserError, match="every shard once"):
        main(["--merge", *shards[:2], "--output", str(workspace / "all.jsonl")])
    assert main(["--merge", *shards, "--output", str(workspace / "all.jsonl")]) == 0
    assert read_captions(workspace / "all.jsonl") == wanted(0, 40)
    assert record(workspace, "all-run.json")["counts"]["images"] == 40
    assert "40 images: 40 have a caption" in capsys.readouterr().out


def test_many_files_are_shared_out_by_file(workspace):
    for n in range(10):
        write_tar(workspace / f"m{n}.tar", numbered(4 * n, 4 * n + 4))
    keys = []
    for k in (1, 2):
        assert main(arguments(workspace, "--shard", f"{k}/2", source="m*.tar", output=f"shard{k}.jsonl")) == 0
        keys.append(set(read_captions(workspace / f"shard{k}.jsonl")))
    assert keys[0] == {f"k{n:04d}" for n in range(40) if n // 4 % 2 == 0}
    assert keys[0] | keys[1] == set(wanted(0, 40))


def test_a_full_disk_is_reported_and_the_next_run_resumes(workspace, monkeypatch):
    flush, times = PartWriter.flush, []

    def fails_later(self):
        times.append(1)
        if len(times) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self)

    with monkeypatch.context() as full:
        full.setattr(PartWriter, "flush", fails_later)
        with pytest.raises(UserError, match="is full: free some space"):
            main(arguments(workspace))
    gc.collect()  # a process that ends lets its lock go; here the store has to be thrown away
    assert main(arguments(workspace)) == 0
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40)
    assert record(workspace)["counts"]["captioned_before"] >= 16


def test_file_names_that_are_no_utf8(workspace):
    folder = workspace / "odd"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / name).write_bytes(png(4))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert main(arguments(workspace, source="odd")) == 0
    assert main(arguments(workspace, source="odd")) == 0
    assert read_captions(workspace / "c.jsonl") == {r"caf\udce9": caption_of(4)}  # as a key can be written
    assert record(workspace)["counts"]["captioned_before"] == 1


def launch(workspace, *more, env=None):
    command = [sys.executable, "-m", "alip.caption", *arguments(workspace, *more)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def part_lines(workspace):
    return sum(path.read_text().count("\n") for path in (workspace / "c-parts").glob("captions-*.jsonl"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_anywhere_it_goes_on_and_is_complete(workspace, how):
    log = workspace / "log"
    slow = ["--option", f"log={log}", "--option", "delay=0.4", "--batch-size", 2, "--workers", 1]
    process = launch(workspace, *slow)
    until = time.monotonic() + 120
    while part_lines(workspace) < 6 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(how)
    _, output = process.communicate(timeout=60)
    # communicate() has read stderr to its end, which the worker holds open too: so the worker has ended as well.
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), output
    assert not (workspace / "c.jsonl").exists()
    done = part_lines(workspace)
    assert 6 <= done < 40
    part = next((workspace / "c-parts").glob("captions-*.jsonl"))
    part.write_bytes(part.read_bytes()[:-9])  # as if the kill had cut the last line
    log.unlink()
    assert main(arguments(workspace, "--option", f"log={log}", "--option", "delay=0.4", "--batch-size", 40)) == 0
    assert read_captions(workspace / "c.jsonl") == wanted(0, 40)
    assert log.read_text() == f"{40 - done + 1}\n"
    assert record(workspace)["runs"] == 2


def test_two_ranks(workspace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    images = broken_images()
    images.pop("k0009")
    write_tar(workspace / "a.tar", images)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [launch(workspace, env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    outputs = [rank.communicate(timeout=150) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], outputs
    failures = read_failures(workspace / "c-failures.jsonl")
    assert sorted(failures) == ["k0003", "k0005", "k0007"]
    assert read_captions(workspace / "c.jsonl") == {
        key: caption_of(int(key[1:])) for key in images if key not in failures
    }
    assert "39 images: 36 have a caption" in outputs[0][0] and outputs[1][0] == ""
    assert main(arguments(workspace, "--allow-failures", 0.1)) == 0  # one rank resumes where two stopped
    assert record(workspace)["counts"]["captioned_before"] == 36


def test_a_mistake_ends_with_one_line_and_status_2(workspace):
    process = launch(workspace, "--captioner", "no/such-model", env={"HF_HUB_OFFLINE": "1"})
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    assert errors.count("\n") == 1 and errors.startswith("error: cannot load the captioner")
    assert out == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "none.tar"], "no such file"),
        (["--output", "c.txt"], r"must end in \.jsonl"),
        (["--merge", "none.jsonl"], "no none-run.json"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_mistakes(workspace, more, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        main(arguments(workspace, *more))
