"""Data, tasks, loop and command line: knows models only through zoo.module.

The names below are public, for authors of tasks (docs/api.md); `__init__.pyi` declares them for static
checkers.
"""

from zoo.lazy import lazy_names as _lazy_names

_MODULES = {
    "Dataset": "zoo.train.tasks.base",
    "SampleTask": "zoo.train.tasks.base",
    "Task": "zoo.train.tasks.base",
    "sample_rng": "zoo.train.tasks.base",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = _lazy_names(__name__, _MODULES)
