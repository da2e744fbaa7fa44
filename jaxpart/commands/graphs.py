"""`jaxpart graphs`: the shipped graphs, as a table, a record or a picture."""

from __future__ import annotations

import argparse

from jaxpart.arguments import Parser, file_name, name_or_file
from jaxpart.commands.output import show
from jaxpart.errors import InputError
from jaxpart.files import check_writable
from jaxpart.text import one_line

DESCRIPTION = "The graphs that come with jaxpart: a table, one graph's record, or a picture."


def add_arguments(parser: Parser) -> None:
    """`graphs [NAME ...] [--split SIDE] [--show NAME] [--plot FILE.png]`."""
    add = parser.add_argument
    add("graphs", nargs="*", metavar="NAME", type=name_or_file, help="only these (default: all)")
    add("--split", metavar="SIDE", help="only this side: train, valid, test, or extra")
    add("--show", metavar="NAME", type=name_or_file, help="all that is known of one graph")
    add("--plot", metavar="FILE.png", type=file_name, help="draw the graphs named, as PNG")


def run(arguments: argparse.Namespace) -> int:
    """Shows the table, or one record; or draws the graphs."""
    from jaxpart import datasets
    from jaxpart.datasets import catalog
    from jaxpart.files import write_whole
    from jaxpart.results.picture import kind_of

    if arguments.show is not None:
        show(catalog.record(datasets.entry(arguments.show)))
    elif arguments.plot is not None:
        if not arguments.graphs:
            raise InputError(f"{arguments.plot}: expected the names of the graphs to draw")
        if kind_of(arguments.plot) != "png":
            raise InputError(f"{arguments.plot}: this picture is a PNG, expected a name in .png")
        check_writable(arguments.plot)
        graphs = [datasets.load(name) for name in arguments.graphs]
        write_whole(arguments.plot, catalog.draw(graphs))
        show(one_line(f"written: {arguments.plot}"))
    else:
        show(catalog.table(arguments.split, arguments.graphs))
    return 0
