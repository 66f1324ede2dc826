"""Finds where two PyTorch models that should agree stop agreeing, and why.

>>> comparison = tracer.compare(reference, candidate, {"input_ids": ids})
>>> comparison.show()
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer import models
    from tracer.baseline import Baseline
    from tracer.comparison import Captured, Comparison, capture, compare
    from tracer.coverage import Coverage
    from tracer.dataflow import Flow, flow
    from tracer.debugger import Breakpoint
    from tracer.difference import Difference, Tolerance
    from tracer.equivalence import assert_equivalent
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
    from tracer.gating import Gate, gate
    from tracer.isolation import IsolatedCall, IsolatedModule, Isolation, Recovery
    from tracer.origin import Origin
    from tracer.recorded import Recorded, open_trace
    from tracer.recording import Recording, record
    from tracer.rows import FormDifference, Row
    from tracer.stepping import Stepped, Stepping
    from tracer.switches import Cause
    from tracer.verdict import Symptom, Verdict

__version__ = "0.1.0"

__all__ = [
    "Baseline",
    "Breakpoint",
    "Captured",
    "Cause",
    "Comparison",
    "Coverage",
    "Difference",
    "Flow",
    "FormDifference",
    "Gate",
    "InputError",
    "IsolatedCall",
    "IsolatedModule",
    "Isolation",
    "ModelLoadError",
    "ModelRunError",
    "NotEquivalentError",
    "NothingComparedError",
    "Origin",
    "Recorded",
    "Recording",
    "Recovery",
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
    "flow",
    "gate",
    "models",
    "open_trace",
    "record",
]

# Where each public name lives. They are imported when first used, so that `trace_model --help`
# does not wait for PyTorch.
_ROOMS = {
    "baseline": ("Baseline",),
    "comparison": ("Captured", "Comparison", "capture", "compare"),
    "coverage": ("Coverage",),
    "debugger": ("Breakpoint",),
    "difference": ("Difference", "Tolerance"),
    "equivalence": ("assert_equivalent",),
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
    "dataflow": ("Flow", "flow"),
    "gating": ("Gate", "gate"),
    "isolation": ("IsolatedCall", "IsolatedModule", "Isolation", "Recovery"),
    "origin": ("Origin",),
    "recorded": ("Recorded", "open_trace"),
    "recording": ("Recording", "record"),
    "rows": ("FormDifference", "Row"),
    "stepping": ("Stepped", "Stepping"),
    "switches": ("Cause",),
    "verdict": ("Symptom", "Verdict"),
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
