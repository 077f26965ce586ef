"""Checks a value from a file against a JSON schema; the error line names the file, the key and what it takes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from alip.errors import UserError


def check(content: Any, schema: dict[str, Any], source: object, fix: str = "correct that value") -> None:
    """UserError unless `content` fits a JSON schema (draft 2020-12); source: the file, for the message.

    Stricter than JSON in two points: 2.0 is no integer, and NaN and the infinities are no numbers.
    """
    # best_match picks the most specific of several errors.
    from jsonschema.exceptions import best_match

    error = best_match(_validator()(schema).iter_errors(content))
    if error is not None:
        raise UserError(f"{source}: {_key(error.absolute_path)}{_problem(error)}; {fix}")


@lru_cache(maxsize=1)
def _validator():
    # Imported late: it takes a tenth of a second, which `--help` need not.
    from jsonschema import Draft202012Validator, validators

    checker = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                (isinstance(value, int) and not isinstance(value, bool))
                or (isinstance(value, float) and math.isfinite(value))
            ),
        }
    )
    return validators.extend(Draft202012Validator, type_checker=checker)


def _key(path) -> str:
    """`text_cfg.layers`, `entries[3].name`; nothing for the top level."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{_short(text, 80)}: " if text else ""


def _problem(error) -> str:
    """What is wrong, with the value cut short: jsonschema's own message repeats it whole."""
    value, limit = _short(repr(error.instance), 60), error.validator_value
    if error.validator == "type":
        expected = " or ".join(limit) if isinstance(limit, list) else limit
        return f"must be {expected}, not {_TYPES.get(type(error.instance), type(error.instance).__name__)} {value}"
    if error.validator == "required":
        missing = [name for name in limit if name not in error.instance]
        return f"{', '.join(missing)} missing"
    if error.validator == "additionalProperties":
        unknown = sorted(set(map(str, error.instance)) - set(error.schema.get("properties", {})))
        return f"unknown key {_short(', '.join(unknown), 60)}"
    if error.validator == "pattern" and limit == r"\S":
        return "must not be blank"
    names = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
    }
    if error.validator in names:
        return f"must be {names[error.validator]} {limit}, not {value}"
    if error.validator == "enum":
        return f"must be one of {', '.join(map(str, limit))}, not {value}"
    return _short(error.message, 160)


_TYPES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


def _short(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
