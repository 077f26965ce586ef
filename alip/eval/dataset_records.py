"""The table of named datasets: one small record each (record_types.py).

Adding a dataset is adding a record; deleting one is deleting its line.
"""

from __future__ import annotations

from alip.eval.record_types import ClassificationRecord, RetrievalRecord
from alip.eval.records_annotated import ANNOTATED
from alip.eval.records_arrays import ARRAYS
from alip.eval.records_folders import FOLDERS
from alip.eval.records_imagenet import IMAGENET_VARIANTS
from alip.eval.records_paper import PAPER

CLASSIFICATION: dict[str, ClassificationRecord] = {**PAPER, **FOLDERS, **ANNOTATED, **ARRAYS, **IMAGENET_VARIANTS}

# The demo's zero-shot datasets: folders under the data root with a classes.jsonl; lists beside them.
DEMO_CLASSIFICATION = {"demo-style": "demo/eval/held-out-style", "demo-concept": "demo/eval/held-out-concept"}

RETRIEVAL: dict[str, RetrievalRecord] = {
    "coco": RetrievalRecord(
        ("coco/dataset_coco.json", "coco/coco_karpathy_test.json", "dataset_coco.json", "coco_karpathy_test.json"),
        ("coco", "coco/images", "", "coco/val2014", "val2014"),
        images=5000,
    ),
    "flickr30k": RetrievalRecord(
        ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k_test.json", "dataset_flickr30k.json"),
        ("flickr30k", "flickr30k/flickr30k-images", "flickr30k/images", "", "flickr30k-images"),
        images=1000,
    ),
    "demo-style": RetrievalRecord(("demo/eval/held-out-style/captions.jsonl",)),
    "demo-concept": RetrievalRecord(("demo/eval/held-out-concept/captions.jsonl",)),
}
