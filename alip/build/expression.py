"""Expressions over a table's columns, such as `a > 0.2 and not b < quantile(b, 0.1)`: parsed, checked, evaluated.

The text is parsed by Python's own parser into a tree, the tree is checked node by node against a short list of what is
allowed, and evaluated here with numpy. Nothing in it is ever run as code.

    numbers, 'strings', true, false, and the table's columns
    + - * /     < <= > >= == !=  (also chained: 0.1 < x <= 0.4)     and or not     parentheses
    abs(x), min(x, y), max(x, y)
    quantile(x, p)    the p-quantile, 0 <= p <= 1, of x over the whole table, linearly interpolated
    rank(x)           the fraction of the table's records with a smaller x, in [0, 1)
    random(seed)      a number in [0, 1) for each record, always the same for the same seed

Numbers are float64 and follow IEEE 754: x / 0 is infinite or NaN, and a comparison with NaN is false (`!=`: true).
Where a table has no value, a number is NaN, a text compares like NaN, and true or false is false.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alip.data.order import uniform
from alip.errors import UserError

NUMBER, BOOLEAN, STRING = "number", "true or false", "text"
LONGEST = 2000  # characters: far more than anyone types, and too few to exhaust a parser's stack
_DEEPEST = 50
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_COMPARE = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_FUNCTIONS = {"abs": 1, "min": 2, "max": 2, "quantile": 2, "rank": 1, "random": 1}
_ELEMENTWISE: dict[str, Callable] = {"abs": np.abs, "min": np.minimum, "max": np.maximum}

Columns = dict[str, np.ndarray]  # each (rows,), with the key "index" for the records' numbers


@dataclass
class Expression:
    """A checked expression. text: as given; columns: those that it reads; type: of its value."""

    text: str
    columns: tuple[str, ...]
    type: str
    _tree: ast.expr
    _whole_table: list[ast.Call]  # quantile and rank calls, inner ones first
    _booleans: frozenset[str] = frozenset()  # the columns of true or false
    _resolved: dict[int, Any] = field(default_factory=dict)

    def prepare(self, batches: Callable[[], Iterable[Columns]]) -> None:
        """Computes what needs the whole table: one pass over it for each quantile and rank."""
        for call in self._whole_table:
            values = np.concatenate([self._value(call.args[0], batch) for batch in batches()] or [np.zeros(0)])
            if call.func.id == "rank":  # type: ignore[attr-defined]
                self._resolved[id(call)] = np.sort(values)
            else:
                fraction = float(self._value(call.args[1], {"index": np.zeros(1, dtype=np.int64)})[0])
                self._resolved[id(call)] = _quantile(values, fraction)

    def evaluate(self, batch: Columns) -> np.ndarray:
        """(rows,) values for some rows."""
        return self._value(self._tree, batch)

    def _value(self, node: ast.expr, batch: Columns) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self._compute(node, batch)

    def _compute(self, node: ast.expr, batch: Columns) -> np.ndarray:
        rows = len(batch["index"])
        if isinstance(node, ast.Constant):
            value = node.value if isinstance(node.value, (bool, str)) else float(node.value)
            return np.full(rows, value, dtype=object if isinstance(value, str) else None)
        if isinstance(node, ast.Name):
            if node.id in ("true", "false"):
                return np.full(rows, node.id == "true")
            column = batch[node.id]
            if node.id in self._booleans:
                return column.astype(bool)  # a missing one is None
            return column.astype(np.float64) if column.dtype.kind in "iuf" else column
        if isinstance(node, ast.UnaryOp):
            value = self._compute(node.operand, batch)
            return ~value if isinstance(node.op, ast.Not) else -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](self._compute(node.left, batch), self._compute(node.right, batch))
        if isinstance(node, ast.BoolOp):
            combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return combine.reduce([self._compute(value, batch) for value in node.values])
        if isinstance(node, ast.Compare):
            sides = [self._compute(side, batch) for side in (node.left, *node.comparators)]
            links = [_compared(_COMPARE[type(op)], a, b) for op, a, b in zip(node.ops, sides, sides[1:])]
            return np.logical_and.reduce(links).astype(bool)
        return self._call(node, batch)

    def _call(self, node: ast.expr, batch: Columns) -> np.ndarray:
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        name = node.func.id
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](*(self._compute(one, batch) for one in node.args))
        if name == "random":
            return uniform(int(node.args[0].value), 0, batch["index"], 0)  # type: ignore[attr-defined]
        resolved = self._resolved[id(node)]
        if name == "quantile":
            return np.full(len(batch["index"]), resolved)
        values = self._compute(node.args[0], batch)
        smaller = np.searchsorted(resolved, values, side="left") / max(1, len(resolved))
        return np.where(np.isnan(values), np.nan, smaller)


def _compared(compare: Callable, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if object not in (a.dtype, b.dtype):
        return compare(a, b)
    both = np.not_equal(a, None) & np.not_equal(b, None)
    result = np.full(len(a), compare is np.not_equal)
    result[both] = compare(a[both], b[both])
    return result


def parse(text: str, columns: dict[str, str], flag: str = "expression") -> Expression:
    """The expression in `text`; UserError, one line, for any mistake in it.

    columns: {name: NUMBER, BOOLEAN or STRING} of the table; flag: what the user typed it after, for the message.
    """
    if len(text) > LONGEST:
        raise UserError(f"{flag}: the expression has {len(text)} characters, more than {LONGEST}")
    source = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, on odd escapes and comparisons
            tree = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{flag} {_quote(text)}: {error.msg}; write it as 'image_text_similarity > 0.2'") from None
    except (ValueError, MemoryError, RecursionError, OverflowError):
        raise UserError(f"{flag} {_quote(text)}: cannot be parsed as an expression") from None
    checker = _Checker(source, columns, flag)
    value_type = checker.check(tree, 0)
    booleans = frozenset(name for name in checker.used if columns[name] == BOOLEAN)
    return Expression(text, tuple(checker.used), value_type, tree, checker.whole_table, booleans)


def parse_condition(text: str, columns: dict[str, str], flag: str) -> Expression:
    """An expression that is true or false for each record."""
    expression = parse(text, columns, flag)
    if expression.type != BOOLEAN:
        raise UserError(f"{flag} {_quote(text)}: gives a {expression.type}, not true or false; compare it: X > 0.2")
    return expression


class _Checker:
    """Walks a tree: only what is listed may be in it, and types must fit."""

    def __init__(self, text: str, columns: dict[str, str], flag: str):
        self.text, self.columns, self.flag = text, columns, flag
        self.used: list[str] = []
        self.whole_table: list[ast.Call] = []

    def _source(self, node: ast.AST) -> str:
        """The part of the text that a node is of. (ast.unparse would recurse into what may be deep.)"""
        return ast.get_source_segment(self.text, node) or self.text

    def fail(self, message: str) -> UserError:
        return UserError(f"{self.flag} {_quote(self.text)}: {message}")

    def check(self, node: ast.expr, depth: int) -> str:
        """The type of a node's value."""
        if depth > _DEEPEST:
            raise self.fail(f"is nested more than {_DEEPEST} deep")
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.UAdd)):
            wanted = BOOLEAN if isinstance(node.op, ast.Not) else NUMBER
            sign = {ast.Not: "not", ast.USub: "-", ast.UAdd: "+"}[type(node.op)]
            return self._expect(node.operand, wanted, sign, depth)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self._expect(node.left, NUMBER, "arithmetic", depth)
            return self._expect(node.right, NUMBER, "arithmetic", depth)
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._expect(value, BOOLEAN, "and" if isinstance(node.op, ast.And) else "or", depth)
            return BOOLEAN
        if isinstance(node, ast.Compare):
            return self._compare(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self.fail(f"{_quote(self._source(node))} is not allowed here; {_hint(node)}")

    def _expect(self, node: ast.expr, wanted: str, what: str, depth: int) -> str:
        found = self.check(node, depth + 1)
        if found != wanted:
            raise self.fail(f"{what} takes a {wanted}, {_quote(self._source(node))} is a {found}")
        return found

    def _constant(self, node: ast.Constant) -> str:
        if isinstance(node.value, bool):
            raise self.fail(f"write {str(node.value).lower()}, not {node.value}")
        if isinstance(node.value, str):
            return STRING
        if isinstance(node.value, (int, float)):
            try:
                float(node.value)
            except OverflowError:
                raise self.fail("holds a number that is too large") from None
            return NUMBER
        raise self.fail(f"{_quote(self._source(node))} is no number, text or column")

    def _name(self, node: ast.Name) -> str:
        if node.id in ("true", "false"):
            return BOOLEAN
        if node.id not in self.columns:
            if node.id in _FUNCTIONS:
                raise self.fail(f"{node.id} is a function: write {node.id}(…)")
            raise self.fail(f"no column {_quote(node.id)}; the table has {', '.join(self.columns)}")
        if node.id not in self.used:
            self.used.append(node.id)
        return self.columns[node.id]

    def _compare(self, node: ast.Compare, depth: int) -> str:
        sides = [node.left, *node.comparators]
        types = [self.check(side, depth + 1) for side in sides]
        for op, a, b in zip(node.ops, types, types[1:]):
            if type(op) not in _COMPARE:
                raise self.fail("only < <= > >= == != compare")
            if a != b:
                raise self.fail(f"compares a {a} with a {b}")
            if a == BOOLEAN and not isinstance(op, (ast.Eq, ast.NotEq)):
                raise self.fail("true and false are compared with == or !=")
        return BOOLEAN

    def _call(self, node: ast.Call, depth: int) -> str:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in _FUNCTIONS:
            raise self.fail(f"no function {_quote(self._source(node.func))}; there are {', '.join(_FUNCTIONS)}")
        if node.keywords or len(node.args) != _FUNCTIONS[name]:
            raise self.fail(f"{name} takes {_FUNCTIONS[name]} value{'s' if _FUNCTIONS[name] > 1 else ''}")
        for one in node.args:
            self._expect(one, NUMBER, f"{name}()", depth)
        if name == "quantile":
            self._fraction(node.args[1])
        if name == "random":
            seed = node.args[0]
            if not (isinstance(seed, ast.Constant) and isinstance(seed.value, int) and 0 <= seed.value < 2**63):
                raise self.fail("random takes a seed: a whole number from 0 up")
        if name in ("quantile", "rank"):
            self.whole_table.append(node)
        return NUMBER

    def _fraction(self, node: ast.expr) -> None:
        if not (isinstance(node, ast.Constant) and 0 <= node.value <= 1):
            raise self.fail(f"the second value of quantile is a number from 0 to 1, not {_quote(self._source(node))}")


def _hint(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        return "write and, or"
    return "allowed are numbers, texts, columns, + - * /, comparisons, and, or, not, and functions"


def _quote(text: str) -> str:
    """The text on one line, cut short."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "�" for letter in line)
    return repr(line if len(line) <= 120 else line[:119] + "…")


def _quantile(values: np.ndarray, fraction: float) -> float:
    """NaN is no value; of none there is no quantile: NaN."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return float("nan")
    if np.isfinite(values[[0, -1]]).all():
        return float(np.quantile(values, fraction))
    at = fraction * (len(values) - 1)  # NumPy's own is NaN wherever a neighbour is infinite
    low, high = values[[int(at), min(int(at) + 1, len(values) - 1)]]
    if np.isneginf(low) or not at % 1:
        return float(low)
    return float(low + (high - low) * (at % 1)) if np.isfinite(high) else float(high if low < high else low)


def column_types(types: dict[str, Any]) -> dict[str, str]:
    """{column: NUMBER, BOOLEAN or STRING} of a Parquet table's {column: type}; other columns are left out."""
    import pyarrow.types as t

    found = {}
    for name, one in types.items():
        if t.is_integer(one) or t.is_floating(one):
            found[name] = NUMBER
        elif t.is_boolean(one):
            found[name] = BOOLEAN
        elif t.is_string(one.value_type if t.is_dictionary(one) else one) or t.is_large_string(one):
            found[name] = STRING
    return found


def needed_columns(expressions: Sequence[Expression | None]) -> list[str]:
    """The columns that a batch must have to evaluate all of them."""
    names = dict.fromkeys(["index"])
    for expression in expressions:
        names |= dict.fromkeys(expression.columns if expression else ())
    return list(names)


def evaluate_all(
    expressions: Sequence[Expression | None], batches: Callable[[list[str]], Iterator[Columns]]
) -> Iterator[list[np.ndarray | None]]:
    """The values of some expressions, for some rows at a time. batches(columns): one pass over the table."""
    for expression in expressions:
        if expression:
            names = needed_columns([expression])
            expression.prepare(lambda names=names: batches(names))
    for batch in batches(needed_columns(expressions)):
        yield [expression.evaluate(batch) if expression else None for expression in expressions]
