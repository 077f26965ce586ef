"""Checkpoints: written whole or not at all, read back from all that `--checkpoint` takes, and handed on.

python -m alip.checkpoint export --checkpoint RUN --to open_clip|hf --output DIR
python -m alip.checkpoint import --checkpoint FILE --output RUN
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from alip import __version__
from alip import weights as files
from alip.architecture import likely_models
from alip.errors import UserError, run_command
from alip.model import create_model
from alip.weights import FORMAT, Weights, find_checkpoint, read_weights

__all__ = ["atomic_save", "find_checkpoint", "fingerprint", "load_model", "load_weights", "read_weights"]


def atomic_save(obj: Any, path: str | Path) -> None:
    """`torch.save` to a temporary name, flushed to the disk, then renamed: a reader sees the old file or the whole new.

    Raises UserError when the disk refuses (full, read-only); no half file is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _save_and_rename(obj, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        mend = "make room, or choose another place"
        raise UserError(f"{path}: could not be written ({error.strerror}); {mend}") from error


def _save_and_rename(obj: Any, temporary: Path, path: Path) -> None:
    with temporary.open("wb") as file:
        torch.save(obj, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut as well
    finally:
        os.close(folder)


def load_weights(model: nn.Module, path: str | Path, weights: str = "model") -> dict[str, Any]:
    """Loads any weights that `--checkpoint` takes into the model; returns facts: source, fingerprint, step, samples.

    weights: "model", or "ema" for the running average that a run with `--ema` keeps.
    """
    found = read_weights(path)
    files.apply(model, _choose(found, weights), found.path)
    return {"source": str(found.path), "fingerprint": fingerprint(found.path), "weights": weights, **found.facts}


def _choose(found: Weights, weights: str) -> dict[str, torch.Tensor]:
    if weights == "model":
        return found.state
    if weights != "ema":
        raise UserError(f"weights must be 'model' or 'ema', not {weights!r}")
    if found.ema is None:
        raise UserError(f"{found.path}: holds no averaged (EMA) weights; use its plain ones, or train with --ema")
    return files.strip_prefix(found.ema)


def load_model(
    path: str | Path, model_name: str | None = None, device: str | torch.device = "cpu", weights: str = "model"
) -> nn.Module:
    """A model in evaluation mode with the weights at `path` (see `read_weights`), its `facts` as an attribute.

    path: also an open_clip name with a tag, as `ViT-B-32:openai` (downloads). model_name: needed only for a bare
    state dict that fits no open_clip model, or another one than the plainest that it fits: shapes do not tell
    QuickGELU, for one.
    """
    name, _, tag = str(path).rpartition(":")
    if not Path(path).exists() and open_clip.is_pretrained_cfg(name.replace("/", "-"), tag):
        model = create_model(name, pretrained=tag)
        model.facts = {"source": str(path), "weights": "model"}
        return model.to(device).eval()
    found = read_weights(path)
    config = model_name or found.config
    if config is None:
        likely = likely_models(found.state)
        if not likely:
            raise UserError(f"{found.path}: bare weights that fit no open_clip model; name their model with --model")
        config = likely[0]
    model = create_model(config)
    files.apply(model, _choose(found, weights), found.path)
    model.facts = {"source": str(found.path), "fingerprint": fingerprint(found.path), "weights": weights, **found.facts}
    return model.to(device).eval()


def fingerprint(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of a checkpoint file (of a run folder: of its newest)."""
    digest = hashlib.sha256()
    with find_checkpoint(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:12]


def import_weights(path: str | Path, output: str | Path, model_name: str | None = None) -> Path:
    """Makes a run folder of released weights, for evaluation or as a start (`--pretrained`); returns the checkpoint.

    Raises UserError if the folder already holds a run.
    """
    output = Path(output)
    if (output / "run.json").exists() or (output / "checkpoints").exists():
        raise UserError(f"{output}: already holds a run; choose another folder")
    model = load_model(path, model_name)
    checkpoint = output / "checkpoints" / "step-00000000.pt"
    content = {
        "format": FORMAT,
        "version": 1,
        "model": model.state_dict(),
        "ema": None,
        "model_config": model.config,
        "step": 0,
        "samples": 0,
        "imported": True,
    }
    atomic_save(content, checkpoint)
    about = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "imported_from": {"name": Path(path).name, "sha256": model.facts.get("fingerprint")},
        "arguments": {},
        "versions": {"alip": __version__, "torch": torch.__version__, "open_clip": open_clip.__version__},
        "starts": [],
    }
    (output / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (output / "model.json").write_text(json.dumps(model.config, indent=1) + "\n", encoding="utf-8")
    return checkpoint


def run_folder_of(path: str | Path) -> Path | None:
    """The run folder that a checkpoint path belongs to, if it lies in one."""
    path = Path(path)
    for folder in (path, path.parent.parent):
        if (folder / "run.json").is_file():
            return folder
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m alip.checkpoint", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a folder that open_clip or transformers loads")
    out.add_argument("--to", required=True, choices=("open_clip", "hf"), help="whose form")
    out.add_argument("--weights", choices=("model", "ema"), default="model", help="plain or averaged (default: model)")
    out.add_argument("--license", default="other", help="for the model card, e.g. mit (default: not stated)")
    out.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    into = commands.add_parser("import", help="make a run folder of released weights")
    for command, output in ((out, "the folder to write"), (into, "the run folder to make")):
        command.add_argument("--checkpoint", required=True, help="run folder, checkpoint file or released weights")
        command.add_argument("--output", required=True, help=output)
        command.add_argument("--model", help="open_clip name or JSON config, for bare weights that fit several models")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    arguments = _arguments()
    if arguments.command == "import":
        path = import_weights(arguments.checkpoint, arguments.output, arguments.model)
        print(f"imported into {arguments.output} ({path.name})")
        return
    from alip.export import export

    model = load_model(arguments.checkpoint, arguments.model, weights=arguments.weights)
    difference = export(
        model,
        arguments.to,
        arguments.output,
        run=run_folder_of(arguments.checkpoint),
        facts=model.facts,
        license_name=arguments.license,
        overwrite=arguments.overwrite,
    )
    print(f"exported to {arguments.output}: features equal the original's to {difference:.1e}")


if __name__ == "__main__":
    run_command(main)
