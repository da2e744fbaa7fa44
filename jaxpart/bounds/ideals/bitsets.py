"""Bit sets of small integers as rows of 64-bit words, and the loops on them, compiled by numba.

In all functions, `row` and `other` are bit sets [words] of equal length: bit i & 63 of word i >> 6
says whether i is in the set.

The code uses plain loops. With numpy's array expressions, sorts or random generators, numba needs
most of a minute to compile; plain loops need a few seconds. Three things cost much in little text:

- an array assigned to a slice or row (numba compiles its error message, with all of its strings);
- a literal argument, as in `next_in(row, 0)`: that is a signature of its own;
- the entry from Python of a function with many arrays, so only those that Python calls have one
  (`entry`), and all others have none (`inner`).

Numba caches the compiled code next to the source, so that the next process loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint64]
IntArray = NDArray[np.int64]

F = TypeVar("F", bound=Callable[..., Any])
_njit: Any = njit  # numba's types do not know all of its options

ZERO: Any = np.int64(0)  # not a literal
_ONE = np.uint64(1)
# The position of a word's only set bit, without a loop: the product of the word and this de Bruijn
# constant has different top six bits for each position, and the table maps them to the position.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_POSITION = np.zeros(64, np.int64)
_BIT_POSITION[[((int(_DE_BRUIJN) << i) & (2**64 - 1)) >> 58 for i in range(64)]] = np.arange(64)


def entry(function: F) -> F:
    """Compiles a function that Python calls.

    It releases Python's global lock, so that signals and other threads are served.
    """
    return _njit(cache=True, nogil=True, no_cfunc_wrapper=True)(function)


def inner(function: F) -> F:
    """Compiles a function that only compiled ones call; called from Python it ends the process."""
    return _njit(cache=True, no_cfunc_wrapper=True, no_cpython_wrapper=True)(function)


def words_for(count: int) -> int:
    """Number of words that hold the numbers 0 to count - 1; at least one."""
    return max(1, -(-count // 64))


@entry
def has(row: Words, i: int) -> bool:
    """Whether i is in the set."""
    return (row[i >> 6] >> np.uint64(i & 63)) & _ONE != 0


@entry
def add(row: Words, i: int) -> None:
    """Adds i to the set, in place."""
    row[i >> 6] |= _ONE << np.uint64(i & 63)


@entry
def discard(row: Words, i: int) -> None:
    """Removes i from the set, in place; i need not be in it."""
    row[i >> 6] &= ~(_ONE << np.uint64(i & 63))


@entry
def size_of(row: Words) -> int:
    """Number of members of the set."""
    total = 0
    for w in range(len(row)):
        x = row[w]
        while x:
            x &= x - _ONE
            total += 1
    return total


@inner
def copy_row(target: Words, i: int, source: Words, j: int) -> None:
    """Copies row j of `source` [., words] to row i of `target` [., words]."""
    for w in range(source.shape[1]):
        target[i, w] = source[j, w]


@entry
def size_of_both(row: Words, other: Words) -> int:
    """Number of members that the two sets have in common."""
    total = 0
    for w in range(len(row)):
        x = row[w] & other[w]
        while x:
            x &= x - _ONE
            total += 1
    return total


@entry
def have_common(row: Words, other: Words) -> bool:
    """Whether the two sets have a member in common."""
    for w in range(len(row)):  # noqa: SIM110 (a generator does not compile)
        if row[w] & other[w]:
            return True
    return False


@entry
def members(row: Words) -> IntArray:
    """The members of the set, int64 [members], ascending."""
    found = np.empty(size_of(row), np.int64)
    count = 0
    for w in range(len(row)):
        x = row[w]
        while x:
            low = x & (~x + _ONE)
            found[count] = 64 * w + _BIT_POSITION[(low * _DE_BRUIJN) >> np.uint64(58)]
            count += 1
            x ^= low
    return found


@entry
def next_in(row: Words, start: int) -> int:
    """The smallest member that is at least `start` (0 or more); -1 if there is none.

    It serves loops that do not change the set: unlike `members`, it allocates nothing.
    """
    w = start >> 6
    if w >= len(row):
        return -1
    x = row[w] >> np.uint64(start & 63) << np.uint64(start & 63)
    while not x:
        w += 1
        if w >= len(row):
            return -1
        x = row[w]
    low = x & (~x + _ONE)
    return 64 * w + int(_BIT_POSITION[(low * _DE_BRUIJN) >> np.uint64(58)])


@entry
def unite(row: Words, other: Words) -> None:
    """Adds all members of `other` to `row`, in place."""
    for w in range(len(row)):
        row[w] |= other[w]


@entry
def intersection(row: Words, other: Words) -> Words:
    """A new set of the members that are in both sets."""
    both = row.copy()
    for w in range(len(both)):
        both[w] &= other[w]
    return both


@entry
def union(row: Words, other: Words) -> Words:
    """A new set of the members that are in at least one of the two sets."""
    either = row.copy()
    unite(either, other)
    return either


@entry
def order_of(keys: NDArray[np.float64]) -> IntArray:
    """The indices that sort `keys` ascending, by a stable merge sort.

    Args:
      keys: [count].

    Returns:
      [count] indices into `keys`; equal keys keep their order.
    """
    count = len(keys)
    order, other = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        order[i] = i
    width = 1
    while width < count:
        for start in range(0, count, 2 * width):
            middle, stop = min(start + width, count), min(start + 2 * width, count)
            i, j = start, middle
            for k in range(start, stop):
                if i < middle and (j >= stop or keys[order[i]] <= keys[order[j]]):
                    other[k] = order[i]
                    i += 1
                else:
                    other[k] = order[j]
                    j += 1
        order, other = other, order
        width *= 2
    return order


@entry
def uniform(state: Words) -> float:
    """A uniform random number in [0, 1), by xorshift64* (Vigna, ACM Trans. Math. Softw. 42, 2016).

    Args:
      state: [1] state of the generator, not zero; changed in place.
    """
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(11)) / 9007199254740992.0


@entry
def below(state: Words, count: int) -> int:
    """A random integer from 0 to count - 1; `state` is that of `uniform`."""
    return int(uniform(state) * count)
