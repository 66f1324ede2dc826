"""No model is changed by a run, whatever its forward edits, replaces, installs or raises."""

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracer
from tests.builders.comparing import agreed
from tests.builders.module_zoo import LIBRARY, ZOO, Contents, X, Zoo, made, photograph
from tracer.cli import main
from tracer.errors import ModelRunError, TracerError, UsageError
from tracer.execution.edited_parameters import may_edit_parameters
from tracer.execution.module_state import ModuleStates, module_states_kept


def compared(**options: Any) -> Callable[[nn.Module, Path], object]:
    return lambda model, _: tracer.compare(model, copy.deepcopy(model), X, **options)


def with_itself(model: nn.Module, _: Path) -> object:
    return agreed(model, model, X)


def recorded(model: nn.Module, folder: Path) -> object:
    return tracer.record(model, X, folder / "run.trace")


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize(
    "look",
    [compared(), compared(noise_floor=True), compared(isolate="leaves"), with_itself, recorded],
    ids=["compare", "noise floor", "isolate", "with itself", "record"],
)  # fmt: skip
def test_nothing_of_a_model_changes(kind, look, tmp_path):
    model = made(kind)
    before = photograph(model)
    look(model, tmp_path)
    assert photograph(model) == before


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("make", LIBRARY.values(), ids=LIBRARY)
def test_modules_of_pytorch_stay_as_they_were(make, training):
    torch.manual_seed(0)
    model = make().train(training)
    before = photograph(model)
    x = torch.randn(2, 4)
    tracer.compare(model, copy.deepcopy(model), (x,), train=training)
    assert photograph(model) == before
    assert tracer.compare(model, model, (x,), train=training).verdict.agrees
    assert photograph(model) == before


def test_hooks_of_every_kind_stay() -> None:
    model = made(Zoo)
    model.register_forward_pre_hook(lambda *_: None)
    model.a.register_forward_hook(lambda *_: None, always_call=True)
    model.a.register_full_backward_hook(lambda *_: None)
    model.a.register_full_backward_pre_hook(lambda *_: None)
    model.register_state_dict_post_hook(lambda *_: None)
    before = photograph(model)
    tracer.compare(model, copy.deepcopy(model), X, isolate="leaves", what_if=1)
    tracer.compare(model, copy.deepcopy(model), X, zoom="")
    assert photograph(model) == before


@pytest.mark.parametrize("raised", [ValueError, SystemExit, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_nothing_changes_where_a_side_raises(raised: type[BaseException], side: str) -> None:
    class Raising(Contents):
        def forward(self, x: Tensor) -> Tensor:
            self.change()
            self.a(x)
            raise raised("no")

    models = [made(Raising), made(Zoo)][:: 1 if side == "reference" else -1]
    before = photograph(models[0]), photograph(models[1])
    with pytest.raises((TracerError, KeyboardInterrupt)) as info:
        tracer.compare(*models, X)
    assert (photograph(models[0]), photograph(models[1])) == before
    if raised is not KeyboardInterrupt:
        assert isinstance(info.value, ModelRunError)
        assert f"the {side} raised {raised.__name__} in its own forward" in str(info.value)


class Leaves(nn.Module):
    def __init__(self, stop: Callable[[], object]) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.stop = stop
        self.a.register_forward_hook(lambda *_: stop())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y


def test_a_hook_of_the_users_that_exits_names_its_module(tmp_path: Path) -> None:
    with pytest.raises(ModelRunError, match="SystemExit in module 'a'"):
        tracer.record(Leaves(lambda: sys.exit(0)), X, tmp_path / "run.trace")


@pytest.mark.parametrize(("stop", "code"), [("sys.exit(0)", 2), ("raise KeyboardInterrupt", 130)])
@pytest.mark.parametrize("where", ["forward", "factory"])
def test_the_exit_code_is_ours(stop, code, where, tmp_path, capsys):
    file = tmp_path / "made.py"
    file.write_text(
        "import sys, torch\n"
        "class M(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        f"        {stop}\n"
        "def build():\n"
        f"    {stop if where == 'factory' else 'pass'}\n"
        "    return M(2, 2), {'x': torch.ones(1, 2)}\n"
    )
    assert main(["compare", f"{file}:build", "--candidate", f"{file}:build"]) == code
    if code == 2:
        assert "SystemExit" in capsys.readouterr().err


def test_what_forward_switches_on_is_off_again(tmp_path: Path) -> None:
    class Switches(Zoo):
        def change(self) -> None:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(True)
            torch.set_autocast_enabled("cpu", True)

    for look in (recorded, compared()):
        look(made(Switches), tmp_path)
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_modules_inside_a_transform_are_refused() -> None:
    class Mapped(Zoo):
        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(self.a)(x)

    with pytest.raises(UsageError, match="`a` is called inside a transform"):
        tracer.compare(made(Mapped), made(Mapped), X)


def test_the_fused_path_of_an_encoder_layer_is_kept(tmp_path: Path) -> None:
    layer = made(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))  # type: ignore[arg-type]
    src = torch.randn(1, 3, 8)
    with torch.no_grad():
        plain = layer(src)
    tracer.record(layer, {"src": src}, tmp_path / "run.trace")
    comparison = agreed(tracer.open_trace(tmp_path / "run.trace"), layer)
    assert "self_attn" in comparison.coverage.reference_only
    both = tracer.compare(layer, copy.deepcopy(layer), {"src": src})
    assert "self_attn" in both.coverage.reference_only
    assert "--inside (inside=True)" in both.coverage.reasons["self_attn"]
    opened = tracer.compare(layer, copy.deepcopy(layer), {"src": src}, inside=True)
    assert "self_attn" in opened.coverage.paired_modules
    assert opened.coverage.opened == ("",)
    assert "the numbers are those of the other path" in str(opened.coverage)
    with torch.no_grad():
        assert torch.equal(layer(src), plain)


def test_two_threads_compare_one_model() -> None:
    model, other = made(Contents), made(Contents)
    before = photograph(model)
    found: list[bool] = []

    def look() -> None:
        found.extend(tracer.compare(model, other, X).verdict.agrees for _ in range(3))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, photograph(model)) == ([True] * 6, before)


def test_parameters_are_copied_only_where_they_may_be_edited() -> None:
    assert [kind.__name__ for kind in ZOO if may_edit_parameters(made(kind))] == [
        "Scaled",
        "Grows",
        "AllGrow",
    ]


def test_states_are_put_back_after_an_exception() -> None:
    model = made(Contents)
    before = photograph(model)
    with pytest.raises(ValueError, match="no"), module_states_kept([model]), torch.no_grad():
        model(**X)
        raise ValueError("no")
    assert photograph(model) == before
    states = ModuleStates.read(list(model.modules()))
    with torch.no_grad():
        model(**X)
    states.write()
    assert photograph(model) == before


def test_what_modules_keep_is_put_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Identity()).train()
    model[1].register_buffer("steps", torch.zeros(1))
    model[1].kept = before = [1]
    norm = model[0].running_mean.clone()
    with module_states_kept([model]):
        model(torch.ones(4, 3))
        model[1].steps += 1
        model[1].kept, model[1].new = [2], 3
    assert torch.equal(model[0].running_mean, norm)
    assert int(model[0].num_batches_tracked) == int(model[1].steps) == 0
    assert model[1].kept is before
    assert not hasattr(model[1], "new")
