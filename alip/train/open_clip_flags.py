"""Flags that open_clip's trainer has and this one does not need: each answers with a line on what to do instead.

Also the names that flags of this trainer had before.
"""

from __future__ import annotations

import argparse

_INPUT = "a flag of data2rec.py, which builds the rec shards that train.py reads:"
_LOSS = "the loss is always computed this way: each rank holds the rows of its own images, with the full gradient"
_LAUNCH = "torchrun describes the ranks (see docs/training.md), the backend follows the device; leave it out"
_REMOTE = "a run folder may be on any mounted file system; copy it with the tool of that storage"
_OTHER_LOSS = "ALIP's two paths are trained by its own loss or, with --objective, by CLIP's; open_clip trains this one"
_COMPILE = "--torchcompile compiles the towers (the default on a GPU)"

# Flag: (number of values as argparse has it, the answer).
REFUSED: dict[str, tuple[int | str, str]] = {
    "--momentum": (
        1,
        "in open_clip the optimizer's, which is --opt-kwargs momentum=0.9 with --opt timm/sgd; "
        "the momentum of the gates' history is --history-momentum",
    ),
    "--val-data": (1, "evaluation takes any caption file: --eval-retrieval FILE"),
    "--val-num-samples": (1, "a caption file's samples are counted: --eval-retrieval FILE"),
    "--train-data-upsampling-factors": (1, "an epoch has every sample of the shards once; there is no upsampling"),
    "--dataset-resampled": (0, "every epoch is a new permutation of all samples, the same on any number of ranks"),
    "--csv-separator": (1, f"{_INPUT} it recognises CSV, TSV, JSON lines and Parquet by the file's name"),
    "--csv-img-key": (1, f"{_INPUT} --image-field COLUMN"),
    "--csv-caption-key": (1, f"{_INPUT} --text-field COLUMN"),
    "--image-key": (1, f"{_INPUT} --image-field KEY"),
    "--text-key": (1, f"{_INPUT} --text-field KEY"),
    "--imagenet-v2": (1, "an image folder of classes: --eval-zeroshot DIR"),
    "--aug-cfg": (
        "*",
        "augmentation has flags of its own: --crop-area (scale), --crop-aspect (ratio), --flip, --rotation, --shift, "
        "--zoom, --brightness, --contrast",
    ),
    "--local-loss": (0, _LOSS),
    "--gather-with-grad": (0, _LOSS),
    "--loss-dist-impl": (1, _LOSS),
    "--ddp-static-graph": (0, "nothing to gain: every parameter takes part in every step; leave it out"),
    "--dist-url": (1, _LAUNCH),
    "--dist-backend": (1, _LAUNCH),
    "--no-set-device-rank": (0, "--device cuda:0 puts a rank on the one GPU that it sees"),
    "--horovod": (0, _LAUNCH),
    "--skip-scheduler": (0, "a constant learning rate is --lr-scheduler const --warmup 0"),
    "--lr-cooldown-end": (1, "const-cooldown ends at 0"),
    "--lr-cooldown-power": (1, "const-cooldown is linear"),
    "--force-context-length": (1, "the shards hold 77 tokens per text, and texts are run without their padding"),
    "--force-custom-text": (0, 'put "custom_text": true into a model JSON file: --model FILE'),
    "--torchscript": (0, _COMPILE),
    "--trace": (0, _COMPILE),
    "--use-bnb-linear": (1, "not supported; --precision amp_bf16 is the fast type"),
    "--siglip": (0, _OTHER_LOSS),
    "--coca-caption-loss-weight": (1, _OTHER_LOSS),
    "--coca-contrastive-loss-weight": (1, _OTHER_LOSS),
    "--distill-model": (1, _OTHER_LOSS),
    "--distill-pretrained": (1, _OTHER_LOSS),
    "--copy-codebase": (0, "run.json records the git revision, and whether the code was edited since"),
    "--log-local": (0, "rank 0 writes the log, on storage that all machines share"),
    "--wandb-notes": (1, "notes are edited in Weights & Biases itself; run.json is sent along"),
    "--remote-sync": (1, _REMOTE),
    "--remote-sync-frequency": (1, _REMOTE),
    "--remote-sync-protocol": (1, _REMOTE),
    # Names that flags of this trainer had before.
    "--initial-similarity": (1, "it is called --history-init"),
    "--gate-truth": (1, "it is called --mismatch-column"),
    "--loss-block": (1, "it is called --loss-chunk-size"),
}


class _Refuse(argparse.Action):
    """Notes the flag; `answers` reports them all at once."""

    def __call__(self, parser, namespace, values, option_string=None):
        found = getattr(namespace, "refused", [])
        namespace.refused = [*found, option_string]


def add_refused(parser: argparse.ArgumentParser) -> None:
    """Adds the flags above, not shown by --help."""
    for flag, (count, _) in REFUSED.items():
        parser.add_argument(flag, nargs=count, action=_Refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def answers(namespace: argparse.Namespace) -> list[str]:
    """A line on every flag that was given and is not needed; flags with the same answer share one."""
    flags_of: dict[str, list[str]] = {}
    for flag in dict.fromkeys(vars(namespace).pop("refused", [])):
        flags_of.setdefault(REFUSED[flag][1], []).append(flag)
    return [f"{', '.join(flags)}: {text}" for text, flags in flags_of.items()]
