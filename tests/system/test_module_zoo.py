"""Modules of more than sixty kinds are what they were after everything that runs them."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.builders.module_zoo import MODULES, X, made, photograph, settings
from tracer.errors import ModelRunError, UsageError

pytestmark = pytest.mark.slow

Look = Callable[[nn.Module, nn.Module, Path], object]


def raising(raised: type[BaseException], side: int) -> Look:
    def look(model: nn.Module, other: nn.Module, _: Path) -> None:
        handle = (model, other)[side].register_forward_hook(lambda *_: raise_(raised))
        try:
            with pytest.raises((ModelRunError, KeyboardInterrupt)):
                tracer.compare(model, other, X["x"])
        finally:
            handle.remove()

    return look


def raise_(raised: type[BaseException]) -> None:
    raise raised("no")


def quit_debugger(model: nn.Module, other: nn.Module, _: Path) -> None:
    tracer.compare(model, other, X["x"], breakpoints="*", debugger="pdb")


def compared(**options: object) -> Look:
    return lambda model, other, _: tracer.compare(model, other, X["x"], **options)  # type: ignore[arg-type]


LOOKS: dict[str, Look] = {
    "compare": compared(),
    "with itself": lambda model, _, __: tracer.compare(model, model, X["x"]),
    "inside": compared(inside=True),
    "noise floor": compared(noise_floor=True),
    "isolate": compared(isolate="leaves"),
    "what-if": compared(what_if=1),
    "zoom": compared(zoom=""),
    "record": lambda model, _, path: tracer.record(model, X["x"], path / "run.trace"),
    "debugger quit": quit_debugger,
    **{
        f"{raised.__name__} in the {name}": raising(raised, side)
        for raised in (ValueError, SystemExit, KeyboardInterrupt)
        for side, name in enumerate(("reference", "candidate"))
    },
}


def test_there_are_enough() -> None:
    assert len(MODULES) >= 60


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_nothing_changes(
    make: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Answers())
    for name, look in LOOKS.items():
        model = made(make)  # type: ignore[arg-type]
        other = copy.deepcopy(model)
        before = photograph(model), photograph(other), settings()
        folder = tmp_path / name
        folder.mkdir()
        try:
            look(model, other, folder)
        except UsageError:
            assert name == "zoom"  # into a fused layer; nothing is changed then either
        assert (photograph(model), photograph(other)) == before[:2], name
        assert settings() == before[2], name
        assert not torch.is_inference_mode_enabled()


class Answers:
    """A user who quits whatever is asked."""

    def readline(self) -> str:
        return "q\n"

    def isatty(self) -> bool:
        return False
