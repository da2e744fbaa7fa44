"""The default: what is best, in the order of what it costs."""
from collections.abc import Iterator
from jaxpart.search.engine import Search
from jaxpart.search.orders import slice_search
from jaxpart.search.proofs import ideals

def auto(search: Search) -> Iterator[None]:
    slicing = slice_search(search)
    next(slicing)
    yield
    yield from ideals(search)
    yield from slicing
