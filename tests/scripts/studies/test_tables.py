"""The tables of the READMEs are those of the raw files, every one of them stands somewhere."""

import re

import pytest
import table_parts
import tables


@pytest.mark.parametrize("path", tables.READMES, ids=lambda p: str(p.relative_to(table_parts.ROOT)))
def test_a_readme_says_what_the_raw_files_say(path):
    text = path.read_text()

    assert tables.filled(text) == text, "python scripts/studies/tables.py --write"


def test_every_table_stands_in_a_readme():
    found = set()
    for path in tables.READMES:
        found.update(re.findall(r"<!-- table: ([\w-]+) -->", path.read_text()))

    assert found == set(tables.TABLES)


def test_a_changed_figure_is_noticed():
    text = (table_parts.ROOT / "README.md").read_text()
    assert "2,319.1 us" in text

    changed = text.replace("2,319.1 us, 1.152", "2,219.1 us, 1.152")

    assert tables.filled(changed) == text != changed


def test_the_page_of_the_first_readme_is_short():
    assert len((table_parts.ROOT / "README.md").read_text().splitlines()) <= 160


def test_a_table_is_aligned_by_its_header():
    assert table_parts.markdown("a | >b", [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


@pytest.mark.parametrize(
    ("value", "digits", "scale", "expected"),
    [(None, 1, 1.0, "-"), (1234.56, 1, 1.0, "1,234.6"), (0.5, 0, 1e6, "500,000")],
)
def test_numbers_are_rounded_with_thousands_apart(value, digits, scale, expected):
    assert table_parts.number(value, digits, scale) == expected
