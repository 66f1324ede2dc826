"""The public surface of `tracer`, pinned; importing it costs nothing until a name is used."""

import importlib
import subprocess
import sys

import pytest

import tracer

PUBLIC = [
    "Baseline", "Breakpoint", "Captured", "Cause", "Comparison", "Coverage", "Debugging",
    "Difference", "Flow", "FormDifference", "Gate", "InputError", "Isolate", "IsolatedCall",
    "IsolatedGroup", "IsolatedModule", "IsolatedPoint", "Isolation", "ModelLoadError",
    "ModelRunError", "NotEquivalentError", "NothingComparedError", "Origin", "Recorded",
    "Recording", "Recovery", "Roles", "Row",
    "ShapeMismatchError", "Stepped", "Stepping", "StorageError", "Symptom", "Tolerance",
    "TracerError", "UsageError", "Verdict", "assert_equivalent", "capture", "compare", "explain",
    "flow", "gate", "models", "open_graph", "open_trace", "record",
]  # fmt: skip
ROOMS = [
    *("cli", "testing", "regression", "reports", "comparison", "isolation", "diagnosis"),
    *("diagnosis.zoom", "debugger", "interventions", "traces", "measurement", "models"),
    *(
        "models.inputs",
        "adapters",
        "execution",
        "tensors",
        "text",
        "environment",
        "errors",
        "choices",
    ),
]


def test_the_public_names() -> None:
    assert tracer.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_there(name: str) -> None:
    value = getattr(tracer, name)
    assert value is getattr(tracer, name)
    assert name in dir(tracer)
    if name != "models":
        assert value.__module__.startswith("tracer.")
        assert value.__doc__


def test_public_names_and_errors() -> None:
    for name in PUBLIC:
        if name.endswith("Error"):
            assert issubclass(getattr(tracer, name), tracer.TracerError)
    with pytest.raises(AttributeError, match="module 'tracer' has no attribute 'compar'"):
        tracer.compar  # noqa: B018
    names: dict[str, object] = {}
    exec("from tracer import *", names)
    assert set(PUBLIC) <= set(names)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    heavy = ("torch", "transformers", "numpy", "pandas", "rich", "plotext", "greenlet")
    program = f"""
import sys
import tracer, tracer.errors
assert "compare" in dir(tracer)
assert tracer.__version__
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@pytest.mark.slow
def test_the_rooms_may_be_imported_in_any_order() -> None:
    """Each room alone and first, in one fresh interpreter; torch stays, the rooms are forgotten."""
    program = f"""
import importlib, sys
import torch
for room in {ROOMS!r}:
    for name in [n for n in sys.modules if n == "tracer" or n.startswith("tracer.")]:
        del sys.modules[name]
    importlib.import_module(f"tracer.{{room}}")
    import tracer
    assert tracer.compare and tracer.Verdict and tracer.models
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_the_other_package_may_come_first() -> None:
    program = "import wrappers, tracer; assert wrappers.__all__ and tracer.compare"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_does(room: str) -> None:
    assert importlib.import_module(f"tracer.{room}").__doc__
