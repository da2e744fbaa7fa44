"""How attention, rotary positions and recurrent layers can be divided.

Labels: b batch, h heads, q positions of queries, d directions.
"""

from __future__ import annotations

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx.divisions.labels import WHOLE, Axes, cuts
from jaxpart.ingest.onnx.operation import Operation

_SCORES = ("b", "h", "q", WHOLE)
_CACHE = "bh.."  # keys and values of the past, or of past and present


def _rank(operation: Operation, position: int) -> int:
    return len(operation.shape(position).shape) if operation.has(position) else 0


def _scores(operation: Operation, position: int) -> Axes:
    """Labels of a mask or bias that is broadcast to the scores."""
    return _SCORES[4 - _rank(operation, position) :]


def attention(operation: Operation) -> list[AxisCut]:
    """Attention of ONNX: batch, heads, queries.

    Several heads of queries may share a head of keys and values: there are as many slices as the
    latter.
    """
    keys = operation.shape(1).shape
    heads = keys[1] if len(keys) == 4 else operation.whole("kv_num_heads", 0)
    if not heads:
        return []
    windows = (operation.whole(f"{side}_window_size", -1) for side in ("left", "right"))
    # What a query sees hangs on its position in the whole.
    placed = operation.whole("is_causal", 0) or operation.has(6) or any(w != -1 for w in windows)
    at = WHOLE if placed else "q"
    queries = ("b", "h", at, WHOLE) if _rank(operation, 0) == 4 else ("b", at, "h")
    read = [_CACHE if _rank(operation, p) == 4 else "b.h" for p in (1, 2)]
    operands = [queries, *read, _scores(operation, 3), _CACHE, _CACHE, "b"]
    return cuts(operation, operands, [queries, _CACHE, _CACHE, _SCORES], ways={"h": heads})


def many_heads(operation: Operation) -> list[AxisCut]:
    """MultiHeadAttention: batch and heads; batch alone with a bias, which is packed by thirds."""
    layouts = {3: "b.h", 4: "bh..", 5: "b.h.."}
    projected = [layouts.get(_rank(operation, position), "") for position in range(3)]
    padding = _of_batch(operation, 4, operation.shape(0).shape[0])
    if operation.has(9) or padding is None:
        return []
    operands = [*projected, ".", padding, _scores(operation, 5), _CACHE, _CACHE]
    results = ["b.h", _CACHE, _CACHE, _SCORES]
    if operation.has(3):
        results = [[WHOLE if label == "h" else label for label in axes] for axes in results]
    return cuts(operation, operands, results, ways={"h": operation.whole("num_heads", 0)})


def _of_batch(operation: Operation, position: int, batch: int) -> Axes | None:
    """Labels of a mask whose first axis is the batch; None if it is something else."""
    rank = _rank(operation, position)
    if rank and operation.shape(position).shape[0] != batch:
        return None
    return ("b", *(WHOLE,) * (rank - 1))[:rank]


def grouped_heads(operation: Operation) -> list[AxisCut]:
    """GroupQueryAttention: batch, and heads of keys and values where nothing is packed."""
    lengths = _of_batch(operation, 5, operation.shape(0).shape[0])
    if len(operation.inputs) > 12 or lengths is None:
        return []
    ways = {"h": operation.whole("kv_num_heads", 0)}
    operands = ["b.h", "b.h", "b.h", _CACHE, _CACHE, lengths, "", "", ""]
    operands += ["b.", _scores(operation, 10), "h"]
    results = ["b.h", _CACHE, _CACHE, _SCORES]
    if not operation.has(1):
        results = ["b..", "b...", "b...", "b..."]
    return cuts(operation, operands, results, ways=ways)


def projected(operation: Operation) -> list[AxisCut]:
    """Attention and QAttention of ONNX Runtime: batch; weights of all heads are packed."""
    quantised = operation.node.op_type == "QAttention"
    mask, past = (5, 8) if quantised else (3, 4)
    masked = _of_batch(operation, mask, operation.shape(0).shape[0])
    if masked is None:
        return []
    bias: Axes = "" if quantised else _scores(operation, 5)  # operand 5 of QAttention is its mask
    labels: dict[int, Axes] = {0: "b..", 5: bias, mask: masked, past: ".b..."}
    operands = [labels.get(position, "") for position in range(len(operation.inputs))]
    return cuts(operation, operands, ["b..", ".b..."])


def rotary(operation: Operation) -> list[AxisCut]:
    """RotaryEmbedding of ONNX and of ONNX Runtime: batch, positions, heads."""
    heads = operation.whole("num_heads", 0)
    position, tables = (3, (1, 2)) if operation.is_standard else (1, (2, 3))
    if operation.whole("is_packed_batching", 0):
        return []
    data: Axes = "bhq." if _rank(operation, 0) == 4 else "bqh"
    if len(data) == 4:
        heads = operation.shape(0).shape[1]
    elif not heads and not operation.is_standard:
        heads = operation.shape(0).shape[2] // (2 * operation.shape(tables[0]).shape[1])
    if operation.has(position) and _rank(operation, position) == 1:  # that of the first element
        data = [WHOLE if label == "q" else label for label in data]
    operands: list[Axes] = [()] * len(operation.inputs)
    operands[0] = data
    if operation.has(position):
        operands[position] = "bq" if _rank(operation, position) == 2 else "."
    for table in tables:  # a row for each position, or for each element of the batch too
        operands[table] = "bq." if _rank(operation, table) == 3 else ".."
    return cuts(operation, operands, [data], ways={"h": heads} if heads else {"h": 1})


def recurrent(operation: Operation) -> list[AxisCut]:
    """LSTM, GRU, RNN: batch and directions."""
    if operation.whole("layout", 0):
        data, state, out = "b..", "bd.", "b.d."
    else:
        data, state, out = ".b.", "db.", ".db."
    operands = [data, "d..", "d..", "d.", "b", state, state, "d."]
    return cuts(operation, operands, [out, state, state])
