"""A small image-text dataset on disk, and what a plain evaluation of it gives."""

import json

import numpy as np
from PIL import Image

WORDS = ["red", "green", "blue", "dog", "cat", "boat", "house", "tree", "sun", "moon", "car", "bird"]


def write_pairs(folder, images=23, captions=(1, 2, 5), alpha=False, seed=0):
    """PNG noise of different sizes with `captions` texts each in turn; returns the path of captions.jsonl."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(images):
        size = (int(rng.integers(12, 30)), int(rng.integers(12, 30)), 4 if alpha else 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / "images" / f"{number}.png")
        # Each text ends in a number of its own: equal captions would tie, and tools differ in how they count ties.
        texts = [
            f"{' '.join(rng.choice(WORDS, rng.integers(1, 6)))} {number}{i}"
            for i in range(captions[number % len(captions)])
        ]
        rows.append({"image": f"images/{number}.png", "caption": texts})
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def write_classes(folder, classes=7, images=29, seed=1):
    """An image folder with one folder per class, of unequal sizes."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        name = f"class{int(rng.integers(classes)) if number >= classes else number}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 18, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
