"""One name for one thing: home-made words do not come back into code, documentation and messages.

Each pattern is a word that this project once used where the field has another; the changelog may name them.
"""

import re
import subprocess

import pytest

from tests.helpers.shards import ROOT

# Old word → what to write instead. Names of other people's code (scatter_add, says in a quoted title) do not match.
WORDS = {
    r"\bdata sets?\b": "dataset",
    r"\b(optimi[sz]er|weight) updates?\b|\bupdates (in all|an epoch|per|of training)\b": "step, optimizer step",
    r"\banew\b": "again, from scratch",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\b(goes|went|going|gone) on\b|\bgo on with\b": "resume, continue",
    r"\bt(ake|akes|aken|ook) up\b": "restore",
    r"\bwish(es|ed)?\b": "want; or name the setting",
    r"\bheadline\b": "primary metric",
    r"\bthe whole way\b": "end to end",
    r"text_is_wrong|\bread_truth\b|--(gate-)?truth\b|\b(right|wrong) raw texts?\b": "is_mismatched, matched",
    r"--initial-similarity|--loss-block\b": "--history-init, --loss-chunk-size",
    r"two-direction": "symmetric",
    r"\bpairs/s\b|pairs_per_s\b|\btriplets/s\b": "samples/s",
    r"\bMovingAverage\b|(?<!exponential )\bmoving[ _]average\b": "EMA",
    r"\bcreate_identity\b|\bcheck_identity\b": "fingerprint",
    r"\bBuckets\b|\bbucket files?\b": "external shuffle",
    r"\bfeeder\b": "data loader, preprocessing workers",
    r"\bpart K/N\b|--part K/N": "--shard K/N",
    r"--beams\b(?!\")|--max-tokens\b(?!\")": "--num-beams, --max-new-tokens",
    r"\bunseen[- ](design|concept)": "held-out style, held-out concept",
    r"\bpacked rows\b": "unpadded tokens",
    r"\b(share|shares) of (the|all|its|images|samples|updates|steps|an?)\b": "fraction of",
    r"\bdrawn (at random|by|from|with)\b": "sampled, random",
    r"\bpictures?\b": "image (data), plot or figure (drawing)",
    r"\bkinds? of (source|input|picture|image|text|file|error|model)s?\b": "type, class",
}
# A generic caption that a captioner writes; and readers of old files, which know the old names.
ALLOWED = {r"\bpictures?\b": r"(this|small|car|a) picture|\"picture\"|picture( of|\|)|--no-pictures"}
OLD_NAMES = {
    *("CHANGELOG.md", "alip/caption/run_record.py", "alip/eval/plots/training.py", "alip/eval/results.py"),
    *("alip/train/older_runs.py", "alip/train/open_clip_flags.py", "tests/eval/test_plots.py"),
    *("tests/eval/test_results.py", "tests/fuzz/evaluation.py", "tests/test_words.py", "tests/eval/test_report.py"),
}
SUFFIXES = (".py", ".md", ".sh", ".toml")


def lines():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if name.endswith(SUFFIXES) and name not in OLD_NAMES and "classnames" not in name and (ROOT / name).is_file():
            for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
                yield f"{name}:{number}", line


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout: which files are ours is not known")
def test_words_of_the_field():
    found = []
    everything = list(lines())
    assert len(everything) > 10_000
    for pattern, instead in WORDS.items():
        allowed = re.compile(ALLOWED.get(pattern, r"(?!)"))
        for where, line in everything:
            if re.search(pattern, line) and not allowed.search(line):
                found.append(f"{where}: {line.strip()[:100]}   → {instead}")
    assert not found, "\n".join(found)
