"""Tables and bars of one or several runs, beside the published rows for the same sets.

python -m alip.eval.report RUN [RUN …] [--output DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from alip.errors import UserError, run_command
from alip.eval import plots as pictures
from alip.eval import published, results

Entry = results.Entry
Runs = dict[str, list[Entry]]  # a name for the run → its entries
_WAYS = (("image_to_text", "image → text"), ("text_to_image", "text → image"))
_TITLES = {"zeroshot": "Zero-shot classification", "probe": "Linear probe"}
_PUBLISHED = {"zeroshot": published.ZEROSHOT, "probe": published.PROBE}


def write(runs: Runs, folder: Path) -> list[Path]:
    """Writes report.md and the bars against the published methods into folder; returns what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.md"
    page.write_text(markdown(runs), encoding="utf-8")
    written = [page]
    for dataset in _datasets(runs, "retrieval"):
        path = folder / f"retrieval-{dataset}.png"
        _retrieval_bars(runs, dataset, path)
        written.append(path)
    for kind, title in _TITLES.items():
        names = _datasets(runs, kind)
        if names:
            path = folder / f"{kind}.png"
            series = [(name, _headlines(runs[name], kind, names), True) for name in runs]
            theirs = _PUBLISHED[kind]
            rows = [(m, [values.get(n) for n in names], False) for m, values in theirs.items()]
            rows = [row for row in rows if any(value is not None for value in row[1])]
            pictures.bars(names, [*rows, *series], f"{title}, each set's headline metric", path)
            written.append(path)
    return written


def markdown(runs: Runs) -> str:
    """The page: a table for each retrieval set, one for zero-shot, one for the probe, and what was measured."""
    parts = ["# Results", ""]
    for dataset in _datasets(runs, "retrieval"):
        parts += [f"## Retrieval: {dataset}", "", _retrieval_table(runs, dataset), ""]
    for kind, title in _TITLES.items():
        names = _datasets(runs, kind)
        if names:
            parts += [f"## {title}", "", _headline_table(runs, kind, names), ""]
    parts += ["## What was measured", ""]
    header = ["model", "set", "protocol", "images", "unreadable", "weights", "precision"]
    rows = [
        [
            name,
            f"{entry['dataset']} ({entry['kind']})",
            entry["protocol"],
            f"{entry['numbers']['images']:,}",
            str(entry["numbers"]["unreadable"]),
            entry["weights_hash"],
            entry["precision"],
        ]
        for name, entries in runs.items()
        for entry in entries
    ]
    page = "\n".join([*parts, results.markdown(header, rows), ""])
    if "[P]" in page:
        page += (
            "\n[P]: as published in the ALIP paper (ViT-B/32 on YFCC15M, the release's protocol), not measured here.\n"
        )
    return page


def _datasets(runs: Runs, kind: str) -> list[str]:
    """All sets of a kind, in the order of the published table, then as they came."""
    found = list(dict.fromkeys(e["dataset"] for entries in runs.values() for e in entries if e["kind"] == kind))
    known = list(published.RETRIEVAL) if kind == "retrieval" else list(published.ZEROSHOT["ALIP"])
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def _find(entries: Sequence[Entry], kind: str, dataset: str) -> list[Entry]:
    return [entry for entry in entries if (entry["kind"], entry["dataset"]) == (kind, dataset)]


def _retrieval_table(runs: Runs, dataset: str) -> str:
    header = ["model", *[f"{label} R@{k}" for _, label in _WAYS for k in (1, 5, 10)], "median rank"]
    rows = []
    for name, entries in runs.items():
        for entry in _find(entries, "retrieval", dataset):
            numbers = entry["numbers"]
            values = [f"{numbers[f'{way}_R@{k}']:.1f}" for way, _ in _WAYS for k in (1, 5, 10)]
            medians = "/".join(f"{numbers[f'{way}_median_rank']:g}" for way, _ in _WAYS)
            rows.append([f"**{name}** ({entry['protocol']})", *values, medians])
    for method, ways in published.RETRIEVAL.get(dataset, {}).items():
        rows.append([f"{method} [P]", *[f"{value:.1f}" for way in ways for value in way], "–"])
    return results.markdown(header, rows)


def _headlines(entries: Sequence[Entry], kind: str, names: Sequence[str], protocol: str | None = None) -> list:
    values = []
    for name in names:
        found = [e for e in _find(entries, kind, name) if protocol in (None, e["protocol"])]
        values.append(found[0]["numbers"]["headline"] if found else None)
    return values


def _headline_table(runs: Runs, kind: str, names: Sequence[str]) -> str:
    """A column per set; the average stands only where no set is missing."""
    rows = []
    for name, entries in runs.items():
        for protocol in dict.fromkeys(e["protocol"] for e in entries if e["kind"] == kind):
            rows.append((f"**{name}** ({protocol})", _headlines(entries, kind, names, protocol)))
    for method, values in _PUBLISHED[kind].items():
        if any(name in values for name in names):
            rows.append((f"{method} [P]", [values.get(name) for name in names]))
    cells = [
        [label, *[_cell(v) for v in values], _cell(sum(values) / len(values) if None not in values else None)]
        for label, values in rows
    ]
    return results.markdown(["model", *names, "average"], cells)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _retrieval_bars(runs: Runs, dataset: str, path: Path) -> None:
    groups = [f"{label}\nR@{k}" for _, label in _WAYS for k in (1, 5, 10)]
    theirs = published.RETRIEVAL.get(dataset, {})
    series = [(method, [value for way in ways for value in way], False) for method, ways in theirs.items()]
    for name, entries in runs.items():
        for entry in _find(entries, "retrieval", dataset):
            values = [entry["numbers"][f"{way}_R@{k}"] for way, _ in _WAYS for k in (1, 5, 10)]
            series.append((f"{name} ({entry['protocol']})", values, True))
    beside = ", beside the published B/32 on YFCC15M" if theirs else ""
    pictures.bars(groups, series, f"Retrieval on {dataset}{beside}", path)


def _names(paths: Sequence[str]) -> list[str]:
    """A short name for each run: the folder's, with as many parents as it takes to tell them apart."""
    parts = [[part for part in Path(path).resolve().parts if part != "results"] for path in paths]
    longest = max(len(part) for part in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is named twice")


def main(argv: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    """The command: reads every run's results, prints the table, draws the bars."""
    parser = argparse.ArgumentParser(
        description="Compares evaluated runs: a table, and bars beside the published ones."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders with a results.json")
    parser.add_argument("--output", metavar="DIR", help="for report.md and pictures (default: the first run's results)")
    args = parser.parse_args(argv)
    runs = {name: results.load(Path(path)) for name, path in zip(_names(args.runs), args.runs)}
    folder = Path(args.output) if args.output else results.folder_of(Path(args.runs[0]))
    written = write(runs, folder)
    show(written[0].read_text(encoding="utf-8"))
    show("written: " + ", ".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    run_command(main)
