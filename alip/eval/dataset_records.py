"""The table of named datasets: one small record each (record_types.py).

Adding a dataset is adding a record; deleting one is deleting its line.
"""

from __future__ import annotations

from alip.eval.record_types import ClassificationRecord
from alip.eval.records_annotated import ANNOTATED
from alip.eval.records_arrays import ARRAYS
from alip.eval.records_folders import FOLDERS
from alip.eval.records_imagenet import IMAGENET_VARIANTS
from alip.eval.records_paper import PAPER
from alip.eval.records_retrieval import RETRIEVAL

__all__ = ["CLASSIFICATION", "DEMO_CLASSIFICATION", "RETRIEVAL"]

CLASSIFICATION: dict[str, ClassificationRecord] = {**PAPER, **FOLDERS, **ANNOTATED, **ARRAYS, **IMAGENET_VARIANTS}

# The demo's zero-shot datasets: folders under the data root with a classes.jsonl; lists beside them.
DEMO_CLASSIFICATION = {"demo-style": "demo/eval/held-out-style", "demo-concept": "demo/eval/held-out-concept"}
