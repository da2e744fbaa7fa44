"""A program that parses a module in a process of its own, which may crash.

The module is on stdin. Exit code 0: it was parsed, and can be printed; `REFUSED`: the parser's
words are on stdout. It imports nothing but jaxlib's parser, so that it starts fast.
"""

import sys
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from jaxlib.mlir.dialects import chlo, mhlo, mpmd, sdy, stablehlo

REFUSED = 3


class _Context(ir.Context):
    """A context as JAX makes it: without the dialects that its own constructor loads."""

    def __init__(self) -> None:
        super(ir.Context, self).__init__()
        registry = ir.DialectRegistry()
        _jax_mlir_ext.register_dialects(registry)
        self.append_dialect_registry(registry)
        self.load_all_available_dialects()
        for dialect in (sdy, mpmd, chlo, stablehlo):
            dialect.register_dialect(self)
        mhlo.register_mhlo_dialect(self)


def main() -> int:
    """Parses and prints the module; returns the exit code."""
    content = sys.stdin.buffer.read()
    context = _Context()
    told: list[str] = []

    def note(diagnostic: Any) -> bool:
        try:
            told.append(f"{diagnostic.location}: {diagnostic.message}")
        except RuntimeError:  # of damaged bytecode it can quote bytes that are no text
            told.append("names that are no text")
        return True

    handler: Any = context.attach_diagnostic_handler(note)
    try:
        if sys.argv[1] == "portable":
            module = stablehlo.deserialize_portable_artifact(context, content)
        else:
            module = ir.Module.parse(content, context=context)
        # Names that are no text show where they are printed.
        module.operation.get_asm(large_elements_limit=1, enable_debug_info=True)
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        words = told[0] if told else first_error(str(error))
        sys.stdout.buffer.write(words.encode("utf-8", "backslashreplace"))
        return REFUSED
    finally:
        handler.detach()
    return 0


def first_error(text: str) -> str:
    """The parser's first error in what an exception says."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return lines[0].removeprefix("error: ") if lines else text.strip()


if __name__ == "__main__":
    sys.exit(main())
