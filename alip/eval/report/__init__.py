"""Tables of one or several runs beside the published rows, tests of their differences, and a page of their training."""

from alip.eval.report.command import main
from alip.eval.report.document import markdown, write
from alip.eval.report.plots import chance_recall
from alip.eval.report.rows import columns_of, rows_of

__all__ = ["chance_recall", "columns_of", "main", "markdown", "rows_of", "write"]
