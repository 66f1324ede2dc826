"""Both packages under one name, for programs in which `tracer` or `wrappers` means something else.

>>> import trace_model as tm
>>> tm.tracer.compare(reference, candidate, inputs)
>>> from trace_model import tracer as model_tracer

They are the modules that `import tracer` and `import wrappers` give, each imported when it is first
used, and always those beside this package, whatever else of that name comes first on `sys.path`.
One process has room for one module of a name: where another was imported before, an ImportError
says so. What both packages are built on, and neither owns, is beside it: `annotations` and `plots`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tracer as tracer
    import wrappers as wrappers

__all__ = ["tracer", "wrappers"]

_HOME = Path(__file__).resolve().parents[1]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = globals()[name] = _own(name)
    return module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _own(name: str) -> ModuleType:
    """Our package of a name; an ImportError where another took its place."""
    home = _HOME / name / "__init__.py"
    found = sys.modules.get(name)
    if found is None:
        return _imported(name, home)
    if found.__spec__ is None or Path(found.__spec__.origin or "").resolve() != home:
        place = next(iter(getattr(found, "__path__", [])), getattr(found, "__file__", "elsewhere"))
        raise ImportError(
            f"another module named {name!r} was imported before trace_model.{name}, from {place}, "
            "and a process has room for one: import trace_model's first, rename the other, or run "
            "trace_model in a process of its own",
            name=name,
        )
    return found


def _imported(name: str, home: Path) -> ModuleType:
    spec = spec_from_file_location(name, home, submodule_search_locations=[str(home.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
