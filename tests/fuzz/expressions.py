"""Expressions of `data2rec.py --keep`: sound ones, torn, and random strings of what might do harm in Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alip.build.expression import BOOLEAN, NUMBER, STRING, evaluate_all, parse_condition
from tests.fuzz import Target

TYPES = {"index": NUMBER, "a": NUMBER, "b": NUMBER, "flag": BOOLEAN, "text": STRING}
ROWS = 13
SOUND = [
    "a > 0.2",
    "0.1 < a <= quantile(b, 0.9) and not flag",
    "rank(a + b) >= 0.25 or text == 'it''s'",
    "abs(a - b) / 2 < min(a, max(b, 1e-3)) and random(7) < 0.5",
    'flag == true or (text != "x" and -a < +b)',
]
TOKENS = [
    "a",
    "b",
    "flag",
    "text",
    "true",
    "1",
    "0.5",
    "1e999",
    "'x'",
    "(",
    ")",
    "[",
    "]",
    ",",
    ".",
    "+",
    "-",
    "*",
    "/",
]
TOKENS += [
    "//",
    "%",
    "**",
    "<",
    ">=",
    "==",
    "!=",
    "and",
    "or",
    "not",
    "is",
    "in",
    "lambda",
    ":",
    "if",
    "else",
    "=",
    ":=",
]
TOKENS += [
    "quantile(",
    "rank(",
    "random(",
    "abs(",
    "min(",
    "max(",
    "eval(",
    "exec(",
    "__import__(",
    "@",
    "~",
    "\\",
    "\t",
]
TOKENS += [
    "f'",
    "\n",
    "#",
    "\x00",
    "犬",
    "\ud800",
    "True",
    "None",
    "...",
    "yield",
    "await",
    "{",
    "}",
    "&",
    "|",
    "9" * 5000,
]


def torn(rng: random.Random) -> str:
    """A sound expression with some characters removed, doubled, replaced or moved."""
    letters = list(rng.choice(SOUND))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(letters)) if letters else 0
        letters[at : at + rng.randrange(3)] = rng.choice(["", rng.choice(TOKENS), chr(rng.randrange(1, 0x3000))])
    return "".join(letters)


def of_tokens(rng: random.Random) -> str:
    """Random tokens, sometimes very many."""
    count = rng.choice([rng.randrange(1, 14), rng.randrange(100, 1500)])
    return rng.choice([" ", ""]).join(rng.choice(TOKENS[: rng.choice([20, len(TOKENS)])]) for _ in range(count))


def deep(rng: random.Random) -> str:
    """What nests until a parser's stack ends."""
    opening, closing = rng.choice(
        [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("lambda: ", ""), ("abs(", ")"), ("{", "}")]
    )
    depth = rng.randrange(30, 900)
    return opening * depth + "a > 0" + closing * rng.choice([depth, depth - 1])


def _evaluated(text: str, seed: int) -> None:
    """Whatever is accepted gives one boolean for every row."""
    expression = parse_condition(text, TYPES, "--keep")
    rng = np.random.default_rng(seed)
    columns = {"index": np.arange(ROWS), "a": rng.normal(size=ROWS).astype(np.float32), "b": rng.random(ROWS)}
    columns |= {"flag": rng.random(ROWS) < 0.5, "text": np.array(["x", "it's"] * ROWS, dtype=object)[:ROWS]}
    ((values,),) = list(evaluate_all([expression], lambda names: iter([{name: columns[name] for name in names}])))
    assert values.shape == (ROWS,) and values.dtype == bool, text


def _case(make: Callable[[random.Random], str]) -> Callable[[random.Random, Path], Callable[[], object]]:
    def prepared(rng: random.Random, folder: Path) -> Callable[[], object]:
        text, seed = make(rng), rng.randrange(2**32)
        return lambda: _evaluated(text, seed)

    return prepared


TARGETS = [Target(f"expression, {make.__name__}", _case(make)) for make in (torn, of_tokens, deep)]
