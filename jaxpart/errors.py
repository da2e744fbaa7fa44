"""The errors that jaxpart raises on purpose.

A caller handles three kinds differently:

- `InputError`: the input is wrong (exit code 2 on the command line).
- `InfeasibleError`: the input is correct but has no valid partition (exit code 1).
- `NothingFoundError`: the search found no valid partition in its budget (exit code 1).

Every message of an `InputError` names the place (file, node, field) and what was expected there.
Every message is one printable line of bounded length, whatever the names and paths in it.
"""

from jaxpart.text import one_line


class JaxpartError(Exception):
    """Base of every error that jaxpart raises on purpose."""

    def __init__(self, message: str = "") -> None:
        """Takes the message; what is not printable in it is escaped."""
        super().__init__(one_line(message))


class InputError(JaxpartError, ValueError):
    """The input cannot be used as it is."""


class FileFormatError(InputError):
    """A file does not follow its format; the message names the file and the place in it."""


class GraphError(InputError):
    """A graph breaks a rule of its own."""


class EmptyGraphError(GraphError):
    """A graph has no nodes."""


class DuplicateNameError(GraphError):
    """Two nodes share a name."""


class CostError(GraphError):
    """A node, tensor or weight has a negative or non-finite cost."""


class UnknownNodeError(GraphError):
    """A tensor or weight names a node that does not exist."""


class CycleError(GraphError):
    """The edges form a cycle."""


class OrderError(GraphError):
    """The nodes are not numbered in a topological order."""


class DivisionError(GraphError):
    """A way to divide a node contradicts the graph."""


class PinError(GraphError):
    """A fixed chip (`pin`) is not a chip number, or two in one colocation group differ."""


class SharedDrawError(InputError):
    """Two chips would draw the same random numbers."""


class MCMError(InputError):
    """The description of a module is inconsistent."""


class InfeasibleError(JaxpartError):
    """No valid partition exists; the message says why."""


class NothingFoundError(JaxpartError):
    """The budget ran out before a valid partition was found; one may exist."""
