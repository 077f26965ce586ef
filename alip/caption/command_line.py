"""The arguments of `python -m alip.caption`."""

from __future__ import annotations

import argparse

from alip import command
from alip.build.images import MAX_PIXELS
from alip.build.input_shard import InputShard
from alip.caption.captioners import MAX_SIDE, Decoding
from alip.caption.choice import ENGINES, NAMED_MODELS
from alip.caption.endpoint.settings import KEY_VARIABLE, EndpointSettings
from alip.cluster.ray_engine import add_flags as add_engine_flags
from alip.cluster.ray_engine import check_flags as check_engine_flags
from alip.model.precision import canonical


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = command.CommandParser(
        prog="python -m alip.caption",
        description="Writes synthetic captions for the images of a source, or rewrites its raw texts. Run it again "
        "after any interruption: it resumes. See docs/captions.md.",
    )
    input_flags(parser.add_argument_group("input and output"))
    _captioner_flags(parser.add_argument_group("captioner"))
    _server_flags(parser.add_argument_group("server, with --captioner openai:MODEL"))
    _decoding_flags(parser.add_argument_group("decoding and cleaning"))
    _run_flags(parser.add_argument_group("running"))
    arguments = parser.parse_args(argv)
    if not arguments.input and not arguments.merge:
        parser.error("--input is needed: the images to caption")
    if not arguments.output and not arguments.dry_run:
        parser.error("--output FILE.jsonl is needed (only --dry-run writes nothing)")
    if arguments.merge and arguments.dry_run:
        parser.error("--dry-run captions images: it has nothing to do with --merge")
    if arguments.rewrite and (not arguments.captioner.startswith("openai:") or (arguments.captions_per_image or 1) > 1):
        parser.error("--rewrite needs --captioner openai:MODEL, and gives one text: no --captions-per-image")
    if arguments.captions and not arguments.rewrite:
        parser.error("--captions belongs to --rewrite: captions that the prompt names as {caption}")
    if arguments.engine == "local":  # as data2rec.py has it
        arguments.engine = ENGINES[0]
    check_engine_flags(arguments)
    if arguments.engine == "ray":
        _check_cluster(parser, arguments)
    if any("=" not in option for option in arguments.option):
        parser.error("--option takes NAME=VALUE")
    return arguments


def _check_cluster(parser: command.CommandParser, arguments: argparse.Namespace) -> None:
    if arguments.captioner.startswith("openai:"):
        parser.error("--engine ray runs models on the cluster: a server's captions need one machine, leave it out")
    for flag, given in (("--limit", arguments.limit), ("--dry-run", arguments.dry_run)):
        if given:
            parser.error(f"{flag} is for trying things out, on one machine: leave --engine ray out")
    if arguments.shard.count > 1:
        parser.error("--engine ray divides the input itself: leave --shard out")


def input_flags(group, output: str = "FILE.jsonl; its record, failures and figure are written beside it") -> None:
    """Which images, and where to write."""
    group.add_argument(
        "--input", nargs="+", help="images: anything that data2rec.py reads (tars, table, COCO JSON, folder)"
    )
    group.add_argument("--output", help=output)
    group.add_argument("--source-type", choices=["webdataset", "table", "coco", "karpathy", "folder"])
    group.add_argument("--image-root", help="folder of relative image paths in tables and JSON")
    group.add_argument("--image-field", help="column with the image's path")
    group.add_argument("--key-field", help="column with the sample's key")
    group.add_argument("--text-field", help="column with the raw text (captions need none)")
    group.add_argument("--splits", type=command.names, help="of Karpathy's JSON; '' for all (default: train,restval)")
    group.add_argument("--limit", type=command.natural, help="only the first LIMIT samples of the input")
    group.add_argument(
        "--max-pixels",
        type=command.whole(1, 10**12),
        default=MAX_PIXELS,
        help="larger images fail (default: %(default)s)",
    )


def _captioner_flags(group) -> None:
    group.add_argument(
        "--captioner",
        default="blip",
        help=f"{', '.join(NAMED_MODELS)}, coca; a Hugging Face model name or local folder; coca:MODEL/PRETRAINED or "
        "coca:FOLDER; openai:MODEL with --base-url; file:PATH.py; existing:FILE (default: %(default)s)",
    )
    group.add_argument("--prompt", help="text that the model continues or answers; left out of the caption")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for a captioner file; of a Hugging Face image processor, the vLLM engine, or a server's request (JSON)",
    )
    group.add_argument(
        "--captions-per-image",
        type=command.whole(1, 64),
        metavar="K",
        help="sample K captions of each image, kept as `captions` (default: 1); of existing:FILE keep up to K",
    )
    group.add_argument(
        "--max-side",
        type=command.whole(16, 16_384),
        default=MAX_SIDE,
        metavar="PIXELS",
        help="images for chat models and servers are shrunk to it (default: %(default)s)",
    )
    group.add_argument(
        "--rewrite",
        action="store_true",
        help="rewrite the raw texts instead of captioning the images; --prompt names {text} and, if given, {caption}",
    )
    group.add_argument("--captions", metavar="FILE", help="with --rewrite: captions, for {caption} in the prompt")
    group.add_argument("--precision", type=canonical, default="auto", help="auto, amp_bf16, amp or fp32")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")


def _server_flags(group) -> None:
    defaults = EndpointSettings("model", "http://localhost")
    group.add_argument("--base-url", default="", metavar="URL", help="such as http://localhost:8000/v1")
    group.add_argument(
        "--api-key-env",
        default=KEY_VARIABLE,
        metavar="NAME",
        help="environment variable with the key, if the server wants one (default: %(default)s)",
    )
    add = group.add_argument
    add(
        "--concurrency",
        type=command.whole(1, 4096),
        default=defaults.concurrency,
        help="requests at a time (default: %(default)s)",
    )
    add(
        "--request-timeout",
        type=command.positive_number,
        default=defaults.request_timeout,
        metavar="S",
        help="default: %(default)g s",
    )
    add(
        "--outage-timeout",
        type=command.number(0),
        default=defaults.outage_timeout,
        metavar="S",
        help="how long to wait for a server that answers nothing (default: %(default)g s)",
    )
    add(
        "--retries",
        type=command.natural,
        default=defaults.retries,
        help="of one image's request (default: %(default)s)",
    )
    add(
        "--price-in",
        type=command.number(0),
        default=0.0,
        metavar="PRICE",
        help="of a million prompt tokens, for the summary",
    )
    add("--price-out", type=command.number(0), default=0.0, metavar="PRICE", help="of a million generated tokens")


def _decoding_flags(group) -> None:
    defaults = Decoding()
    group.add_argument(
        *("--num-beams", "--beams"),
        type=command.whole(1, 10_000),
        help=f"1: greedy (default: {defaults.num_beams}; 1 with sampling, servers and vLLM)",
    )
    group.add_argument("--sample", action="store_true", help="sample words instead of searching")
    group.add_argument("--temperature", type=command.positive_number, default=defaults.temperature)
    group.add_argument("--top-k", type=command.natural, default=defaults.top_k, help="0: all words")
    group.add_argument("--top-p", type=command.number(0, 1), default=defaults.top_p)
    group.add_argument(
        "--max-new-tokens",
        "--max-tokens",
        type=command.whole(1, 100_000),
        default=defaults.max_new_tokens,
        help="default: %(default)s",
    )
    group.add_argument(
        "--min-new-tokens",
        "--min-tokens",
        type=command.whole(0, 100_000),
        default=defaults.min_new_tokens,
        help="default: %(default)s",
    )
    group.add_argument("--repetition-penalty", type=command.positive_number, default=defaults.repetition_penalty)
    group.add_argument(
        "--seed", type=command.seed, default=defaults.seed, help="of sampling and of the ten pairs in the figure"
    )
    group.add_argument("--strip-lead", action="store_true", help="drop a leading 'a picture of', 'the image shows' …")
    group.add_argument("--keep-repeats", action="store_true", help="keep immediately repeated phrases")


def _run_flags(group) -> None:
    group.add_argument(
        "--batch-size", type=command.count, default=64, help="images per step and rank (default: %(default)s)"
    )
    group.add_argument(
        "--workers", type=command.workers, default=4, help="decoding processes per rank; 0: none (default: %(default)s)"
    )
    group.add_argument(
        *("--shard", "--part"),
        type=InputShard.parse,
        default=InputShard(),
        metavar="K/N",
        help="caption shard K of N of the input, one on each machine; then --merge",
    )
    engines = "vllm: runs a Hugging Face model in vLLM; ray: any captioner, on all machines of a Ray cluster"
    add_engine_flags(group, (*ENGINES, "local", "ray"), engines)
    group.add_argument("--merge", nargs="+", metavar="SHARD.jsonl", help="join the outputs of all shards into --output")
    group.add_argument(
        "--trust-keys", action="store_true", help="skip images whose key has a caption, without reading them"
    )
    group.add_argument(
        "--dry-run",
        type=command.count,
        nargs="?",
        const=10,
        metavar="N",
        help="caption the first N images (10), show them, and write nothing",
    )
    group.add_argument("--restart", action="store_true", help="discard the captions in --output and start over")
    group.add_argument(
        "--allow-failures",
        type=command.number(0, 1),
        default=0.0,
        metavar="FRACTION",
        help="fraction of images without a caption up to which the exit status is 0 (default: 0)",
    )
