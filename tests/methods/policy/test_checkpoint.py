"""Checkpoints that lie: the header and the weights are checked before anything is built."""

import dataclasses
import functools
import hashlib
import json

import jax
import msgspec
import numpy as np
import pytest

from jaxpart.errors import FileFormatError, InputError
from jaxpart.methods.policy.checkpoint import Policy, example_inputs
from jaxpart.methods.policy.network import NetworkConfig, PolicyNetwork

SIZES = NetworkConfig(width=4, layers=1, heads=2, rank=1)
BIAS = ("params", "Dense_0", "bias")  # [4]


@functools.cache
def shapes():
    return jax.eval_shape(lambda: PolicyNetwork(SIZES).init(jax.random.key(0), *example_inputs()))


@pytest.fixture
def path(tmp_path):
    """A valid checkpoint."""
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes())
    Policy(params, SIZES, {"seed": 0}).save(tmp_path / "p.policy")
    return tmp_path / "p.policy"


def parts_of(path):
    line, _, weights = path.read_bytes().partition(b"\n")
    return json.loads(line), weights


def write(path, header, weights):
    """The header and the weights, with the size and the hash of the weights put right."""
    header = {**header, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    path.write_bytes(json.dumps(header).encode() + b"\n" + weights)


def with_array(path, change):
    """Replaces the bias of the first layer by what `change` makes of its parts."""
    header, weights = parts_of(path)
    tree = msgspec.msgpack.decode(weights)
    place = functools.reduce(lambda node, key: node[key], BIAS[:-1], tree)
    place[BIAS[-1]] = change(*msgspec.msgpack.decode(place[BIAS[-1]].data))
    write(path, header, msgspec.msgpack.encode(tree))


def packed(shape, dtype, content, code=1):
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode([shape, dtype, content]))


def assert_refused(path, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        Policy.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_a_checkpoint_comes_back_as_it_was(path):
    policy = Policy.load(path)

    assert policy.network == SIZES
    assert jax.tree.map(np.shape, policy.params) == jax.tree.map(lambda v: v.shape, shapes())
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(policy.params))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 0}, "width is 0, expected 1 to 1024"),
        ({"width": -4}, "width is -4, expected 1 to 1024"),
        ({"width": 10**6}, "width is 1000000, expected 1 to 1024"),
        ({"layers": 0}, "layers is 0, expected 1 to 16"),
        ({"layers": 10**9}, "layers is 1000000000, expected 1 to 16"),
        ({"heads": 0}, "heads is 0, expected 1 to 64"),
        ({"heads": 3}, "heads is 3, expected a divisor of the width, 4"),
        ({"rank": -1}, "rank is -1, expected 1 to 64"),
        ({"rank": 10**12}, "rank is 1000000000000, expected 1 to 64"),
        ({"rank": 2}, "has shape"),
        ({"depth": 2}, "sizes are width, layers, heads, rank, depth, expected width, layers"),
        ({"width": 4.5}, r"Expected `int`, got `float` - at `\$\.sizes"),
        ({"width": "4"}, "Expected `int`, got `str`"),
        ({"width": None}, "Expected `int`, got `null`"),
    ],
)
def test_sizes_are_within_their_ranges(path, sizes, message):
    header, weights = parts_of(path)
    write(path, {**header, "sizes": {**dataclasses.asdict(SIZES), **sizes}}, weights)

    assert_refused(path, message)


def test_no_size_may_be_missing(path):
    header, weights = parts_of(path)
    write(path, {**header, "sizes": {"width": 4}}, weights)

    assert_refused(path, "sizes are width, expected width, layers, heads, rank")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, d, c: packed(s, "float64", c * 2), "has type float64, expected float32"),
        (lambda s, d, c: packed(s, "object", c), "has type object"),
        (lambda s, d, c: packed(s, "\x1b[31m", c), r"has type \\x1b\[31m"),
        (lambda s, d, c: packed([2, 2], d, c), r"has shape \(2, 2\), expected \(4,\)"),
        (lambda s, d, c: packed([-4], d, c), r"has shape \(-4,\)"),
        (lambda s, d, c: packed([2**40], d, c), r"has shape \(1099511627776,\)"),
        (lambda s, d, c: packed([2**60] * 50_000, d, c), "has shape"),
        (lambda s, d, c: packed(s, d, c[:-1]), "has 15 bytes, expected 16"),
        (lambda s, d, c: packed(s, d, c + c), "has 32 bytes, expected 16"),
        (lambda s, d, c: packed(s, d, b"\xff" * 16), "has a number that is not finite"),
        (lambda s, d, c: packed(s, d, c, code=2), "is no array"),
        (lambda s, d, c: msgspec.msgpack.Ext(1, b"\x93"), "no msgpack of arrays"),
        (lambda s, d, c: msgspec.msgpack.Ext(1, b"\x80"), "no msgpack of arrays"),
        (lambda s, d, c: [0.5] * 4, "is no array"),
        (lambda s, d, c: None, "is no array"),
        (lambda s, d, c: {}, "is no array"),
        (lambda s, d, c: {"deeper": packed(s, d, c)}, r"\['bias'\] is missing"),
    ],
)
def test_every_array_is_what_the_sizes_say(path, change, message):
    with_array(path, change)

    assert_refused(path, message)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"", "truncated"),
        (b"\x80", "is missing"),
        (b"\x90", "is missing"),
        (b"\xc0", "is missing"),
        (b"\xdd\xff\xff\xff\xff", "truncated"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x91" * 100_000, "no msgpack of arrays"),
        (b"\x81\xa1a" * 100_000, "no msgpack of arrays"),
        (b"\x81\xa1\xff\xc0", "no msgpack of arrays"),
    ],
)
def test_weights_that_are_no_nested_dictionaries_are_refused(path, weights, message):
    header, _ = parts_of(path)
    write(path, header, weights)

    assert_refused(path, message)


def test_surplus_weights_and_bytes_are_refused(path):
    header, weights = parts_of(path)
    write(path, header, weights + b"\0")
    assert_refused(path, "trailing characters")

    write(path, header, weights[:-20])
    assert_refused(path, "truncated")

    tree = msgspec.msgpack.decode(weights)
    tree["params"]["more\x1b"] = {"bias": packed([1], "float32", bytes(4))}
    write(path, header, msgspec.msgpack.encode(tree))
    assert_refused(path, r"\['more\\x1b'\]\['bias'\] is surplus")

    path.write_bytes(json.dumps(header).encode() + b"\n" + weights + b"\n")
    assert_refused(path, "bytes of weights, expected")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "line 1 is no JSON header"),
        (b"[" * 100_000, "line 1 is no JSON header"),
        (b'{"a": ' + b"[" * 100_000, "line 1 is no JSON header"),
        (b'{"\xff": 1}', "line 1 is no JSON header|format is missing"),
        (b"{}", "format is missing, expected 'jaxpart-policy'"),
        (b'{"format": ' + b"9" * 5000 + b"}", "format is 999"),
        (b'{"format": "\x7f\x1b"}', "line 1 is no JSON header|format is"),
        (b'{"format": "jaxpart-policy", "version": [[1]]}', r"version is \[\[1\]\], expected 1"),
    ],
)
def test_headers_that_are_none_are_refused(path, line, message):
    path.write_bytes(line + b"\nweights")

    assert_refused(path, message)


@pytest.mark.parametrize("name", ["", "nowhere", "x" * 5000, "a\0b", "/dev/zero", "."])
def test_what_is_no_file_is_no_policy(name):
    with pytest.raises(InputError, match=r"no such file, and no shipped policy|it is a"):
        Policy.load(name)
