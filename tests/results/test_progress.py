"""Progress: a line for each new phase, then one every few seconds, and in the user's units."""

import io

from jaxpart.results.progress import line, shown
from jaxpart.runtime.state import Progress


def test_phases_that_alternate_write_one_line_each_and_then_one_every_five_seconds():
    stream = io.StringIO()
    with shown(stream) as show:
        for tenth in range(120):  # 12 s, two phases in turn
            show(Progress(("slicing", "policy")[tenth % 2], tenth / 10, tenth, None, None))

    written = stream.getvalue().splitlines()

    assert [text.split()[0] for text in written] == ["0.0", "0.1", "5.1", "10.1"]
    assert [text.split()[2].rstrip(",") for text in written[:2]] == ["slicing", "policy"]


def test_a_line_has_what_is_known():
    text = line(Progress("ideals", 1.25, 12345, 2e-3, 1.6e-3))

    assert text == "   1.2 s  ideals, 12,345 samples, best 2,000 us, bound 1,600 us, gap 25.00%"


def test_a_search_goes_on_where_nobody_listens():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError("nobody there")

    with shown(Gone()) as show:
        show(Progress("ideals", 0.0, 0, None, None))
    with shown(None) as show:
        show(Progress("ideals", 0.0, 0, None, None))
