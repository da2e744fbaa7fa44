"""A partition taken away: `jaxpart.export(...)`, and the folder of stages that it writes.

The package itself can be called, since it has the name of its one public function.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpart.results.result import Result


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> "Result":
        """As `jaxpart.export.targets.export`."""
        from jaxpart.export.targets import export

        return export(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
