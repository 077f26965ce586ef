"""Galleries of retrieval: what the model finds for some captions, and for some images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from alip import plot_style as style
from alip.eval.image_readers import Images
from alip.eval.retrieval import Retrieved

_SIDE = 200  # pixels of a thumbnail's longer side


def gallery(found: Retrieved, path: Path, queries: int = 6, top: int = 5) -> None:
    """Two plots. `path`: captions and the images with the highest scores; `path`-image-to-text: images and captions.

    The queries are spaced evenly over the dataset: neither the best nor the worst are selected.
    """
    text_to_image(found, path, queries, top)
    image_to_text(found, path.with_name(path.name + "-image-to-text"), queries, top)


def text_to_image(found: Retrieved, path: Path, queries: int = 6, top: int = 5) -> None:
    """A row per caption: its `top` images with their scores, and the right image with its rank at the end."""
    dataset = found.dataset
    count, top = min(queries, len(dataset.captions)), min(top, len(dataset.images))
    chosen, images = _spaced(len(dataset.captions), count), dataset.opened()
    scores = (found.caption_features[chosen].float() @ found.image_features.float().T).cpu()
    with style.figure(path, style.PAGE, 0.45 + 1.12 * count) as figure:
        axes = figure.subplots(count, top + 2, squeeze=False, width_ratios=[1.75] + [1] * (top + 1))
        for row, (caption, row_scores) in enumerate(zip(chosen, scores)):
            owner = dataset.caption_owner[caption]
            rank = int((row_scores >= row_scores[owner]).sum())
            cell = axes[row][0]
            cell.axis("off")
            cell.text(0, 0.5, style.wrap(dataset.captions[caption], 26, 7), va="center", transform=cell.transAxes)
            for position, image in enumerate(row_scores.topk(top).indices.tolist()):
                cell = axes[row][position + 1]
                _show(cell, images, image, image == owner)
                _score(cell, float(row_scores[image]), "right" if image == owner else "")
                if row == 0:
                    cell.set_title(f"rank {position + 1}")
            cell = axes[row][top + 1]
            _show(cell, images, owner, True)
            _score(cell, float(row_scores[owner]), f"rank {rank:,}")
            if row == 0:
                cell.set_title("right image")
        title = f"{style.shorten(dataset.name, 60)}: text → image, {len(dataset.images):,} images; cosine similarity"
        figure.suptitle(title)


def image_to_text(found: Retrieved, path: Path, queries: int = 6, top: int = 5) -> None:
    """A row per image: its `top` captions with their scores; right ones are bold, and the best right one is given."""
    dataset = found.dataset
    with_captions = sorted(set(dataset.caption_owner))
    count, top = min(queries, len(with_captions)), min(top, len(dataset.captions))
    chosen, images = [with_captions[i] for i in _spaced(len(with_captions), count)], dataset.opened()
    scores = (found.image_features[chosen].float() @ found.caption_features.float().T).cpu()
    owner = np.asarray(dataset.caption_owner)
    with style.figure(path, style.PAGE, 0.35 + 1.12 * count) as figure:
        axes = figure.subplots(count, 2, squeeze=False, width_ratios=[1, 5.2])
        for row, (image, row_scores) in enumerate(zip(chosen, scores.numpy())):
            _show(axes[row][0], images, image, None)
            cell = axes[row][1]
            cell.axis("off")
            ranked = np.argsort(-row_scores, kind="stable")[:top].tolist()
            right = np.flatnonzero(owner == image)
            best = int(right[row_scores[right].argmax()])
            # A wrong caption that ties with the right one is before it.
            rank = 1 + int(((row_scores >= row_scores[best]) & (owner != image)).sum())
            lines = [(f"{n}", caption) for n, caption in enumerate(ranked, 1)]
            if best not in ranked:
                lines.append((f"{rank:,}", best))
            for number, (label, caption) in enumerate(lines):
                is_right = owner[caption] == image
                look = {"color": style.BLUE if is_right else "#404040", "fontweight": "bold" if is_right else "normal"}
                # The caption is a text of its own: one that is written from right to left would turn the whole line.
                for x, align, text in (
                    (0.055, "right", f"{label}."),
                    (0.07, "left", f"{row_scores[caption]:.3f}"),
                    (0.145, "left", style.shorten(dataset.captions[caption], 72)),
                    (1.0, "right", "right caption" if is_right else ""),
                ):
                    y = 1 - (number + 0.5) / (top + 1)
                    cell.text(x, y, text, ha=align, va="center", fontsize=7, transform=cell.transAxes, **look)
        title = f"{style.shorten(dataset.name, 60)}: image → text, {len(dataset.captions):,} captions; "
        figure.suptitle(title + "rank and cosine similarity")


def _spaced(length: int, count: int) -> list[int]:
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _show(cell: Axes, images: Images, index: int, is_right: bool | None) -> None:
    """An image in a frame: thick for the right one, thin for others, none for a query."""
    try:
        image = images[index][0]
        scale = _SIDE / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    except Exception:  # it could be read a moment ago; a plot is no reason to fail
        image = Image.new("RGB", (_SIDE, _SIDE), (230, 230, 230))
    # All cells are squares, so that titles and scores are level; the frame is around the image.
    width, height = image.size
    cell.imshow(np.asarray(image), extent=(-width / 2, width / 2, -height / 2, height / 2))
    cell.set(xlim=(-_SIDE / 1.9, _SIDE / 1.9), ylim=(-_SIDE / 1.9, _SIDE / 1.9), xticks=[], yticks=[])
    cell.spines[:].set_visible(False)
    if is_right is not None:
        look = {"edgecolor": style.BLUE if is_right else style.LIGHT_GREY, "linewidth": 2.5 if is_right else 0.6}
        cell.add_patch(Rectangle((-width / 2, -height / 2), width, height, fill=False, clip_on=False, **look))


def _score(cell: Axes, score: float, note: str) -> None:
    cell.set_xlabel(f"{score:.3f}  {note}".rstrip(), fontsize=7, labelpad=2)
