"""What is called again to find causes, how often, and that it makes no difference to them."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

import tracer
import wrappers
from tracer.interventions.experiment import Experiment, Run
from tracer.isolation import trials
from tracer.isolation.result import Isolation

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
CALLS: Counter[str] = Counter()


class Part(nn.Linear):
    """A linear layer that adds something, which can be left out; its calls are counted."""

    def __init__(self, name: str, offset: float) -> None:
        super().__init__(6, 6)
        self.name, self.offset = name, offset

    def ablatable_points(self) -> dict[str, str]:
        return {"offset": "wrong offset"}

    @contextmanager
    def disabled(self, name: str) -> Iterator[None]:
        before, self.offset = self.offset, 0.0
        try:
            yield
        finally:
            self.offset = before

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        if self.name:
            CALLS[self.name] += 1
        return super().forward(input) + self.offset


class Layer(nn.Module):
    def __init__(self, name: str, first: float = 0.0, second: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = Part(f"{name}.first", first), Part(f"{name}.second", second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Model(nn.Module):
    def __init__(self, layer: type[nn.Module], *offsets: tuple[float, float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(str(i), *own) for i, own in enumerate(offsets))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def pair(layer: type[nn.Module] = Layer) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    candidate = Model(layer, (0.1, 0.2), (0.3, 0.1), (0.1, 0.1))
    reference = copy.deepcopy(candidate)
    for module in reference.modules():
        if isinstance(module, Part):
            module.offset, module.name = 0.0, ""
    return reference, candidate


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """The runs beside the comparison's own."""
    made = []

    def rerun(self: Experiment, *interventions: object, **options: object) -> Run:
        made.append(original(self, *interventions, **options))
        return made[-1]

    original = Experiment.rerun
    monkeypatch.setattr(Experiment, "rerun", rerun)
    CALLS.clear()
    return made


def isolation(
    models: tuple[nn.Module, nn.Module], level: str, *, inputs: object = X, **options: object
) -> Isolation:
    found = tracer.compare(*models, inputs, confirm=False, isolate=level, **options).isolation
    assert found is not None
    return found


@pytest.mark.covers
def test_of_a_layer_only_what_comes_after_a_switch_is_called_again(runs: list[Run]) -> None:
    found = isolation(pair(), "layers")
    assert [item.module for item in found.modules if item.causes] == ["layers.0"]
    # In two runs; to see that it does the same again, with all at work, and without each point.
    assert CALLS == {
        "0.first": 2 + 2 + 1,
        "0.second": 2 + 2 + 2,
        "1.first": 2,
        "1.second": 2,
        "2.first": 2,
        "2.second": 2,
    }
    assert len(runs) == 1
    assert {module for module, _ in runs[0].records} == {"", "layers.0", "layers.1", "layers.2"}


@pytest.mark.covers
def test_of_leaves_the_worst_of_each_pattern_is_called_again(runs: list[Run]) -> None:
    found = isolation(pair(), "leaves")
    assert {name: 2 + 3 * (name in ("1.first", "0.second")) for name in CALLS} == CALLS
    assert len(CALLS) == 6
    assert len(runs) == 1
    assert {p.pattern: (p.modules, p.measured) for p in found.points} == {
        "layers.*.first.offset": (3, 1),
        "layers.*.second.offset": (3, 1),
    }


@pytest.mark.covers
@pytest.mark.parametrize("level", ["leaves", "layers"])
def test_all_modules_where_asked_for(level: str, runs: list[Run]) -> None:
    found, some = (isolation(pair(), level, causes=causes) for causes in ("all", True))
    assert len(runs) == 2
    assert all(item.causes for item in found.modules if item.share)
    assert all(point.measured is None for point in found.points)
    assert found.calls == some.calls
    looked_at = {item.module: item for item in some.modules if item.causes}
    assert looked_at == {i.module: i for i in found.modules if i.module in looked_at}


@pytest.mark.covers
def test_what_introduces_little_is_not_looked_into(runs: list[Run]) -> None:
    models = pair()
    for layer in models[1].layers:
        layer.first.offset = 1e-3
    found = isolation(models, "leaves")
    assert [item.module for item in found.modules if item.causes] == ["layers.0.second"]
    assert CALLS["0.first"] == CALLS["1.first"] == 2
    assert any("first" in item.module for item in isolation(models, "*.first").modules)


@pytest.mark.covers
@pytest.mark.parametrize(("most", "count"), [(0, 2), (1000, 1)])
@pytest.mark.parametrize("level", ["leaves", "layers"])
def test_how_much_is_kept_makes_no_difference(
    level: str, most: int, count: int, runs: list[Run], monkeypatch
) -> None:
    expected = isolation(pair(), level)
    monkeypatch.setattr(trials, "_MOST_BYTES", most)
    runs.clear()
    assert isolation(pair(), level) == expected
    assert len(runs) == count


class Editing(Layer):
    """Edits what it is given, so that nothing of the call can be kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + self.second(torch.relu(self.first(x)))


@pytest.mark.covers
def test_calls_that_cannot_be_kept_are_made_again_in_a_run(runs: list[Run]) -> None:
    found = isolation(pair(Editing), "layers")
    assert len(runs) == 2
    causes = {cause.point: cause for cause in found.modules[0].causes}
    assert causes["first.offset"].before == pytest.approx(found.modules[0].worst.introduced)
    assert causes["first.offset"].after < causes["first.offset"].before


class Switched(Layer):
    """Has a switch that makes a module inside compute otherwise."""

    def ablatable_points(self) -> dict[str, str]:
        return {"both": "offsets of both"}

    @contextmanager
    def disabled(self, name: str) -> Iterator[None]:
        with self.first.disabled(name), self.second.disabled(name):
            yield


@pytest.mark.covers
def test_a_switch_of_what_is_inside() -> None:
    worst = isolation(pair(Switched), "layers").modules[0]
    causes = {cause.point: cause for cause in worst.causes}
    assert causes["both"].after == 0.0
    assert 0.0 < causes["first.offset"].after < causes["first.offset"].before


class Largest(Layer):
    """Keeps the largest value that it has seen, which only a switch lets grow."""

    def __init__(self, name: str, first: float = 0.0, second: float = 0.0) -> None:
        super().__init__(name, first, second)
        self.largest = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first.offset == 0.0 and self.first.name:
            self.largest += 1.0
        return super().forward(x) * self.largest


@pytest.mark.covers
def test_what_only_a_trial_leaves_behind_is_put_back() -> None:
    found = isolation(pair(Largest), "layers", causes="all")
    for item in found.modules:
        index = int(item.module[-1])
        reference, candidate = (model.layers[index] for model in pair(Largest))
        given = X
        for layer in pair(Largest)[0].layers[:index]:
            given = layer(given)
        candidate.second.offset = 0.0
        error = (candidate(given) - reference(given)).norm() / reference(given).norm()
        after = {cause.point: cause.after for cause in item.causes}.get("second.offset")
        assert after is None or after == pytest.approx(error.item(), rel=1e-4)
    assert any(cause.point == "second.offset" for i in found.modules for cause in i.causes)


class Alternating(nn.Module):
    """Scales every second call, or each by what was set before it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.alternates = 1, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.alternates:
            self.scale = 4 - self.scale
        return x * self.scale


class Twice(Layer):
    """Calls a module twice with the same, which returns something else each time."""

    def __init__(self, name: str, first: float = 0.0, second: float = 0.0) -> None:
        super().__init__(name, first, second)
        self.inner = Alternating()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(self.inner(x)) + self.second(self.inner(x))


class Setting(Twice):
    """The same, where the module only reads what tells its calls apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner.alternates, self.inner.scale = False, 3
        made = self.first(self.inner(x))
        self.inner.scale = 1
        return made + self.second(self.inner(x))


class Narrowed(Layer):
    """The same, of which autocast tells them apart."""

    def __init__(self, name: str, first: float = 0.0, second: float = 0.0) -> None:
        super().__init__(name, first, second)
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.inner(x)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = self.inner(x).float()
        return self.first(100.0 * (wide - narrow)) + self.second(narrow)


class Keeping(Layer):
    """Keeps what it has computed when it was first called."""

    kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.first(x)
        return self.second(torch.relu(self.kept))


class EditingUnseen(Layer):
    """Edits what a module inside has returned, past the counter of edits."""

    def __init__(self, name: str, first: float = 0.0, second: float = 0.0) -> None:
        super().__init__(name, first, second)
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.inner(x)
        made.data.mul_(2)
        return made + super().forward(x)


@pytest.mark.covers
@pytest.mark.parametrize("layer", [Twice, Setting, Narrowed, Keeping, EditingUnseen])
def test_a_module_that_goes_by_more_than_its_arguments_computes(layer: type[nn.Module]) -> None:
    (worst, *_) = isolation(pair(layer), "layers.0").modules
    reference, candidate = (model.layers[0] for model in pair(layer))
    candidate.first.offset, right = 0.0, reference(X)
    error = ((candidate(X) - right).norm() / right.norm()).item()
    causes = {cause.point: cause.after for cause in worst.causes}
    assert causes["first.offset"] == pytest.approx(error, rel=1e-4)


@pytest.mark.covers
def test_padding_that_modules_around_know_counts() -> None:
    """Only a module beside the chosen ones is told what is padding."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.layers = nn.Identity(), nn.ModuleList([Part("", 0.0)])

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layers[0](self.attention(x)) * attention_mask[..., None]

    reference = Masked()
    candidate = copy.deepcopy(reference)
    candidate.layers[0].offset = 0.1
    x, mask = torch.randn(2, 5, 6), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    x[0, :2] = 100.0
    found = tracer.compare(
        reference, candidate, {"x": x, "attention_mask": mask}, confirm=False, isolate="layers.0"
    ).isolation
    right = reference.layers[0](x)[mask.bool()]
    error = (0.1 * torch.ones_like(right)).norm() / right.norm()
    assert found.modules[0].worst.introduced == pytest.approx(error.item(), rel=1e-4)
    assert replace(found.modules[0].causes[0], kind="").after == 0.0


class Idle(Part):
    """Has a second part, and says that it made no difference."""

    def ablatable_points(self) -> dict[str, str]:
        return {"offset": "wrong offset", "idle": "nothing"}

    @contextmanager
    def count_rounding(self) -> Iterator[dict[str, dict[str, float]]]:
        yield {}

    def changing_points(self) -> frozenset[str]:
        return frozenset({"offset"})


@pytest.mark.covers
def test_what_is_known_to_make_no_difference_is_not_tried(runs: list[Run]) -> None:
    models = pair()
    expected = isolation(models, "leaves", causes="all")
    CALLS.clear()
    for part in models[1].modules():
        if isinstance(part, Part):
            part.__class__ = Idle
    found = isolation(models, "leaves", causes="all")
    assert dict.fromkeys(CALLS, 5) == CALLS
    assert [item.causes for item in found.modules] == [item.causes for item in expected.modules]


@pytest.mark.covers
def test_a_quantised_model_is_called_again_as_often_as_its_points_ask(runs: list[Run]) -> None:
    loaded = tracer.models.load("tiny-llama")
    spec = wrappers.affine("uint8")
    candidate = wrappers.prepare(loaded.model, wrappers.PTQConfig(activation=spec, weight=spec))
    wrappers.calibrate(candidate, [loaded.inputs])
    wrappers.convert(candidate)
    mlp = candidate.get_submodule("model.layers.0.mlp")
    counted: Counter[str] = Counter()
    handle = mlp.register_forward_pre_hook(lambda *_: counted.update(["mlp"]))
    found = isolation((loaded.model, candidate), "*.0.mlp", inputs=loaded.inputs)
    handle.remove()
    (given, _) = tracer.capture(loaded.model, candidate, loaded.inputs, include="*.0.mlp")
    with torch.no_grad(), wrappers.count_rounding(mlp):
        mlp(given.reference)
    wrapped = [module for module in mlp.modules() if hasattr(module, "changing_points")]
    changing = sum(len(module.changing_points()) for module in wrapped)
    assert 0 < changing < sum(len(module.ablatable_points()) for module in wrapped)
    # In two runs; twice to see that a weight that is kept rounded makes no difference; counted.
    assert counted["mlp"] == 2 + 2 + 1 + changing
    assert len(runs) == 1
    assert found.modules[0].causes
