"""WebDataset benchmarks from an address, when somebody types one: wds:https://….

The files go to DATA_ROOT/wds/NAME in their own layout, each written whole or not at all: the next evaluation finds them
there, and an interrupted download continues with the first file that is missing.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from pathlib import Path

from alip.errors import UserError
from alip.eval.wds import number_of_tars
from alip.files import atomic_path
from alip.remote import reading

_HUB = "https://huggingface.co/datasets/"
_LISTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_LONGEST_NAME = 200


def download(address: str, root: Path) -> Path:
    """The benchmark's folder under root/wds, with every file of its test part; UserError if that fails."""
    base = _raw_address(address.rstrip("/"))
    folder = root / "wds" / _folder_name(base)
    if not (folder / "test" / "nshards.txt").is_file():  # it comes after the lists, so then they are there
        for name in _LISTS:
            _fetch(f"{base}/{name}", folder / name, optional=True)
        _fetch(f"{base}/test/nshards.txt", folder / "test" / "nshards.txt")
    text = (folder / "test" / "nshards.txt").read_text(encoding="utf-8", errors="replace")
    for number in range(number_of_tars(text, f"{base}/test/nshards.txt")):
        _fetch(f"{base}/test/{number}.tar", folder / "test" / f"{number}.tar")
    return folder


def _raw_address(address: str) -> str:
    """Where the Hub has the files themselves: …/tree/BRANCH is a page about them."""
    if not address.startswith(_HUB):
        return address
    owner, _, rest_of_it = address.removeprefix(_HUB).partition("/")
    name, *rest = rest_of_it.split("/")
    if not owner or not name:
        raise UserError(f"{address}: no dataset of the Hub; its address is {_HUB}OWNER/NAME")
    branch = rest[1] if len(rest) > 1 and rest[0] in ("tree", "resolve", "raw") else "main"
    return f"{_HUB}{owner}/{name}/resolve/{branch}"


def _folder_name(base: str) -> str:
    parts = urllib.parse.urlsplit(base)
    path = re.sub(r"/resolve/[^/]+$", "", parts.path)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.strip("/")).strip("-.") or "benchmark"
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()  # file systems take 255


def _fetch(address: str, path: Path, optional: bool = False) -> None:
    """Downloads one file, unless it is there. optional: a file that the server does not have is no error."""
    if path.is_file() or (optional and not reading.exists(address)):
        return
    with atomic_path(path) as unfinished:
        reading.download(address, unfinished)
    if path.suffix == ".tar":
        print(f"downloaded: {path} ({path.stat().st_size:,} bytes)")
