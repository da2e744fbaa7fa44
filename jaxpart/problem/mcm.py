"""The multi-chip module (MCM): chips, links, and the rules that a partition must keep.

Definitions: `jaxpart/README.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from jaxpart import errors
from jaxpart.files import MIB, kind_of_content, read_bytes, without_mark
from jaxpart.problem.limits import ELEMENT_RANGE, MAX_CHIPS, RATE_RANGE

_MAX_TOML_BYTES = MIB
_MAX_TOML_LINE = 10_000  # the parser takes the square of the length of a dotted key

Topology = Literal["chain", "host", "mesh"]
MemoryModel = Literal["full", "weights"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip. All fields are positive, within `RATE_RANGE`; `MCM` checks this."""

    peak_flops: float  # FLOP/s
    sram_bandwidth: float  # bytes/s
    sram_bytes: float  # capacity
    speed: float = 1.0  # relative; divides the time of every node

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, float(getattr(self, field.name)))


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Which rules of the hardware are on."""

    acyclic: bool = True  # data flows to the same or a higher chip
    no_skip: bool = True  # the chips in use are 0 to the highest one in use
    triangle: bool = True  # no edge a -> b of the chip graph has a longer path from a to b as well
    memory: bool = True  # each chip needs at most its SRAM capacity


@dataclasses.dataclass(frozen=True)
class MCM:
    """A module of C chips. It is immutable and hashable; the constructor checks it.

    Attributes:
      name: for tables and file names.
      topology: one of
        - `chain`: the links are c -> c + 1;
        - `host`: every transfer goes through host memory, and each chip's own port is the only
          limit;
        - `mesh`: chip = row * cols + col; a route changes the column first, then the row.
      chips: [C] in chip order.
      link_bandwidth: bytes/s of each link and of each chip's port.
      overlap: whether a chip computes, receives and sends at the same time.
      memory_model: `full`, or `weights` (only weights count).
      constraints: which rules are on.
      element_bytes: size of one element in the module's arithmetic, in bytes; a graph is rescaled
        to it. None: the byte counts of a graph are used unchanged.
      rows: of a mesh; None for other topologies.
      cols: of a mesh; None for other topologies.

    Raises:
      MCMError: a field is wrong; the message names it and what was expected.
    """

    name: str
    topology: Topology
    chips: tuple[Chip, ...]
    link_bandwidth: float
    overlap: bool = True
    memory_model: MemoryModel = "full"
    constraints: Constraints = Constraints()
    element_bytes: float | None = None
    rows: int | None = None
    cols: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "chips", tuple(self.chips))
        object.__setattr__(self, "link_bandwidth", float(self.link_bandwidth))
        if self.topology not in ("chain", "host", "mesh"):
            raise errors.MCMError(
                f"topology is {self.topology!r}, expected 'chain', 'host' or 'mesh'"
            )
        if self.memory_model not in ("full", "weights"):
            raise errors.MCMError(
                f"memory_model is {self.memory_model!r}, expected 'full' or 'weights'"
            )
        if not self.chips:
            raise errors.MCMError("the module has no chips, expected at least one")
        if len(self.chips) > MAX_CHIPS:
            raise errors.MCMError(
                f"the module has {len(self.chips):,} chips, expected at most {MAX_CHIPS:,}"
            )
        for c, chip in enumerate(self.chips):
            for field in dataclasses.fields(chip):
                _check_positive(getattr(chip, field.name), f"chip {c}: {field.name}")
        _check_positive(self.link_bandwidth, "links: bandwidth")
        if self.element_bytes is not None:
            _check_positive(self.element_bytes, "element_bytes", ELEMENT_RANGE)
        self._check_mesh()
        rules = self.constraints
        if not rules.acyclic and (rules.triangle or self.topology == "chain"):
            needs = "the triangle rule" if rules.triangle else "a chain"
            raise errors.MCMError(
                f"constraints: acyclic is false, but {needs} needs it; expected acyclic = true"
            )

    def _check_mesh(self) -> None:
        if self.topology != "mesh":
            if self.rows is not None or self.cols is not None:
                raise errors.MCMError("rows and cols belong to a mesh, expected none here")
            return
        if self.rows is None or self.cols is None:
            raise errors.MCMError("a mesh needs both rows and cols")
        if self.rows < 1 or self.cols < 1 or self.rows * self.cols != self.num_chips:
            raise errors.MCMError(
                f"rows * cols is {self.rows} * {self.cols}, expected {self.num_chips}, the number "
                "of chips"
            )

    @property
    def num_chips(self) -> int:
        """C: the number of chips."""
        return len(self.chips)

    @functools.cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """[L] the links as (from, to) pairs of chips, ascending; none on the host topology."""
        if self.topology == "host":
            return ()
        if self.topology == "chain":
            return tuple((c, c + 1) for c in range(self.num_chips - 1))
        rows, cols = self.rows or 1, self.cols or 1
        pairs = []
        for row, col in itertools.product(range(rows), range(cols)):
            chip = row * cols + col
            if col + 1 < cols:
                pairs += [(chip, chip + 1), (chip + 1, chip)]
            if row + 1 < rows:
                pairs += [(chip, chip + cols), (chip + cols, chip)]
        return tuple(sorted(pairs))

    def route(self, source: int, target: int) -> tuple[tuple[int, int], ...]:
        """The links that a transfer between two chips uses, in order.

        Args:
          source: chip that sends.
          target: chip that receives; on a chain not lower than `source`.

        Returns:
          (from, to) pairs of chips, as in `links`; none on the host topology.
        """
        if self.topology == "host":
            return ()
        if self.topology == "chain":
            return tuple((c, c + 1) for c in range(source, target))
        cols = self.cols or 1
        stops = [source]
        while stops[-1] % cols != target % cols:
            stops.append(stops[-1] + (1 if stops[-1] % cols < target % cols else -1))
        while stops[-1] != target:
            stops.append(stops[-1] + (cols if stops[-1] < target else -cols))
        return tuple(itertools.pairwise(stops))

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the module without its name."""
        description = {k: v for k, v in self.description().items() if k != "name"}
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """The description with the keys of a TOML file; every default is written out."""
        chips = [
            {"count": len(list(group)), **dataclasses.asdict(chip)}
            for chip, group in itertools.groupby(self.chips)
        ]
        element_bytes = None if self.element_bytes is None else float(self.element_bytes)
        optional = {"element_bytes": element_bytes, "rows": self.rows, "cols": self.cols}
        return {
            "name": self.name,
            "topology": self.topology,
            "overlap": self.overlap,
            "memory_model": self.memory_model,
            **{key: value for key, value in optional.items() if value is not None},
            "constraints": dataclasses.asdict(self.constraints),
            "chips": chips,
            "links": {"bandwidth": self.link_bandwidth},
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MCM:
        """Reads a module's TOML file.

        Raises:
          InputError: the file cannot be read.
          FileFormatError: the file breaks the schema.
          MCMError: the description is inconsistent; the message begins with the path.
        """
        file = _decode_toml(read_bytes(path, _MAX_TOML_BYTES), path)
        try:
            return file.resolve()
        except errors.MCMError as error:
            raise errors.MCMError(f"{path}: {error}") from error


class _ChipTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peak_flops: float
    sram_bandwidth: float
    sram_bytes: float
    speed: float = 1.0
    count: int = 1


class _LinksTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bandwidth: float


class _ConstraintsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    acyclic: bool = True
    no_skip: bool = True
    triangle: bool = True
    memory: bool = True


class MCMFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema of a module's description, in a TOML file and in a result file."""

    name: str
    topology: Topology
    overlap: bool
    chips: tuple[_ChipTable, ...]
    links: _LinksTable
    memory_model: MemoryModel = "full"
    constraints: _ConstraintsTable = _ConstraintsTable()
    element_bytes: float | None = None
    rows: int | None = None
    cols: int | None = None

    def resolve(self) -> MCM:
        """The module with this description.

        Raises:
          MCMError: the description is inconsistent.
        """
        chips: list[Chip] = []
        for position, table in enumerate(self.chips):
            room = MAX_CHIPS - len(chips)
            if not 1 <= table.count <= room:
                raise errors.MCMError(
                    f"chips table {position}: count is {table.count}, expected 1 or more, and at "
                    f"most {MAX_CHIPS:,} chips in all"
                )
            chip = Chip(table.peak_flops, table.sram_bandwidth, table.sram_bytes, table.speed)
            chips += [chip] * table.count
        return MCM(
            self.name,
            self.topology,
            tuple(chips),
            self.links.bandwidth,
            self.overlap,
            self.memory_model,
            Constraints(**msgspec.structs.asdict(self.constraints)),
            self.element_bytes,
            self.rows,
            self.cols,
        )


# The chips and links of the presets.
_CHIP = Chip(peak_flops=4e12, sram_bandwidth=200e9, sram_bytes=32 * 2**20)
_BIG_CHIP = dataclasses.replace(_CHIP, sram_bytes=64 * 2**20, speed=2.0)
_LINK_BANDWIDTH = 8e9  # bytes/s


def _chain(count: int) -> MCM:
    return MCM(f"mcm{count}", "chain", (_CHIP,) * count, _LINK_BANDWIDTH, element_bytes=1)


def _mesh() -> MCM:
    chips = (_CHIP,) * 36
    return MCM("mesh6x6", "mesh", chips, _LINK_BANDWIDTH, element_bytes=1, rows=6, cols=6)


def _two_kinds() -> MCM:
    chips = (_BIG_CHIP,) * 4 + (_CHIP,) * 12
    return MCM("mixed16", "chain", chips, _LINK_BANDWIDTH, element_bytes=1)


PRESETS: dict[str, Callable[[], MCM]] = {
    "mcm4": lambda: _chain(4),
    "mcm8": lambda: _chain(8),
    "mcm36": lambda: _chain(36),
    "mcm64": lambda: _chain(64),
    "mesh6x6": _mesh,
    "mixed16": _two_kinds,
}


def load_mcm(name_or_path: str | os.PathLike[str]) -> MCM:
    """Loads a preset by its name, or a module from a TOML file.

    Raises:
      InputError: there is no such preset or readable file, or the file is wrong (see `MCM.load`).
    """
    name = os.fspath(name_or_path)
    if name in PRESETS:
        return PRESETS[name]()
    if not os.path.exists(name) and not name.endswith(".toml"):
        raise errors.InputError(
            f"{name!r} is neither a module ({', '.join(PRESETS)}) nor a TOML file"
        )
    return MCM.load(name)


def _decode_toml(content: bytes, path: str | os.PathLike[str]) -> MCMFile:
    """Decodes a module's TOML.

    Raises:
      FileFormatError: the content is no TOML in UTF-8, or breaks the schema.
    """
    if max(map(len, content.split(b"\n"))) > _MAX_TOML_LINE:
        raise errors.FileFormatError(
            f"{path}: a line is longer than {_MAX_TOML_LINE:,} bytes, expected a module"
        )
    try:
        return msgspec.toml.decode(without_mark(content), type=MCMFile)
    except UnicodeDecodeError as error:
        found = kind_of_content(content) or f"no utf-8 text ({error.reason})"
        raise errors.FileFormatError(f"{path}: is {found}, expected TOML in UTF-8") from error
    except RecursionError as error:
        raise errors.FileFormatError(f"{path}: is nested too deep, expected a module") from error
    except msgspec.DecodeError as error:
        if found := kind_of_content(content):
            raise errors.FileFormatError(f"{path}: is {found}, expected TOML in UTF-8") from error
        known = f"; expected {', '.join(MCMFile.__struct_fields__)}" if _is_misspelt(error) else ""
        raise errors.FileFormatError(f"{path}: {error}{known}") from error
    except ValueError as error:  # of Python's parser
        raise errors.FileFormatError(
            f"{path}: a number has thousands of digits, expected fewer"
        ) from error


def _is_misspelt(error: msgspec.DecodeError) -> bool:
    """Whether the outermost table has an unknown field."""
    return "unknown field" in str(error) and " - at " not in str(error)


def _check_positive(value: float, where: str, limits: tuple[float, float] = RATE_RANGE) -> None:
    low, high = limits
    if not low <= value <= high:
        raise errors.MCMError(
            f"{where} is {value}, expected a positive, finite number, {low:g} to {high:g}"
        )
