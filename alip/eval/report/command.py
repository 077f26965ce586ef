"""The command: reads every run's results, prints the tables, writes the report and the page of the runs' training."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from alip.command import CommandParser
from alip.errors import UserError
from alip.eval import results
from alip.eval.report import document, training_page
from alip.files import read_json

_EPILOG = """examples:
  python -m alip.eval.report runs/a runs/b
  python -m alip.eval.report --group alip runs/alip-seed* --group clip runs/clip-seed* --baseline clip
  python -m alip.eval.report runs/a --format latex --no-intervals"""


def main(argv: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Prints in the format asked for; returns the exit status."""
    parser = CommandParser(
        prog="python -m alip.eval.report",
        description="Compares evaluated runs: tables beside the published numbers, tests, plots, a page of training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders, or folders with a results.json")
    add(
        "--group",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "RUN"),
        help="runs that differ in their seed: one row, mean ± standard deviation",
    )
    add("--baseline", metavar="RUN|NAME", help="run or group that the others are tested against (default: the first)")
    add("--format", default="markdown", choices=document.FORMATS, help="of what is printed; all three are written")
    add("--no-intervals", action="store_true", help="numbers without their 95 %% intervals")
    add("--no-plots", action="store_true", help="tables only")
    add("--output", metavar="DIR", help="for the report, plots and page (default: the first run's results)")
    args = parser.parse_args(argv)
    paths, groups = _named(args.runs, args.group)
    if args.baseline is not None:
        groups = _with_first(groups, paths, args.baseline)
    runs = {name: results.load(path) for name, path in paths.items()}
    first = next(iter(groups.values()))[0]
    folder = Path(args.output) if args.output else results.folder_of(paths[first])
    results.check_writable(folder)
    written = document.write(
        runs,
        folder,
        groups,
        formats=document.FORMATS,
        intervals=not args.no_intervals,
        plots=not args.no_plots,
        folders={name: results.folder_of(path) for name, path in paths.items()},
        seeds={name: _seed(path) for name, path in paths.items()},
    )
    if not args.no_plots:
        written += training_page.write({name: run_folder(path) for name, path in paths.items()}, groups, folder)
    printed = {"markdown": "report.md", "csv": "report.csv", "latex": "report.tex"}[args.format]
    show((folder / printed).read_text(encoding="utf-8"))
    show("written: " + ", ".join(str(path) for path in written))
    return 0


def _named(runs: Sequence[str], given: Sequence[Sequence[str]]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """({run's name: path}, {group's name: its runs}); a run by itself is a group of one."""
    for name, *members in given:
        if not members:
            raise UserError(f"--group {name}: names no run; write --group NAME RUN RUN …")
    words = [*runs, *(run for _, *members in given for run in members)]
    if not words:
        raise UserError("which runs? name run folders, or --group NAME RUN RUN …")
    names = dict(zip(words, _names(words)))
    if len(names) < len(words):
        raise UserError("the same run is named twice")
    groups = {names[run]: [names[run]] for run in runs}
    for name, *members in given:
        if name in groups:
            raise UserError(f"--group {name}: that name is taken; choose another")
        groups[name] = [names[run] for run in members]
    return {names[word]: Path(word) for word in words}, groups


def _with_first(groups: dict[str, list[str]], paths: dict[str, Path], baseline: str) -> dict[str, list[str]]:
    """The baseline, a group's name or a run's name or folder, before the others."""
    name = baseline
    if name not in groups:
        same = [run for run, path in paths.items() if os.path.abspath(path) == os.path.abspath(baseline)]
        name = next((run for run in same if run in groups), baseline)
    if name not in groups:
        raise UserError(f"--baseline {baseline}: no such run or group; there are {', '.join(groups)}")
    return {name: groups[name], **groups}


def _names(paths: Sequence[str]) -> list[str]:
    """A short name for each run: the folder's, with as many parents as it takes to tell them apart."""
    parts = [[part for part in Path(os.path.abspath(path)).parts if part != "results"] for path in paths]
    longest = max(len(part) for part in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is named twice")


def run_folder(path: Path) -> Path:
    """The folder of train.py's run that these results are of, if they are in it; else the path itself."""
    folder = results.folder_of(path)
    return folder.parent if (folder.parent / "metrics.jsonl").is_file() else folder


def _seed(path: Path) -> int | None:
    """The seed in a run's run.json, None where there is none."""
    file = run_folder(path) / "run.json"
    if not file.is_file():
        return None
    arguments = read_json(file).get("arguments")
    seed = arguments.get("seed") if isinstance(arguments, dict) else None
    return seed if isinstance(seed, int) else None
