"""What one run of the command does, put together from its arguments: captions of images, or rewritten raw texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from alip.build.sources import Sample
from alip.caption.captioners import Decoding
from alip.caption.choice import ENGINES, CaptionerChoice, decoding_for, open_captioner
from alip.caption.existing import ExistingWork, line_digest
from alip.caption.preprocessing import PreparedImage, Preprocessing, without_image
from alip.caption.run import image_identity
from alip.caption.store import CaptionStore, DoneImages
from alip.caption.work import CaptionWork, Work
from alip.errors import UserError


@dataclass(frozen=True)
class Job:
    """What to do with each sample of a source.

    settings: must not change between the runs that write one file. metadata: for the record. preprocessing,
    content, identity: see Pass. by_image: one result for each image, not for each text. usage, close: of a server.
    """

    work: Work
    settings: dict[str, Any]
    metadata: dict[str, Any]
    preprocessing: Preprocessing | None = None
    content: Callable[[Sample], PreparedImage] | None = None
    identity: Callable[[Sample], tuple[str, str]] = image_identity
    by_image: bool = True
    usage: Callable[[], dict[str, float]] | None = None
    close: Callable[[], None] = lambda: None

    def known(self, store: CaptionStore) -> Callable[[Sample], str | None]:
        """A function: the digest under which a sample has a result already, None if it has none."""
        done = store.done()
        return lambda sample: done.image(self.identity(sample)[0])

    def samples(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples of a source, as this job takes them."""
        return samples


class ExistingJob(Job):
    """Looks captions up. An image is known only while its captions in the file are those in the output."""

    def known(self, store: CaptionStore) -> Callable[[Sample], str | None]:
        """A function: "" (no image is read) for a sample whose captions are in the output already, else None."""
        done = DoneImages()
        for path in reversed(store.caption_files()):
            for line in store.lines_of(path):
                done.append(line["key"], line_digest(line))
        return lambda sample: "" if done.image(sample.key) == self.work.digest(sample) else None


def choice_of(arguments: argparse.Namespace) -> CaptionerChoice:
    """The captioner that the arguments name. UserError for flags of models that it is not."""
    if idle := _idle_flags(arguments):
        raise UserError(f"--captioner {arguments.captioner} does not use {', '.join(idle)}: leave that out")
    per_image = arguments.captions_per_image
    decoding = Decoding(
        **{
            name: getattr(arguments, name)
            for name in Decoding.__dataclass_fields__
            if name not in ("num_beams", "sample")
        },
        num_beams=1,
        sample=arguments.sample
        or ((per_image or 1) > 1 and not arguments.captioner.startswith(("file:", "existing:"))),
    )
    engine = ENGINES[0] if arguments.engine == "ray" else arguments.engine  # the cluster's workers run the same
    names = ("base_url", "concurrency", "request_timeout", "outage_timeout", "retries", "price_in", "price_out")
    return CaptionerChoice(
        name=arguments.captioner,
        prompt=arguments.prompt,
        decoding=decoding_for(arguments.captioner, engine, decoding, arguments.num_beams),
        precision=arguments.precision,
        options=dict(option.split("=", 1) for option in arguments.option),
        max_side=arguments.max_side,
        engine=engine,
        endpoint={name: getattr(arguments, name) for name in names} | {"key_variable": arguments.api_key_env},
        per_image=per_image,
    )


def _idle_flags(arguments: argparse.Namespace) -> list[str]:
    """Flags that only the decoding of a model of ours would use. A captioner file's random numbers are seeded."""
    kind, defaults = arguments.captioner.partition(":")[0], vars(Decoding())
    if kind not in ("file", "existing"):
        return []
    usual = {"prompt": None, "num_beams": None, "precision": "auto"}
    usual |= {name: defaults[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    usual |= {name: defaults[name] for name in ("max_new_tokens", "min_new_tokens")}
    usual |= {"sample": False} if kind == "existing" else {}
    return [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(arguments, name) != value]


def settings_of(choice: CaptionerChoice, arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run that captions; nothing is opened."""
    cleaning = {"strip_lead": arguments.strip_lead, "collapse_repeats": not arguments.keep_repeats}
    settings = choice.settings() | {"cleaning": cleaning}
    settings["shard"] = [arguments.shard.index + 1, arguments.shard.count]
    if (per_image := arguments.captions_per_image or 1) > 1:
        settings["captions_per_image"] = per_image
        if choice.source()[0] != "existing":
            settings["seed"] = arguments.seed
    return settings


def job_of(choice: CaptionerChoice, arguments: argparse.Namespace, device: torch.device) -> Job:
    """The job that the arguments ask for. UserError for a captioner that cannot be opened."""
    settings, per_image = settings_of(choice, arguments), arguments.captions_per_image or 1
    cleaning = settings["cleaning"]
    if arguments.rewrite:
        return _rewriting(choice, arguments, settings, cleaning)
    captioner = open_captioner(choice, device)
    if choice.source()[0] == "existing":
        work = ExistingWork(captioner, cleaning, per_image=per_image)
        return ExistingJob(work, settings, captioner.metadata, content=_by_key)
    sampled = choice.decoding.sample or per_image > 1
    work = CaptionWork(captioner, cleaning, arguments.seed if sampled else None, per_image)
    shared = {"usage": getattr(captioner, "usage", None), "close": getattr(captioner, "close", lambda: None)}
    metadata = getattr(captioner, "metadata", {})
    if getattr(captioner, "reads", "images") == "keys":
        return Job(work, settings, metadata, content=_by_key, **shared)
    module_file = choice.source()[1] if choice.source()[0] == "file" else None
    preprocessing = Preprocessing.of(captioner, module_file, arguments.max_pixels, arguments.max_side)
    return Job(work, settings, metadata, preprocessing=preprocessing, **shared)


def _rewriting(
    choice: CaptionerChoice, arguments: argparse.Namespace, settings: dict[str, Any], cleaning: dict[str, bool]
) -> Job:
    from alip.caption.rewriting import RewriteWork

    work = RewriteWork(choice.endpoint_settings(), choice.prompt, choice.decoding, cleaning, arguments.captions)
    settings = settings | {"rewrite": True, "prompt": work.prompt}
    functions = {"content": work.content, "identity": work.identity, "usage": work.usage, "close": work.close}
    return Job(work, settings, work.metadata, by_image=False, **functions)


def _by_key(sample: Sample) -> PreparedImage:
    return without_image(sample) or PreparedImage(content=sample.key)
