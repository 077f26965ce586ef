"""An engine that does the pieces in this process, in an order of its own, and dies where a test wants a driver to; and
a small dataset to be built by an engine."""

import json

from alip.build import writer
from alip.build.joined_texts import TextFiles
from alip.build.open_source import open_source
from alip.build.prepare import Policy
from alip.errors import UserError
from tests.helpers.shards import make_tars


class InTurn:
    """dies(name of the function, piece): raises where a driver is to die. order: of the pieces. calls: (name, first
    value of the piece) of all that were done."""

    def __init__(self, dies=lambda function, piece: False, order=reversed):
        self.dies, self.order, self.calls = dies, order, []

    def run(self, function, job, pieces, last_try=None):
        return self._each(function.__name__, lambda *piece: function(job, *piece), pieces)

    def run_workers(self, factory, job, pieces, device="cpu"):
        worker = factory(job) if pieces else None
        return self._each(factory.__name__, worker, pieces)

    def _each(self, name, function, pieces):
        for piece in self.order(list(pieces)):
            if self.dies(name, piece):
                raise KeyboardInterrupt
            self.calls.append((name, piece[0]))
            try:
                yield piece, function(*piece)
            except UserError as error:
                yield piece, error


def make_captioned_tars(folder):
    """Five tars of 20 samples, two of them broken, and captions.jsonl with captions for 90 of them."""
    make_tars(folder / "tars", 100, per_tar=20, broken=(4, 41))
    lines = [json.dumps({"key": f"{i:07d}", "caption": f"joined {i}"}) for i in range(90)]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def build_captioned(tars, output, **options):
    """The dataset of these tars and captions."""
    texts = TextFiles((str(tars / "captions.jsonl"),))
    options = {"policy": Policy(), "workers": 0, "samples_per_shard": 32, "quiet": True, "texts": texts, **options}
    return writer.build(open_source(str(tars / "tars")), output, **options).manifest
