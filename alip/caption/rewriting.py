"""Raw texts rewritten by a language model behind an endpoint, as LaCLIP does; with the captions, as VeCLIP does.

The rewritten texts are kept apart from the captions: a file of their own, {"key", "text", "rewrite"}, where "text" is
the digest of the raw text, so that a raw text that changes is rewritten again.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from alip.build.caption_table import CaptionTable
from alip.build.sources import Sample
from alip.build.text_hash import text_digest
from alip.caption.captioners import Decoding
from alip.caption.clean import clean
from alip.caption.endpoint.captioner import chat_body, request_fields
from alip.caption.endpoint.client import Endpoint
from alip.caption.endpoint.settings import EndpointSettings
from alip.caption.lines import identity
from alip.caption.preprocessing import PreparedImage
from alip.caption.work import Failed, Item, Pending, PendingTexts, Result, caption_seed
from alip.errors import UserError

REWRITE_PROMPT = (
    "Here is the text that came with an image on the web. Write it again as one plain English sentence that could be "
    "the image's caption. Keep names, places and numbers that are in it, add nothing that is not, and leave out "
    "advertising, file names and hashtags. Answer with the sentence only.\n\nText: {text}"
)
FUSE_PROMPT = (
    "Here are the text that came with an image on the web, and a description of the image by a captioning model. Write "
    "one plain English sentence about the image from both: names and places from the text, what is visible from the "
    "description. Add nothing else. Answer with the sentence only.\n\nText: {text}\nDescription: {caption}"
)
MAX_TEXT = 4000  # characters of a raw text that are sent


class RewriteWork:
    """Rewrites raw texts. prompt: with {text} and perhaps {caption}; None: one of those above. captions: a captions
    file, for {caption}. report(line): called at outages."""

    def __init__(
        self,
        settings: EndpointSettings,
        prompt: str | None,
        decoding: Decoding,
        cleaning: dict[str, bool],
        captions: str | None = None,
        **more: Any,
    ) -> None:
        self.prompt = checked_prompt(prompt, captions)
        self.cleaning, self.seed = cleaning, decoding.seed if decoding.sample else None
        self._model, self._fields = settings.model, request_fields(decoding)
        self._captions = _open_captions(captions) if "{caption}" in self.prompt else None
        test = self._body("A dog in a park.", "a dog on grass", self.seed)
        self.endpoint = Endpoint(replace(settings), test, **more)
        self.ahead, self.patience = 4 * settings.concurrency, settings.request_timeout
        self.usage, self.close = self.endpoint.usage, self.endpoint.close
        self.metadata = {"model": settings.model, "base_url": settings.base_url, "prompt": self.prompt}

    def content(self, sample: Sample) -> PreparedImage:
        """The raw text to rewrite, or why there is none."""
        if sample.error:
            reason, _, detail = sample.error.partition(": ")
            return PreparedImage(reason=reason, detail=detail)
        if sample.text is None:
            return PreparedImage(reason="no-text", detail="the source has no raw text for it")
        caption = (self._captions[1].get(sample.key, sample.image_key) or [None])[0] if self._captions else ""
        if caption is None:
            return PreparedImage(reason="no-caption", detail="the prompt names {caption}, and --captions has none")
        return PreparedImage(text_digest(f"{sample.text}\0{caption}"), (sample.text, caption))

    @staticmethod
    def identity(sample: Sample) -> tuple[str, str]:
        """What is rewritten once: a text of a key, whichever image it came with."""
        return identity({"key": sample.key, "text": text_digest(sample.text or "")}), ""

    def run(self, items: list[Item]) -> list[Result]:
        """The lines of a batch."""
        return [pending.result() for pending in [self.start(item) for item in items]]

    def start(self, item: Item) -> Pending:
        """The request for one raw text."""
        text, caption = item.content
        seed = None if self.seed is None else caption_seed(self.seed, item.key, 0)
        future: Future = self.endpoint.ask(self._body(text, caption, seed))
        return PendingTexts([future], lambda texts: self._line(item, texts[0]))

    def _body(self, text: str, caption: str, seed: int | None) -> dict[str, Any]:
        values = {"{text}": text[:MAX_TEXT], "{caption}": caption}
        # One after the other in the prompt's order would also replace a "{caption}" that stands in a raw text.
        parts = self.prompt.split("{text}")
        content = values["{text}"].join(part.replace("{caption}", values["{caption}"]) for part in parts)
        return chat_body(self._model, content, self._fields, seed)

    def _line(self, item: Item, rewritten: str) -> Result:
        text = clean(rewritten, **self.cleaning)
        if not text:
            return Failed("empty-text", f"the model wrote {rewritten!r}")
        return {"key": item.key, "text": text_digest(item.content[0]), "rewrite": text, "image": item.digest}


def checked_prompt(prompt: str | None, captions: str | None) -> str:
    """The prompt; UserError if it does not name what it needs."""
    prompt = prompt or (FUSE_PROMPT if captions else REWRITE_PROMPT)
    if "{text}" not in prompt:
        raise UserError("--rewrite: the --prompt must hold {text}, where the raw text goes")
    if ("{caption}" in prompt) != bool(captions):
        raise UserError("--rewrite: {caption} in the --prompt and --captions FILE go together")
    return prompt


def _open_captions(path: str | None) -> tuple[tempfile.TemporaryDirectory, CaptionTable]:
    folder = tempfile.TemporaryDirectory(prefix="alip-captions-")
    return folder, CaptionTable([str(path)], Path(folder.name) / "captions.sqlite")
