"""The study of buffers: a row of it, and what it leaves alone when it runs again."""

import buffers
from rows import Rows

from tests.support.modules import unit_module


def test_more_slots_never_reach_less_and_a_second_run_changes_nothing(tmp_path, capsys):
    settings = {"method": "clusters", "samples": 200, "seed": 0}
    file = tmp_path / "rows.json"

    buffers.measure(Rows(file, settings), ["mobilenet-v2"], ["mcm8"])

    (row,) = Rows(file, settings).rows
    shares = [round(row[f"share_{slots}"], 9) for slots in buffers.BUFFERS]
    assert 0 < shares[0] <= shares[-1] <= 1
    assert shares == sorted(shares)
    written = file.read_bytes()
    buffers.measure(Rows(file, settings), ["mobilenet-v2"], ["mcm8"])
    assert file.read_bytes() == written
    assert "mobilenet-v2" in capsys.readouterr().out


def test_a_pair_without_a_valid_partition_says_why():
    from jaxpart import datasets

    settings = {"method": "clusters", "samples": 10, "seed": 0}
    tiny = unit_module(2, capacity=1)

    row = buffers.simulated(datasets.load("mobilenet-v2"), tiny, settings)

    assert row["why"] in ("InfeasibleError", "NothingFoundError")
    assert "share_1" not in row
