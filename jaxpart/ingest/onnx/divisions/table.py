"""The rule of each operator; one without a rule is never cut."""

from __future__ import annotations

from jaxpart.ingest.axes import AxisCut
from jaxpart.ingest.onnx.contrib import MICROSOFT
from jaxpart.ingest.onnx.divisions import (
    attention,
    elementwise,
    layout,
    products,
    reductions,
    windows,
)
from jaxpart.ingest.onnx.divisions.elementwise import along, but
from jaxpart.ingest.onnx.divisions.labels import Rule
from jaxpart.ingest.onnx.divisions.reductions import named
from jaxpart.ingest.onnx.operation import Operation


def cuts_of(operation: Operation) -> list[AxisCut]:
    """The axes along which an operation can be cut into slices of equal FLOPs.

    Rows of a convolution are counted alike, although those next to the padding have less to do.

    Args:
      operation: a node; its results that nothing reads are None.

    Returns:
      The cuts; none for an operator without a rule, or with bodies.

    Raises:
      ValueError, IndexError, ZeroDivisionError: the attributes do not fit the shapes.
    """
    domain = "" if operation.is_standard else operation.node.domain
    rule = RULES.get((domain, operation.node.op_type))
    return rule(operation) if rule is not None else []


# fmt: off
_BROADCAST = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal",
    "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "SwiGLU", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)
# fmt: on
_STANDARD: dict[str, Rule] = {
    **dict.fromkeys(_BROADCAST, elementwise.broadcast),
    **dict.fromkeys(_REDUCTIONS, reductions.reduction),
    "AffineGrid": windows.grid,
    "ArgMax": reductions.position,
    "ArgMin": reductions.position,
    "Attention": attention.attention,
    "AveragePool": windows.pool,
    "BatchNormalization": elementwise.batch_normalisation,
    "CastLike": elementwise.of_first,
    "CenterCropPad": layout.crop,
    "Col2Im": layout.image,
    "Compress": along(),
    "Concat": layout.concat,
    "Conv": windows.convolution,
    "ConvInteger": windows.convolution,
    "ConvTranspose": windows.transposed_convolution,
    "CumProd": elementwise.cumulative,
    "CumSum": elementwise.cumulative,
    "DFT": reductions.fourier,
    # Batch alone: each part of the output channels would interpolate all samples.
    "DeformConv": named("n...", "", "n...", "", "n...", out="n..."),
    "DepthToSpace": layout.depth_to_space,
    "DequantizeLinear": elementwise.quantise,
    "Det": reductions.determinant,
    "Dropout": elementwise.dropout,
    "Einsum": products.einsum,
    "Expand": layout.expand,
    "Flatten": layout.reshape,
    "GRU": attention.recurrent,
    "Gather": reductions.gather,
    "GatherElements": reductions.gather_elements,
    "GatherND": reductions.gather_nd,
    "Gemm": products.gemm,
    "GlobalAveragePool": windows.whole_pool,
    "GlobalLpPool": windows.whole_pool,
    "GlobalMaxPool": windows.whole_pool,
    "GridSample": windows.sampled,
    "GroupNormalization": elementwise.groups,
    "Hardmax": elementwise.softmax,
    "InstanceNormalization": elementwise.instances,
    "LRN": but(1),
    "LSTM": attention.recurrent,
    "LayerNormalization": elementwise.normalised,
    "LogSoftmax": elementwise.softmax,
    "LpNormalization": along(-1),
    "LpPool": windows.pool,
    "MatMul": products.matmul,
    "MatMulInteger": products.matmul_integer,
    "MaxPool": windows.pool,
    "MaxRoiPool": named(".c..", "r.", out="rc.."),
    "MeanVarianceNormalization": elementwise.mean_variance,
    "OneHot": reductions.one_hot,
    "PRelu": elementwise.prelu,
    "Pad": layout.pad,
    "QLinearConv": windows.convolution,
    "QLinearMatMul": products.qlinear_matmul,
    "QuantizeLinear": elementwise.quantise,
    "RMSNormalization": elementwise.normalised,
    "RNN": attention.recurrent,
    "Reshape": layout.reshape,
    "Resize": layout.resize,
    "ReverseSequence": reductions.reverse_sequence,
    "RoiAlign": named(".c..", "r.", "r", out="rc.."),
    "RotaryEmbedding": attention.rotary,
    "STFT": named("b..", out="b..."),
    "Scatter": reductions.scatter_elements,
    "ScatterElements": reductions.scatter_elements,
    "ScatterND": reductions.scatter_nd,
    "SimplifiedLayerNormalization": elementwise.normalised,
    "Slice": layout.cut_out,
    "Softmax": elementwise.softmax,
    "SpaceToDepth": layout.space_to_depth,
    "Split": layout.split,
    "Squeeze": layout.reshape,
    "TensorScatter": reductions.tensor_scatter,
    "Tile": layout.tile,
    "TopK": along(-1),
    "Transpose": layout.transpose,
    "Trilu": layout.triangle,
    "Unsqueeze": layout.reshape,
    "Upsample": layout.resize,
}
_MICROSOFT: dict[str, Rule] = {
    "Attention": attention.projected,
    "BiasAdd": elementwise.broadcast,
    "BiasGelu": elementwise.broadcast,
    "DequantizeLinear": elementwise.quantise,
    "DynamicQuantizeMatMul": products.dynamic_matmul,
    "EmbedLayerNormalization": named(
        "b.", "b.", "", "", "", "", "", "b.", "b.", out=("b..", "b", "b..")
    ),
    "FastGelu": elementwise.broadcast,
    "FusedConv": windows.convolution,
    "FusedGemm": products.gemm,
    "FusedMatMul": products.fused_matmul,
    "GatherBlockQuantized": reductions.gather_block_quantised,
    "Gelu": elementwise.broadcast,
    "GroupNorm": named("n...", out="n..."),
    "GroupQueryAttention": attention.grouped_heads,
    "MatMulBnb4": products.packed_matmul,
    "MatMulIntegerToFloat": products.matmul_to_float,
    "MatMulNBits": products.nbits_matmul,
    "MultiHeadAttention": attention.many_heads,
    "QAttention": attention.projected,
    "QLinearAdd": elementwise.broadcast,
    "QLinearLeakyRelu": elementwise.of_first,
    "QLinearMul": elementwise.broadcast,
    "QLinearSigmoid": elementwise.of_first,
    "QuantizeLinear": elementwise.quantise,
    "QuickGelu": elementwise.broadcast,
    "RotaryEmbedding": attention.rotary,
    "SimplifiedLayerNormalization": elementwise.normalised,
    "SkipLayerNormalization": elementwise.normalised,
    "SkipSimplifiedLayerNormalization": elementwise.normalised,
    "TransposeMatMul": products.fused_matmul,
}
RULES = {
    **{("", name): rule for name, rule in _STANDARD.items()},
    **{(MICROSOFT, name): rule for name, rule in _MICROSOFT.items()},
}
