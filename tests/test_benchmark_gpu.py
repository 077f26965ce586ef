"""benchmarks/gpu.py: every part runs (here at tiny sizes), also without packages; without a GPU it says so."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.shards import ROOT
from tests.helpers.steps import TINY_MODEL, make_batch

sys.path.insert(0, str(ROOT / "benchmarks"))
import stand_ins

# Hides packages from a process, as if they were not installed.
HIDE = """
import runpy, sys
hidden = set(sys.argv[1].split(","))
class Without:
    def __init__(self, inner):
        self.inner = inner
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden or name == "nvidia.dali":
            return None
        return self.inner.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = run("bash", ROOT / "benchmarks/gpu.sh")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no GPU can be used" in done.stderr


def test_every_part_runs(tmp_path):
    done = run("bash", ROOT / "benchmarks/gpu.sh", "--dry-run", "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "gpu.md").read_text()
    parts = (
        "ceiling",
        "loss",
        "attention",
        "gradients",
        "nccl",
        "waiting",
        "steps",
        "loss-sizes",
        "decoding",
        "profile",
    )
    assert all(f"## {part}\n" in report for part in (*parts, "batch-size"))
    assert "FAILED" not in report and "left out" not in report
    assert (tmp_path / "trace.json").stat().st_size > 1000


def test_without_the_packages_that_a_borrowed_machine_may_lack(tmp_path):
    hidden = ",".join(("open_clip", *stand_ins.UNUSED, "torchvision"))
    words = ["--dry-run", "--output", tmp_path, "--only", "nccl", "decoding", "batch-size"]
    done = run(sys.executable, "-W", "ignore", "-c", HIDE, hidden, ROOT / "benchmarks/gpu.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replaced or left out: open_clip, huggingface_hub" in done.stdout
    assert "DALI is not installed here" in done.stdout and "FAILED" not in done.stdout


def test_a_failed_check_is_status_1(tmp_path, monkeypatch, capsys):
    import gpu

    monkeypatch.setitem(gpu.PARTS, "loss", (lambda report: report.check("x", False, "y"), 0))
    monkeypatch.setitem(gpu.PARTS, "nccl", (lambda report: 1 / 0, 0))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--output", str(tmp_path), "--only", "nccl", "loss"])
    assert gpu.main() == 1
    assert "2 checks failed: nccl, x" in capsys.readouterr().out
    assert "ZeroDivisionError" in (tmp_path / "gpu.md").read_text()


def test_a_variant_that_fails_leaves_the_others(tmp_path, monkeypatch):
    import gpu
    import gpu_rates

    def measure(report, size, micro, options):
        if size == 4 and micro == 1:
            raise RuntimeError("no kernel")
        return ["7", "", "", "", ""]

    monkeypatch.setattr(gpu_rates, "measure_step", measure)
    report = gpu.Report(torch.device("cpu"), 0.0, True, tmp_path)
    gpu_rates.steps(report)
    text = (tmp_path / "gpu.md").read_text()  # written while it runs, not at its end
    assert "RuntimeError" in text and "| 7 |" in text and "eager, 4" in report.failed


def test_on_a_gpu_only_kernels_count():
    """An operation's event and a marked region's repeat the time of their kernels."""
    from profiled import own_times
    from torch.autograd import DeviceType

    def event(key, device, region=False):
        return SimpleNamespace(
            key=key,
            device_type=device,
            count=2,
            is_user_annotation=region,
            self_device_time_total=5,
            self_cpu_time_total=1,
        )

    events = [
        event("aten::mm", DeviceType.CPU),
        event("gemm", DeviceType.CUDA),
        event("CompiledFunction", DeviceType.CUDA, region=True),
    ]
    assert own_times(events, on_gpu=True) == [("gemm", 2, 5.0)]
    assert own_times(events[:1], on_gpu=False) == [("aten::mm", 2, 1.0)]


def test_without_a_compiler_nothing_is_said_to_be_compiled(monkeypatch):
    import gpu_model
    import gpu_rates

    for lacks, names in ((None, {"compiled"}), ("no gcc", set())):
        monkeypatch.setattr(gpu_model, "missing_compiler", lambda device, lacks=lacks: lacks)
        report = SimpleNamespace(tiny=False, device=torch.device("cuda", 0))
        variants = list(gpu_rates.step_variants(report))
        assert {name.partition(",")[0] for name, *_ in variants} & {"compiled"} == names
        assert all(options.get("compile", False) is name.startswith("compiled") for name, *_, options in variants)


def test_the_stand_in_is_the_model_that_open_clip_builds():
    from open_clip.model import CLIP

    torch.manual_seed(0)
    real, ours = CLIP(**TINY_MODEL).eval(), stand_ins.CLIP(**TINY_MODEL).eval()
    assert {k: v.shape for k, v in real.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    for name, parameter in real.named_parameters():  # fresh weights of the same size
        if parameter.ndim > 1:
            assert 0.5 < ours.get_parameter(name).std() / parameter.std() < 2, name
    ours.load_state_dict(real.state_dict())
    batch = make_batch(4)
    with torch.no_grad():
        for name, given in (("encode_image", batch.image), ("encode_text", batch.text_tokens)):
            found, expected = (getattr(model, name)(given) for model in (ours, real))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
