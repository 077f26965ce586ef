"""One line for a value that does not fit its schema."""

import pytest

from alip import schema
from alip.errors import UserError

SCHEMA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "layers": {"type": "integer", "minimum": 1, "maximum": 10},
        "eps": {"type": "number", "exclusiveMinimum": 0},
        "mode": {"enum": ["a", "b"]},
        "entries": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": ["integer", "null"]}}}},
    },
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "f.json: must be object, not array []; correct that value"),
        ({}, "f.json: name missing; correct that value"),
        ({"name": 3}, "f.json: name: must be string, not integer 3; correct that value"),
        ({"name": "n", "nmae": 3}, "f.json: unknown key nmae; correct that value"),
        ({"name": "n", "layers": 2.0}, "f.json: layers: must be integer, not number 2.0; correct that value"),
        ({"name": "n", "layers": True}, "f.json: layers: must be integer, not boolean True; correct that value"),
        ({"name": "n", "layers": 11}, "f.json: layers: must be at most 10, not 11; correct that value"),
        ({"name": "n", "eps": float("nan")}, "f.json: eps: must be number, not number nan; correct that value"),
        ({"name": "n", "layers": 10**400}, f"f.json: layers: must be at most 10, not 1{'0' * 58}…; correct that value"),
        ({"name": "n", "eps": 0}, "f.json: eps: must be more than 0, not 0; correct that value"),
        ({"name": "n", "mode": "c"}, "f.json: mode: must be one of a, b, not 'c'; correct that value"),
        (
            {"name": "n", "entries": [{}, {"x": "y"}]},
            "f.json: entries[1].x: must be integer or null, not string 'y'; correct that value",
        ),
    ],
)
def test_the_line_names_file_key_and_what_it_takes(content, message):
    with pytest.raises(UserError) as caught:
        schema.check(content, SCHEMA, "f.json")
    assert str(caught.value) == message


def test_what_fits_passes():
    schema.check({"name": "n", "layers": 10, "eps": 1, "mode": "a", "entries": [{"x": None}, {}]}, SCHEMA, "f.json")


def test_a_huge_value_is_cut_short():
    with pytest.raises(UserError) as caught:
        schema.check({"name": ["x" * 1000] * 1000}, SCHEMA, "f.json", "use another file")
    assert len(str(caught.value)) < 200 and str(caught.value).endswith("; use another file")
