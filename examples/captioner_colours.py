"""The smallest captioner file: names an image's main colour. A form to copy.

python -m alip.caption --input images/ --output captions.jsonl --captioner file:examples/captioner_colours.py
"""

from PIL import Image

COLOURS = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "red": (205, 45, 40),
    "orange": (235, 140, 35),
    "yellow": (240, 215, 60),
    "green": (60, 150, 65),
    "blue": (50, 100, 200),
    "purple": (130, 60, 160),
    "pink": (240, 150, 185),
    "brown": (120, 75, 45),
}


def prepare(image: Image.Image) -> tuple[int, int, int]:
    """RGB image → the colour that most of its pixels are near. Runs in the worker processes."""
    small = image.resize((32, 32)).quantize(8)
    _, colour = max(small.convert("RGB").getcolors())
    return colour


class ColourCaptioner:
    """What `prepare` returned for each image → one sentence for each."""

    prepare = staticmethod(prepare)
    metadata = {"model": "main colour"}  # noqa: RUF012 (optional: written beside the captions)

    def __init__(self, noun: str) -> None:
        self.noun = noun

    def caption(self, batch):
        """n colours → n sentences."""
        return [f"a mostly {nearest(colour)} {self.noun}" for colour in batch]


def nearest(colour: tuple[int, int, int]) -> str:
    """The name of the nearest colour in COLOURS."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], colour)))


def create_captioner(device, options):
    """The one function that a captioner file must have. options: from --option NAME=VALUE, all strings."""
    if unknown := options.keys() - {"noun"}:
        raise ValueError(f"no option {', '.join(sorted(unknown))}; there is noun=WORD")
    return ColourCaptioner(options.get("noun", "picture"))
