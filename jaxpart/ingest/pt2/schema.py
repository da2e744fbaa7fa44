"""The parts of torch's schema of exported programs that a graph needs, as msgspec reads them.

A union of torch is a mapping with one key; here it is a record of which one field is set.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from jaxpart.errors import FileFormatError


class Union(Struct):
    """A record of which one field is set."""

    def only(self, where: str) -> tuple[str, Any]:
        """Name and value of the field that is set.

        Raises:
          FileFormatError: none of those that are known is set, or several.
        """
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        found = [(name, value) for name, value in values if value is not UNSET]
        if len(found) != 1:
            raise FileFormatError(
                f"{where}: a value of {len(found)} kinds, expected one known kind"
            )
        return found[0]


class Expression(Struct):
    """A size that hangs on symbols, and what it was when the program was exported."""

    expr_str: str
    hint: dict[str, Any] | None = None


class Size(Union):
    """Extent of an axis."""

    as_int: int | UnsetType = UNSET
    as_expr: Expression | UnsetType = UNSET


class TensorMeta(Struct):
    """Type and shape of a tensor: the number of its type, an extent for each axis."""

    dtype: int
    sizes: list[Size]


class Named(Struct):
    """A value of the graph."""

    name: str


class Symbol(Union):
    """A number, or the name of one that is computed."""

    as_name: str | UnsetType = UNSET
    as_int: int | UnsetType = UNSET
    as_float: float | str | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class Complex(Struct):
    """A complex number."""

    real: float
    imag: float


class SubGraph(Struct):
    """A graph that is an argument."""

    name: str
    graph: Graph


class Argument(Union):
    """An argument or result of an operator."""

    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_tensors: list[Named] | UnsetType = UNSET
    as_optional_tensor: Argument | UnsetType = UNSET
    as_optional_tensors: list[Argument] | UnsetType = UNSET
    as_nested_tensors: list[list[Named]] | UnsetType = UNSET
    as_int: int | UnsetType = UNSET
    as_ints: list[int] | UnsetType = UNSET
    as_int_lists: list[list[int]] | UnsetType = UNSET
    as_float: float | str | UnsetType = UNSET  # infinity is a text
    as_floats: list[float | str] | UnsetType = UNSET
    as_string: str | UnsetType = UNSET
    as_strings: list[str] | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_complex: Complex | UnsetType = UNSET
    as_sym_int: Symbol | UnsetType = UNSET
    as_sym_ints: list[Symbol] | UnsetType = UNSET
    as_sym_float: Symbol | UnsetType = UNSET
    as_sym_floats: list[Symbol] | UnsetType = UNSET
    as_sym_bool: Symbol | UnsetType = UNSET
    as_sym_bools: list[Symbol] | UnsetType = UNSET
    as_scalar_type: int | UnsetType = UNSET
    as_memory_format: int | UnsetType = UNSET
    as_layout: int | UnsetType = UNSET
    as_device: dict[str, Any] | UnsetType = UNSET
    as_graph: SubGraph | UnsetType = UNSET
    as_custom_obj: Named | UnsetType = UNSET
    as_token: Named | UnsetType = UNSET
    as_operator: str | UnsetType = UNSET


class NamedArgument(Struct):
    """An argument of an operator, by its name in torch's schema."""

    name: str
    arg: Argument


class Node(Struct):
    """One operator; arguments that have their default are left out."""

    target: str
    inputs: list[NamedArgument]
    outputs: list[Argument]
    name: str | None = None  # of the node of torch.fx; older archives name results alone


class Graph(Struct):
    """Operators in an order in which they can run, on values with names."""

    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class Spec(Struct):
    """What is said of an input or output of the graph."""

    parameter_name: str = ""
    buffer_name: str = ""
    tensor_constant_name: str = ""
    value: Argument | None = None


class Signature(Struct):
    """The kind of each input and output of the graph, with what is said of it: one key each."""

    input_specs: list[dict[str, Spec]]
    output_specs: list[dict[str, Spec]]


class GraphModule(Struct):
    """The graph and what its inputs and outputs are."""

    graph: Graph
    signature: Signature


class Version(Struct):
    """Of the schema."""

    major: int
    minor: int


class Program(Struct):
    """An exported program; keys that say nothing of the graph are left out."""

    graph_module: GraphModule
    schema_version: Version
