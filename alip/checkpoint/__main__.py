"""Exports a checkpoint, or makes a run folder of released weights.

python -m alip.checkpoint export --checkpoint RUN --to open_clip|hf --output DIR
python -m alip.checkpoint import --checkpoint FILE --output RUN
"""

from __future__ import annotations

import argparse
import re

from alip.checkpoint.export import export
from alip.checkpoint.load import load_model, run_folder_of
from alip.checkpoint.save import import_weights
from alip.command import CommandParser
from alip.errors import run_command


def _license(text: str) -> str:
    """The identifier of a licence, as a model card's header takes it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no identifier of a licence: write mit, apache-2.0 or other")
    return text


def _arguments() -> argparse.Namespace:
    parser = CommandParser(prog="python -m alip.checkpoint", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a folder that open_clip or transformers loads")
    out.add_argument("--to", required=True, choices=("open_clip", "hf"), help="whose form")
    out.add_argument("--weights", choices=("model", "ema"), default="model", help="default: model")
    stated = "for the model card, e.g. mit (default: not stated)"
    out.add_argument("--license", type=_license, default="other", help=stated)
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
    model = load_model(arguments.checkpoint, arguments.model, weights=arguments.weights)
    difference = export(
        model,
        arguments.to,
        arguments.output,
        run=run_folder_of(arguments.checkpoint),
        metadata=model.metadata,
        license_name=arguments.license,
        overwrite=arguments.overwrite,
    )
    print(f"exported to {arguments.output}: features equal the original's to {difference:.1e}")


if __name__ == "__main__":
    run_command(main)
