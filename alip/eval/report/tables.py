"""Tables of numbers with their spread, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from alip.text_table import markdown_table


@dataclass(frozen=True)
class Cell:
    """A number: of one run with the ends of its 95 % interval, or of several; or a text; or nothing.

    mark: the number of a footnote. metric: what the number is called in results.json.
    """

    values: tuple[float, ...] = ()
    ends: tuple[float, float] | None = None
    mark: int | None = None
    text: str | None = None
    metric: str = ""

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the runs, None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class TableRow:
    """label: of the model. published: not measured here, so never the best."""

    label: str
    cells: list[Cell]
    published: bool = False


@dataclass
class Table:
    """header: of the numbers' columns. digits: after the decimal point. compared: whether the best is bold."""

    title: str
    header: list[str]
    rows: list[TableRow] = field(default_factory=list)
    digits: int = 1
    first: str = "model"
    compared: bool = True

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the highest measured number of each column, where there are two or more; ties share it."""
        found = set()
        for column in range(len(self.header)) if self.compared else ():
            means = {
                number: round(row.cells[column].mean, self.digits)
                for number, row in enumerate(self.rows)
                if not row.published and row.cells[column].mean is not None
            }
            if len(means) > 1:
                found |= {(number, column) for number, mean in means.items() if mean == max(means.values())}
        return found


def to_markdown(table: Table, intervals: bool = True) -> str:
    """One Markdown table; the best in bold."""
    best = table.best()

    def shown(cell: Cell, is_best: bool) -> str:
        if cell.text is not None:
            return cell.text
        if cell.mean is None:
            return "–"
        text = f"{cell.mean:.{table.digits}f}"
        text = f"**{text}**" if is_best else text
        if cell.deviation is not None:
            text += f" ± {cell.deviation:.{table.digits}f}"
        elif cell.ends is not None and intervals:
            text += f" ({cell.ends[0]:.{table.digits}f}–{cell.ends[1]:.{table.digits}f})"
        return text if cell.mark is None else f"{text} [{cell.mark}]"

    rows = [
        [row.label + " [P]" * row.published, *(shown(cell, (i, j) in best) for j, cell in enumerate(row.cells))]
        for i, row in enumerate(table.rows)
    ]
    return markdown_table([table.first, *table.header], rows)


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "γ": r"$\gamma$",
}


def latex_escape(text: str) -> str:
    """Text for a LaTeX document: every special letter as a command, line breaks as spaces."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def to_latex(table: Table, intervals: bool = True) -> str:
    """One table with booktabs' rules; the best in bold."""
    best = table.best()

    def shown(cell: Cell, is_best: bool) -> str:
        if cell.text is not None:
            return latex_escape(cell.text)
        if cell.mean is None:
            return "--"
        text = f"{cell.mean:.{table.digits}f}".replace("-", "$-$")
        text = rf"\textbf{{{text}}}" if is_best else text
        if cell.deviation is not None:
            text += rf" {{\scriptsize $\pm$ {cell.deviation:.{table.digits}f}}}"
        elif cell.ends is not None and intervals:
            text += rf" {{\scriptsize ({cell.ends[0]:.{table.digits}f}--{cell.ends[1]:.{table.digits}f})}}"
        return text if cell.mark is None else rf"{text}\textsuperscript{{{cell.mark}}}"

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cells) + r" \\"

    body = []
    for i, row in enumerate(table.rows):
        if row.published and i and not table.rows[i - 1].published:
            body.append(r"  \midrule")
        name = latex_escape(row.label) + r"\textsuperscript{P}" * row.published
        body.append(line([name, *(shown(cell, (i, j) in best) for j, cell in enumerate(row.cells))]))
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_escape(table.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(table.header)}}}",
            r"  \toprule",
            line([latex_escape(name) for name in (table.first, *table.header)]),
            r"  \midrule",
            *body,
            r"  \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


CSV_HEADER = (
    "table",
    "row",
    "column",
    "metric",
    "published",
    "runs",
    "mean",
    "standard_deviation",
    "low",
    "high",
    "best",
    "note",
)


def to_csv(tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """One line for each number of all tables, in full precision. notes: the footnotes that the cells' marks number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        best = table.best()
        for i, row in enumerate(table.rows):
            for j, (column, cell) in enumerate(zip(table.header, row.cells)):
                if cell.mean is not None:
                    low, high = cell.ends or ("", "")
                    spread = "" if cell.deviation is None else cell.deviation
                    counts = [int(row.published), len(cell.values), cell.mean, spread, low, high, int((i, j) in best)]
                    note = "" if cell.mark is None else _plain(notes[cell.mark - 1])
                    writer.writerow([*map(_plain, (table.title, row.label, column, cell.metric)), *counts, note])
    return out.getvalue()


def _plain(text: str) -> str:
    """A name that a spreadsheet takes for a formula gets a quote before it; names of files need not be UTF-8."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text
