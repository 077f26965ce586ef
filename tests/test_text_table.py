"""Tables as text."""

from alip.text_table import markdown_table, plain_table


def test_markdown():
    table = markdown_table(["model", "R@1"], [["**run** (a|b)", "9.5"], ["line\nbreak", "100.0"]])
    assert table.splitlines() == [
        "| model          |   R@1 |",
        "|----------------|------:|",
        "| **run** (a\\|b) |   9.5 |",
        "| line break     | 100.0 |",
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_plain():
    assert plain_table(["shard", "records"], [["a-00000.rec", "1,000"]]).splitlines() == [
        "shard        records",
        "a-00000.rec    1,000",
    ]
    assert markdown_table(["only"], []).splitlines() == ["| only |", "|------|"]
