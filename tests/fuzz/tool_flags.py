"""Hostile values for the flags of the benchmarks and of the demo's scripts, as flags.py has them for the commands."""

from __future__ import annotations

from tests.fuzz import OK, Target
from tests.fuzz.flags import ALWAYS, NUMBERS, Command, make

# fmt: off
SHORT = (  # with a command line that takes a second or less
    ("benchmarks/breakdown", (("--model", "{model}"), ("--batch-size", "2"), ("--steps", "1"))),
    ("benchmarks/caption_study", (("--table",), ("--results", "{out}.jsonl"), ("--output", "{out}"))),
    ("benchmarks/demo_seeds", (("--table",), ("--results", "{out}.jsonl"), ("--data", "{folder}"))),
    ("benchmarks/engine",
     (("--width", "8"), ("--batch-size", "8"), ("--steps", "2"), ("--rounds", "1"), ("--micro", "4"))),
    ("benchmarks/eval", (("--images", "10"), ("--captions", "20"), ("--width", "4"))),
    ("benchmarks/gate_checkpoints", (("--runs", "{run}"), ("--data", "{data}"), ("--samples", "5"))),
    ("benchmarks/gate_page", (("--data", "{data}"), ("--samples", "20"), ("--output", "{out}"))),
    ("benchmarks/nodes", (("--shards", "4"), ("--samples-per-shard", "16"), ("--batch-size", "2"), ("--gpus", "2"))),
    ("benchmarks/noise_study", (("--list",), ("--results", "{out}.jsonl"), ("--output", "{out}"))),
    ("scripts/demo/answers", (("--run", "{run}"), ("--data-root", "{folder}"), ("--output", "{out}"))),
    ("scripts/demo/baseline", (("--data-root", "{folder}"), ("--output", "{out}"))),
    ("scripts/demo/build", (("--packages", "{folder}"), ("--output", "{out}"))),
    ("scripts/demo/summary", (("--run", "{run}"),)),
    ("scripts/demo/unpack", (("--output", "{out}"),)),
)
# fmt: on
LONG = (
    *("__main__", "cluster", "data2rec", "eval_peer", "gpu", "growth", "loader", "loss", "reading", "remote", "scale"),
    *("step", "trainer"),
)
COMMANDS = (
    *(Command(name, f"{name}.py", "main", parts, NUMBERS) for name, parts in SHORT),
    *(Command(f"benchmarks/{name}", f"benchmarks/{name}.py", "main", (), ALWAYS) for name in LONG),
    Command("benchmarks/scaling", "benchmarks/scaling.py", "main", ()),
)
TARGETS = [Target(f"flags: {command.name}", make(command), frozenset({OK})) for command in COMMANDS]
