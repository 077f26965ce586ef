"""The tasks of suites, as their own repositories define them: DataComp's tasklist.yml, CLIP_benchmark's VTAB+ list.

A task's key is its name there; `sizes` are the numbers of test images that DataComp gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from alip.eval.named_lists import read_list
from alip.eval.records_paper import PAPER


@dataclass(frozen=True)
class Task:
    """key: its name in the suite's own list. title: how the suite prints it. metric: what is averaged.

    kind: "wds" (a classification benchmark), "named" (a dataset of ours), "retrieval" or "winogavil". groups: its
    samples have a .npy with their groups. size: test images, 0 where the suite does not give it. part: of which
    averages it is besides the whole one.
    """

    key: str
    title: str
    metric: str = "top1"
    kind: str = "wds"
    size: int = 0
    groups: bool = False
    part: str = ""


_SHIFT, _VTAB, _RETRIEVAL = "ImageNet dist. shifts", "VTAB", "Retrieval"

DATACOMP = (
    Task("vtab/caltech101", "Caltech-101", "mean_per_class", size=6_085, part=_VTAB),
    Task("cifar10", "CIFAR-10", size=10_000),
    Task("vtab/cifar100", "CIFAR-100", size=10_000, part=_VTAB),
    Task("vtab/clevr_count_all", "CLEVR Counts", size=15_000, part=_VTAB),
    Task("vtab/clevr_closest_object_distance", "CLEVR Distance", size=15_000, part=_VTAB),
    Task("country211", "Country211", size=21_100),
    Task("vtab/dtd", "Describable Textures", size=1_880, part=_VTAB),
    Task("vtab/eurosat", "EuroSAT", size=5_400, part=_VTAB),
    Task("fgvc_aircraft", "FGVC Aircraft", "mean_per_class", size=3_333),
    Task("food101", "Food-101", size=25_250),
    Task("gtsrb", "GTSRB", size=12_630),
    Task("imagenet1k", "ImageNet 1k", size=50_000, part="ImageNet"),
    Task("imagenet_sketch", "ImageNet Sketch", size=50_889, part=_SHIFT),
    Task("imagenetv2", "ImageNet v2", size=10_000, part=_SHIFT),
    Task("imagenet-a", "ImageNet-A", size=7_500, part=_SHIFT),
    Task("imagenet-o", "ImageNet-O", size=2_000, part=_SHIFT),
    Task("imagenet-r", "ImageNet-R", size=30_000, part=_SHIFT),
    Task("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", size=711, part=_VTAB),
    Task("mnist", "MNIST", size=10_000),
    Task("objectnet", "ObjectNet", size=18_574, part=_SHIFT),
    Task("vtab/flowers", "Oxford Flowers-102", "mean_per_class", size=6_149, part=_VTAB),
    Task("vtab/pets", "Oxford-IIIT Pet", "mean_per_class", size=3_669, part=_VTAB),
    Task("voc2007", "Pascal VOC 2007", size=14_976),
    Task("vtab/pcam", "PatchCamelyon", size=32_768, part=_VTAB),
    Task("renderedsst2", "Rendered SST2", size=1_821),
    Task("vtab/resisc45", "RESISC45", size=6_300, part=_VTAB),
    Task("cars", "Stanford Cars", size=8_041),
    Task("stl10", "STL-10", size=8_000),
    Task("sun397", "SUN397", size=108_754, part=_VTAB),
    Task("vtab/svhn", "SVHN", size=26_032, part=_VTAB),
    Task("retrieval/flickr_1k_test_image_text_retrieval", "Flickr", "mean R@1", "retrieval", 1_000, part=_RETRIEVAL),
    Task(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        "mean R@1",
        "retrieval",
        5_000,
        part=_RETRIEVAL,
    ),
    Task("misc/winogavil", "WinoGAViL", "jaccard_10-12", "winogavil", 3_563, part=_RETRIEVAL),
    Task("wilds/iwildcam", "iWildCam", "macro_f1", size=42_791),
    Task("wilds/camelyon17", "Camelyon17", size=85_054),
    Task("wilds/fmow", "FMoW", "worst_group", size=22_108, groups=True),
    Task("fairness/dollar_street", "Dollar Street", "worst_group_top5", size=3_503, groups=True),
    Task("fairness/geode", "GeoDE", "worst_group", size=12_488, groups=True),
)  # fmt: skip


def _vtab_plus(key: str) -> Task:
    return Task(key, key, "mean_ap" if key.endswith("_multilabel") else "top1")


SUITES: dict[str, tuple[Task, ...]] = {
    "datacomp": DATACOMP,
    "vtab+": tuple(_vtab_plus(key) for key in read_list("suites", "vtab+")),
    "alip": tuple(Task(name, name, record.metric, "named") for name, record in PAPER.items()),
}
