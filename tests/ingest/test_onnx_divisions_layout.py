"""Cuts of ONNX operators that look up and arrange elements, run in parts."""

import numpy as np
import pytest

from tests.support.onnx_cuts import Arrays, Share, below, case, check, floats, ints, name_of

# How the parts of an operation differ from the whole, beside their operands.


def shape_at(position):
    """The operand that says the shape of the result."""

    def adjust(attributes: dict, operands: Arrays, share: Share):
        operands[position] = ints(*share.shape or ())

    return adjust


def repeated(attributes: dict, operands: Arrays, share: Share):
    at = share.cut.results[0]
    assert at is not None
    assert share.shape is not None
    operands[1] = operands[1].copy()
    operands[1][at] = share.shape[at] // operands[0].shape[at]


def looked_up(attributes: dict, operands: Arrays, share: Share):
    """Each part finds the rows that it has, and zeros for all others: one more row."""
    if share.cut.results[0] is not None:
        return
    table, at = operands
    axis = attributes.get("axis", 0)
    zeros = np.zeros_like(np.take(table, [0], axis))
    operands[0] = np.concatenate([table, zeros], axis)
    at = at % share.of
    inside = (at >= share.start) & (at < share.stop)
    operands[1] = np.where(inside, at - share.start, share.stop - share.start)


def cropped(attributes: dict, operands: Arrays, share: Share):
    assert share.shape is not None
    operands[1] = ints(*(share.shape[axis] for axis in attributes["axes"]))


def sized(attributes: dict, operands: Arrays, share: Share):
    assert share.shape is not None
    operands[3] = ints(*(share.shape[axis] for axis in attributes["axes"]))


CASES = [
    # What is looked up, and written.
    case("Gather", (6, 4), below(6, 2, 3), cuts="0/2 1/3 2/4 +/6", adjust=looked_up),
    case("Gather", (2, 6, 4), below(6, 3), axis=1, cuts="0/2 1/3 2/4 +/6", adjust=looked_up),
    case("Gather", (2, 6, 4), ints(2)[0], axis=1, cuts="0/2 1/4 +/6", adjust=looked_up),
    case("Gather", below(9, 6, 4), below(6, 2), cuts="0/2 1/4"),
    case("GatherElements", (2, 3, 4), below(3, 2, 5, 4), axis=1, cuts="0/2 1/5 2/4"),
    case("GatherElements", (8, 3), below(3, 4, 2), axis=1, cuts="1/2", runtime=True),
    case("GatherND", (3, 4, 5), below(3, 2, 6, 1), cuts="0/2 1/6 2/4 3/5"),
    case("GatherND", (2, 3, 4), below(3, 2, 5, 1), batch_dims=1, cuts="0/2 1/5 2/4", runtime=True),
    *(
        case(op, (4, 3), below(4, 2, 3), (2, 3), cuts="1/3", opset=opset, runtime=True)
        for op, opset in (("Scatter", 9), ("ScatterElements", 18))
    ),
    case("ScatterElements", (4, 3), below(4, 2, 2), (2, 2), cuts=""),
    case("ScatterElements", (4, 3), below(3, 4, 2), (4, 2), axis=1, reduction="add", cuts="0/4"),
    case("ScatterND", (4, 3, 5), ints([0], [2]), (2, 3, 5), cuts="1/3 2/5"),
    case("TensorScatter", (2, 3, 6, 4), (2, 3, 2, 4), ints(1, 3), cuts="0/2 1/3 3/4", opset=24),
    case("OneHot", below(4, 2, 3), ints(4)[0], floats(0, 1), axis=1, cuts="0/2 2/3"),
    # Layout.
    case("Reshape", (6, 4), ints(24), cuts="0/6", adjust=shape_at(1)),
    case("Reshape", (24,), ints(2, 3, 4), cuts="0/2", adjust=shape_at(1)),
    case("Reshape", (6, 4), ints(4, 6), cuts="0/2", adjust=shape_at(1)),
    case("Reshape", (2, 3, 20), ints(2, 3, 4, -1), cuts="0/2 1/3 2/4", adjust=shape_at(1)),
    case("Reshape", (2, 1, 12, 5), ints(6, 4, 1, 5), cuts="0/2 3/5", adjust=shape_at(1)),
    case("Flatten", (2, 3, 4), axis=2, cuts="0/2 1/4"),
    case("Flatten", (2, 3, 4), axis=-1, cuts="0/2 1/4"),
    case("Squeeze", (1, 3, 1, 4), ints(0), cuts="0/3 2/4"),
    case("Unsqueeze", (3, 4), axes=[0, 2], cuts="1/3 3/4", opset=11),
    case("Transpose", (2, 3, 4), perm=[2, 0, 1], cuts="0/4 1/2 2/3"),
    case("Transpose", (2, 3, 4), cuts="0/4 1/3 2/2"),
    case("Expand", (3, 1), ints(2, 3, 4), cuts="0/2 1/3 2/4", adjust=shape_at(1)),
    case("Tile", (2, 3), ints(3, 1), cuts="0/3 1/3", adjust=repeated),
    case("Tile", (1, 3), ints(4, 2), cuts="0/4 1/2", adjust=repeated),
    case("Concat", (2, 3, 4), (2, 5, 4), axis=1, cuts="0/2 2/4"),
    case("Split", (2, 6, 4), ints(2, 4), axis=1, results="y z", cuts="0/2 2/4"),
    case("Split", (2, 6, 4), ints(2, 4), axis=-2, results="y _", cuts="0/2 2/4"),
    case("Split", (4, 3), axis=0, results="y z", cuts="1/3", opset=11),
    case("Slice", (4, 6, 3), ints(0, 1), ints(99, 5), ints(0, 1), ints(1, 2), cuts="0/4 2/3"),
    case("Slice", (4, 6, 3), ints(-1, 0), ints(-9, 9), ints(0, 2), ints(-1, 1), cuts="1/6 2/3"),
    case("Slice", (4, 6, 3), starts=[1], ends=[5], axes=[1], cuts="0/4 2/3", opset=9, runtime=True),
    case("Pad", (2, 3, 4), ints(0, 1, 0, 0, 0, 0), cuts="0/2 2/4"),
    case("Pad", (2, 3, 4), ints(1, -1), None, ints(2), cuts="0/2 1/3", runtime=True),
    case("Pad", (2, 3), pads=[0, 1, 0, 1], cuts="0/2", opset=10, runtime=True),
    case("CenterCropPad", (4, 3, 5), ints(6, 5), axes=[0, 2], cuts="1/3 2/5", adjust=cropped),
    case("Resize", (2, 3, 4, 4), None, floats(1, 1, 2, 2), cuts="0/2 1/3"),
    case("Resize", (2, 3, 4, 5), None, floats(1, 1, 2, 1), mode="linear", cuts="0/2 1/3 3/5"),
    case(
        "Resize",
        (2, 3, 4, 4),
        None,
        None,
        ints(8, 4),
        axes=[2, 3],
        cuts="0/2 1/3 3/4",
        adjust=sized,
    ),
    case("Resize", (2, 3, 4), None, floats(1, 1, 1.1), cuts="0/2 1/3"),
    case("Resize", (2, 3, 4), floats(1, 1, 2), cuts="0/2 1/3", opset=10, runtime=True),
    case("Upsample", (2, 3, 4), floats(1, 1, 2), cuts="0/2 1/3", opset=9, runtime=True),
    case(
        "Upsample", (2, 3, 4, 4), scales=[1.0, 1.0, 2.0, 2.0], cuts="0/2 1/3", opset=7, runtime=True
    ),
    case("DepthToSpace", (2, 12, 3, 4), blocksize=2, cuts="0/2 2/3 3/4"),
    case("DepthToSpace", (2, 12, 3, 4), blocksize=2, mode="CRD", cuts="0/2 1/3 2/3 3/4"),
    case("SpaceToDepth", (2, 3, 4, 6), blocksize=2, cuts="0/2 2/2 3/3"),
    case("Col2Im", (2, 12, 4), ints(4, 4), ints(2, 2), strides=[2, 2], cuts="0/2 1/3"),
]


@pytest.mark.parametrize("wanted", CASES, ids=name_of)
def test_parts_along_every_axis_make_what_the_whole_makes(wanted):
    check(wanted)
