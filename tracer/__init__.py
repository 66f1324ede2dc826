"""Finds where two PyTorch models that should agree stop agreeing, and why.

>>> comparison = tracer.compare(reference, candidate, {"input_ids": ids})
>>> comparison.show()
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer import models
    from tracer.adapters.opening import open_graph
    from tracer.comparison.capturing import Captured, capture
    from tracer.comparison.options import Debugging, Isolate
    from tracer.comparison.result import Comparison
    from tracer.comparison.run import compare
    from tracer.debugger.breakpoints import Breakpoint
    from tracer.diagnosis.finding import Origin
    from tracer.diagnosis.verdict import Symptom, Verdict
    from tracer.errors import (
        InputError,
        ModelLoadError,
        ModelRunError,
        NotEquivalentError,
        NothingComparedError,
        ShapeMismatchError,
        StorageError,
        TracerError,
        UsageError,
    )
    from tracer.execution.stepping import Stepped, Stepping
    from tracer.isolation.causes import Cause
    from tracer.isolation.result import (
        IsolatedCall,
        IsolatedGroup,
        IsolatedModule,
        IsolatedPoint,
        Isolation,
        Recovery,
    )
    from tracer.measurement.coverage import Coverage
    from tracer.measurement.rows import FormDifference, Row
    from tracer.regression.baseline import Baseline
    from tracer.regression.gating import gate
    from tracer.regression.result import Gate
    from tracer.reports.narrator import explain
    from tracer.tensors.difference import Difference
    from tracer.tensors.roles import Roles
    from tracer.tensors.tolerance import Tolerance
    from tracer.testing.equivalence import assert_equivalent
    from tracer.traces.dataflow import Flow, flow
    from tracer.traces.recorded import Recorded, open_trace
    from tracer.traces.recording import Recording, record

__version__ = "0.1.0"

__all__ = [
    "Baseline",
    "Breakpoint",
    "Captured",
    "Cause",
    "Comparison",
    "Coverage",
    "Debugging",
    "Difference",
    "Flow",
    "FormDifference",
    "Gate",
    "InputError",
    "Isolate",
    "IsolatedCall",
    "IsolatedGroup",
    "IsolatedModule",
    "IsolatedPoint",
    "Isolation",
    "ModelLoadError",
    "ModelRunError",
    "NotEquivalentError",
    "NothingComparedError",
    "Origin",
    "Recorded",
    "Recording",
    "Recovery",
    "Roles",
    "Row",
    "ShapeMismatchError",
    "Stepped",
    "Stepping",
    "StorageError",
    "Symptom",
    "Tolerance",
    "TracerError",
    "UsageError",
    "Verdict",
    "assert_equivalent",
    "capture",
    "compare",
    "explain",
    "flow",
    "gate",
    "models",
    "open_graph",
    "open_trace",
    "record",
]

# Where each public name lives. They are imported when first used, so that `trace_model --help`
# does not wait for PyTorch.
_ROOMS = {
    "adapters.opening": ("open_graph",),
    "regression.baseline": ("Baseline",),
    "comparison.capturing": ("Captured", "capture"),
    "comparison.options": ("Debugging", "Isolate"),
    "comparison.result": ("Comparison",),
    "comparison.run": ("compare",),
    "measurement.coverage": ("Coverage",),
    "debugger.breakpoints": ("Breakpoint",),
    "tensors.difference": ("Difference",),
    "tensors.roles": ("Roles",),
    "tensors.tolerance": ("Tolerance",),
    "testing.equivalence": ("assert_equivalent",),
    "errors": (
        "InputError",
        "ModelLoadError",
        "ModelRunError",
        "NotEquivalentError",
        "NothingComparedError",
        "ShapeMismatchError",
        "StorageError",
        "TracerError",
        "UsageError",
    ),
    "traces.dataflow": ("Flow", "flow"),
    "regression.gating": ("gate",),
    "regression.result": ("Gate",),
    "reports.narrator": ("explain",),
    "isolation.result": (
        "IsolatedCall",
        "IsolatedGroup",
        "IsolatedModule",
        "IsolatedPoint",
        "Isolation",
        "Recovery",
    ),
    "diagnosis.finding": ("Origin",),
    "traces.recorded": ("Recorded", "open_trace"),
    "traces.recording": ("Recording", "record"),
    "measurement.rows": ("FormDifference", "Row"),
    "execution.stepping": ("Stepped", "Stepping"),
    "isolation.causes": ("Cause",),
    "diagnosis.verdict": ("Symptom", "Verdict"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "models":
        return import_module("tracer.models")
    if name in _ROOM_OF:
        value = getattr(import_module(f"tracer.{_ROOM_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tracer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
