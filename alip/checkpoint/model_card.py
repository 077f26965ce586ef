"""The model card of an exported model: what it is, how to load it, what it was trained on, its results, its licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from alip.files import read_json
from alip.model.weights import weights_hash
from alip.schema import check
from alip.text_table import counted, markdown_table

_LOAD = {
    "open_clip": (
        "import open_clip\n\n"
        'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")\n'
        'tokenizer = open_clip.get_tokenizer("local-dir:{name}")'
    ),
    "hf": (
        "from transformers import CLIPModel, CLIPProcessor\n\n"
        'model = CLIPModel.from_pretrained("{name}")\n'
        'processor = CLIPProcessor.from_pretrained("{name}")'
    ),
}
# Paths and devices of one machine, and how the command was typed: no part of the recipe.
_NO_RECIPE = {
    *("output", "train_data", "data_root", "resume", "wandb", "device", "pretrained"),
    *("check", "debug", "resume_force"),
}


def write_card(
    folder: Path,
    model: nn.Module,
    form: str,
    name: str,
    run: Path | None,
    metadata: dict[str, Any],
    license_name: str,
    difference: float,
) -> None:
    """Writes README.md into an exported folder. run: the run folder, where data, recipe and results are read."""
    about = {}
    if run is not None and (run / "run.json").is_file():
        about = read_json(run / "run.json")
        check(about, _RUN, run / "run.json", "correct it, or move it away: the card then has no recipe")
    library = {"open_clip": "open_clip", "hf": "transformers"}[form]
    parts = [
        f"---\nlicense: {license_name}\nlibrary_name: {library}\npipeline_tag: zero-shot-image-classification\n"
        "tags:\n- clip\n- alip\n---",
        f"# {name}",
        "An image and text encoder, trained with ALIP (adaptive language-image pre-training with synthetic captions, "
        "[arXiv 2308.08428](https://arxiv.org/abs/2308.08428)).",
        _section("Use", f"```python\n{_LOAD[form].format(name=name)}\n```"),
        _section("Model", _model_lines(model, metadata, difference)),
        _section("Training data", _data_lines(about)),
        _section("Recipe", _recipe_lines(about)),
        _section("Results", _results_lines(run, weights_hash(model))),
        _section("Licence", _licence_line(license_name)),
    ]
    text = "\n\n".join(parts) + "\n"
    (folder / "README.md").write_bytes(text.encode("utf-8", "replace"))  # JSON can hold lone surrogates


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _model_lines(model: nn.Module, metadata: dict[str, Any], difference: float) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"- {size / 1e6:.1f} M parameters, images of {model.image_size} × {model.image_size} pixels, "
        f"texts of up to {model.context_length} tokens, {model.config['model_cfg']['embed_dim']} feature dimensions",
        f"- checked at export: features equal the training code's on random input to {difference:.1e}",
    ]
    if "step" in metadata:
        samples = metadata.get("samples", "an unknown number of")
        lines.append(f"- weights after {metadata['step']} optimizer steps ({samples} samples)")
    if metadata.get("weights") == "ema":
        lines.append("- these are the EMA of the weights")
    if "fingerprint" in metadata:
        lines.append(f"- exported from a checkpoint with SHA-256 `{metadata['fingerprint']}…`")
    return "\n".join(lines)


def _data_lines(about: dict[str, Any]) -> str:
    data = about.get("data")
    if not data:
        return "Not recorded with these weights."
    return "\n".join(f"- {_short(key.replace('_', ' '))}: {_short(value)}" for key, value in data.items())


def _recipe_lines(about: dict[str, Any]) -> str:
    settings = {key: value for key, value in about.get("arguments", {}).items() if key not in _NO_RECIPE}
    if settings.get("steps") is not None:
        settings.pop("epochs", None)  # --steps has decided
    if not settings:
        return "Not recorded with these weights."
    rows = [
        f"| {_short(key.replace('_', '-'))} | {_short(value)} |" for key, value in settings.items() if value is not None
    ]
    ranks = f"On {about['world_size']} rank(s).\n\n" if "world_size" in about else ""
    return ranks + "\n".join(["| setting | value |", "|---|---|", *rows])


def _results_lines(run: Path | None, weights: str) -> str:
    """Results of these very weights (their hash): a run folder may hold those of other checkpoints and of the EMA."""
    path = run / "results" / "results.json" if run is not None else None
    entries = read_json(path).get("entries", []) if path is not None and path.is_file() else []
    check(entries, _ENTRIES, path, "delete the file and evaluate again")
    own = [entry for entry in entries if entry.get("weights_hash") == weights]
    contents: dict[tuple, set] = {}  # of datasets of one name
    for entry in own:
        contents.setdefault((entry["dataset"], _task(entry)), set()).add(entry.get("dataset_hash"))
    rows = []
    for entry in own:
        details = [counted(entry[key], key[:-1]) for key in ("shots", "seeds") if entry.get(key)]
        details += [str(entry[key]) for key in ("protocol", "precision") if entry.get(key)]
        details += [f"{name} from {Path(file).name}" for name, file in (entry.get("given") or {}).items()]
        several = len(contents[entry["dataset"], _task(entry)]) > 1
        content = f" [content {str(entry.get('dataset_hash') or 'unknown')[:7]}]" if several else ""
        mark = f" ({entry['mark']}; not comparable)" if entry.get("mark") else ""
        about = [_short(entry["dataset"] + content + mark), f"{_task(entry)} ({', '.join(details)})"]
        rows += [
            [*about, name, f"{value:g}" if name == "C" else f"{value:.2f}"]
            for name, value in entry["numbers"].items()
            if isinstance(value, float)
        ]
    if not rows:
        return "None recorded with these weights."
    return markdown_table(["dataset", "task", "metric", "value"], rows)


def _task(entry: dict[str, Any]) -> str:
    return str(entry.get("task", entry.get("kind")))  # `kind` until version 0.1


_RUN = {
    "type": "object",
    "properties": {
        "data": {"type": ["object", "null"]},
        "arguments": {"type": "object"},
        "world_size": {"type": ["integer", "null"]},
    },
}
_ENTRIES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["dataset", "numbers"],
        "properties": {
            "dataset": {"type": "string"},
            "mark": {"type": ["string", "null"]},
            "dataset_hash": {"type": ["string", "null"]},
            "numbers": {"type": "object"},
            "given": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        },
    },
}


def _licence_line(license_name: str) -> str:
    if license_name == "other":
        return "Not stated by whoever exported these weights. The training code is MIT; the training data has its own."
    return f"Weights: {license_name}. The training data has its own licences."


def _short(value: Any) -> str:
    """One line that fits into a table cell."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join((text if len(text) <= 200 else text[:197] + "…").split())
    return text.replace("|", "\\|")
