"""What is compiled, opened: the stage, the modules, the node, and the whole without them."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.builders import compiling
from tests.builders.compiling import Mlp, X, cast_down, layers, other_axis, planted, scaled
from tracer.diagnosis.finding import FindingKind
from tracer.execution.compilation import Stage

SOFTMAX = next(
    number
    for number, line in enumerate(Path(compiling.__file__).read_text().splitlines(), 1)
    if line.endswith("# SOFTMAX")
)
BOTH = ("layers.0.mlp", "layers.1.mlp")

# Dynamo marks code for good: as skipped, or with graphs that serve the next test as well.
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    # PyTorch's compiler imports deprecated parts of PyTorch, and looks at gradients.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return self.linear(x).bfloat16().float() + 1
        return self.linear(x) + 1


class Outside(nn.Module):
    """Differs in its own lines where it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Mlp(), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if torch.compiler.is_compiling():
            x = x * 1.05
        return self.last(x)


class Broken(Outside):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.last(x)


def sequence(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(8, 8)).eval()


@pytest.mark.covers
class TestAPlantedBackend:
    @pytest.mark.parametrize(
        "edit",
        [
            other_axis,
            pytest.param(scaled, marks=pytest.mark.slow),
            pytest.param(cast_down, marks=pytest.mark.slow),
        ],
    )
    def test_is_named_with_modules_and_line_and_what_mends_it(self, edit) -> None:
        model = layers()
        comparison = tracer.compare(model, torch.compile(model, backend=planted(edit)), X)
        inside, verdict = comparison.inside, comparison.verdict
        assert inside.stage is Stage.BACKEND
        assert [rung.agrees for rung in inside.rungs] == [True, True, False]
        assert inside.culprits == BOTH
        assert (Path(inside.node.file), inside.node.line) == (Path(compiling.__file__), SOFTMAX)
        assert inside.left.agrees
        assert inside.left.after == 0.0
        assert verdict.confirmed
        assert not verdict.agrees
        assert verdict.origin.module == BOTH[0]
        assert verdict.origin.candidate_line == f"{compiling.__file__}:{SOFTMAX}"
        assert verdict.origins[1].module == BOTH[1]

    @pytest.mark.slow
    def test_its_errors_are_those_of_the_modules_alone(self) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis))
        alone = {item.module: item for item in tracer.compare(model, candidate, X).inside.alone}
        with torch.no_grad():
            inputs = model.layers[0].norm(X)
            right = model.layers[0].mlp(inputs)
            wrong = model.layers[0].mlp.down(model.layers[0].mlp.up(inputs).softmax(0))
        peir = float((right - wrong).abs().max() / (right.max() - right.min()))
        assert alone[BOTH[0]].peir == pytest.approx(peir, rel=1e-5)
        assert alone[BOTH[0]].multiple > 1e5
        assert alone["head"].agrees
        assert alone["layers.0.norm"].agrees

    def test_the_explanation(self) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis))
        said = tracer.compare(model, candidate, X).verdict.explanation
        for part in (
            "Compiled, `layers.0.mlp` does not compute what it does as it is written.",
            "The same in `layers.1.mlp`.",
            "Confirmed: with it left uncompiled, the whole agrees.",
            "The candidate is compiled; in stages, the first that differs is the backend (plant):",
            "Compiled alone, on the reference's inputs, 4 of 11 modules differ:",
            "With `layers.0.mlp` and `layers.1.mlp` left uncompiled, the whole agrees: the PEIR of",
            'module = model.get_submodule("layers.0.mlp")',
        ):
            assert part in said
        assert "with the reference's output" not in said
        assert "Another checkpoint" not in said

    def test_the_candidate_is_compiled_as_before_afterwards(self) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis))
        with torch.no_grad():
            before = candidate(X)
            tracer.compare(model, candidate, X)
            assert torch.equal(candidate(X), before)
            again = torch.compile(layers(), backend=planted(other_axis))
            assert torch.equal(again(X), before)

    @pytest.mark.parametrize("by", ["function", "method"])
    def test_a_part_of_the_model(self, by: str) -> None:
        model, candidate = layers(), layers()
        if by == "function":
            candidate.layers[1] = torch.compile(candidate.layers[1], backend=planted(other_axis))
        else:
            candidate.layers[1].compile(backend=planted(other_axis))
        inside = tracer.compare(model, candidate, X).inside
        assert (inside.parts, inside.culprits) == (("layers.1",), ("layers.1.mlp",))
        assert inside.left.agrees

    @pytest.mark.slow
    def test_two_parts_of_two_backends(self) -> None:
        model, candidate = layers(), layers()
        candidate.layers[0].compile(backend="aot_eager")
        candidate.layers[1].compile(backend=planted(other_axis))
        inside = tracer.compare(model, candidate, X).inside
        assert inside.culprits == ("layers.1.mlp",)
        assert [rung.backend for rung in inside.rungs][1:3] == ["eager", "aot_eager, eager"]

    @pytest.mark.parametrize(
        ("level", "culprits"),
        [
            ("blocks", BOTH),
            pytest.param("layers", ("layers.0", "layers.1"), marks=pytest.mark.slow),
            ("layers.1*", ("layers.1.mlp",)),
        ],
    )
    def test_the_modules_of_a_level(self, level: str, culprits: tuple[str, ...]) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis))
        inside = tracer.compare(model, candidate, X, inside=True, isolate=level).inside
        assert inside.culprits == culprits
        assert inside.left.agrees is (level != "layers.1*")

    @pytest.mark.slow
    def test_leaves_that_all_agree(self) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis))
        inside = tracer.compare(model, candidate, X, inside=True, isolate="leaves").inside
        assert inside.together
        assert {item.agrees for item in inside.alone} == {True}

    def test_what_is_wrong_in_the_whole_alone(self) -> None:
        def in_the_second(module, node) -> None:
            *_, (path, _) = node.meta["nn_module_stack"].values()
            if "layers.1" in path:
                other_axis(module, node)

        model = layers()
        comparison = tracer.compare(model, torch.compile(model, backend=planted(in_the_second)), X)
        inside = comparison.inside
        assert inside.together
        assert inside.culprits == ("",)
        assert inside.node.module == "layers.1.mlp"
        assert inside.node.line == SOFTMAX

    @pytest.mark.slow
    def test_dynamic_shapes_and_a_whole_graph(self) -> None:
        model = layers()
        candidate = torch.compile(model, backend=planted(other_axis), dynamic=True, fullgraph=True)
        candidate(torch.randn(2, 8))
        inside = tracer.compare(model, candidate, X).inside
        assert (inside.culprits, inside.left.agrees) == (BOTH, True)


class TestTheStages:
    @pytest.mark.covers
    def test_dynamo_inside_a_module(self) -> None:
        model = sequence(Half())
        inside = tracer.compare(model, torch.compile(model, backend="aot_eager"), X).inside
        assert (inside.stage, inside.culprits) == (Stage.DYNAMO, ("1",))
        assert inside.node.text == "return self.linear(x).bfloat16().float() + 1"
        assert inside.node.operation == "bfloat16"
        assert inside.left.agrees

    @pytest.mark.covers
    def test_dynamo_in_the_lines_around_modules(self) -> None:
        model = Outside().eval()
        comparison = tracer.compare(model, torch.compile(model, backend="eager"), X)
        inside = comparison.inside
        assert (inside.stage, inside.culprits, inside.together) == (Stage.DYNAMO, ("",), True)
        assert inside.node.text == "x = x * 1.05"
        assert (inside.left.called, inside.left.agrees) == (("first", "last"), True)
        assert 'model.get_submodule("last").compile(...)' in inside.explanation

    @pytest.mark.covers
    def test_aot_with_an_operator_that_hides_what_it_writes(self) -> None:
        model = sequence(Writing())
        backend = "aot_eager_decomp_partition"
        inside = tracer.compare(model, torch.compile(model, backend=backend), X).inside
        assert (inside.stage, inside.culprits) == (Stage.AOT, ("1",))
        assert "bump(y)" in inside.node.text
        assert inside.left.agrees

    @pytest.mark.covers
    def test_a_candidate_that_is_wrong_as_it_is_written(self) -> None:
        model, port = layers(), layers()

        def forward(self: Mlp, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.softmax(self.up(x), 0))

        port.layers[1].mlp.forward = forward.__get__(port.layers[1].mlp)
        comparison = tracer.compare(model, torch.compile(port, backend="eager"), X)
        assert comparison.inside.stage is Stage.AS_WRITTEN
        assert comparison.verdict.origin.module == "layers.1.mlp"
        assert comparison.verdict.confirmed
        assert comparison.zoomed.culprit.text == "return self.down(torch.softmax(self.up(x), 0))"
        assert "that is not why" in comparison.verdict.explanation

    @pytest.mark.covers
    def test_graph_breaks_are_said(self) -> None:
        model = Broken().eval()
        candidate = torch.compile(model, backend=planted(other_axis))
        inside = tracer.compare(model, candidate, X).inside
        assert inside.culprits == ("first", "last")
        assert inside.rungs[1].graphs == 2
        assert "Its code is broken into 2 graphs: Call to" in inside.explanation

    def test_a_whole_graph_that_breaks(self) -> None:
        model = Broken().eval()
        candidate = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(tracer.ModelRunError, match="graph break"):
            tracer.compare(model, candidate, X, inside=True)


class TestWhatIsRight:
    @pytest.mark.covers
    @pytest.mark.parametrize("backend", ["eager", "aot_eager", "aot_eager_decomp_partition"])
    def test_is_not_opened_unless_that_is_asked_for(self, backend: str) -> None:
        model = layers()
        candidate = torch.compile(model, backend=backend)
        comparison = tracer.compare(model, candidate, X)
        assert comparison.verdict.agrees
        assert comparison.inside is None
        inside = tracer.compare(model, candidate, X, inside=True).inside
        assert inside.stage is None
        assert {rung.agrees for rung in inside.rungs} == {True}
        assert {item.agrees for item in inside.alone} == {True}
        assert (inside.culprits, inside.left) == ((), None)
        assert "in stages, none differs:" in inside.explanation

    def test_a_model_that_is_not_compiled_has_no_inside(self) -> None:
        assert tracer.compare(layers(), layers(), X, inside=True).inside is None

    @pytest.mark.covers
    def test_dropout_in_training(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
        candidate = torch.compile(model, backend="aot_eager")
        comparison = tracer.compare(model, candidate, X, train=True, inside=True)
        assert comparison.verdict.agrees
        assert {rung.agrees for rung in comparison.inside.rungs} == {True}

    @pytest.mark.covers
    def test_parameters_that_differ_are_no_matter_of_compiling(self) -> None:
        model, other = layers(), layers()
        with torch.no_grad():
            other.layers[1].mlp.down.weight[0] += 1
        comparison = tracer.compare(model, torch.compile(other, backend="eager"), X)
        assert comparison.inside is None
        assert comparison.verdict.details.findings[0].kind is FindingKind.PARAMETERS


def test_without_further_runs_its_inside_cannot_be_seen() -> None:
    model = layers()
    candidate = torch.compile(model, backend=planted(other_axis))
    comparison = tracer.compare(model, candidate, X, confirm=False)
    assert comparison.inside is None
    assert not comparison.verdict.confirmed
    assert "is compiled: its inside cannot be seen." in comparison.verdict.explanation


def test_a_scripted_whole_is_never_confirmed_by_its_own_output() -> None:
    model = nn.Sequential(nn.ReLU())
    comparison = tracer.compare(model, torch.jit.trace(nn.Sequential(nn.GELU()), X), X)
    assert not comparison.verdict.confirmed
    assert "is scripted: its inside cannot be seen." in comparison.verdict.explanation


@pytest.mark.covers
def test_phases_are_told() -> None:
    told = []

    class Shown:
        def phase(self, name: str, run: int, runs: int | None) -> None:
            told.append(name)

        def __call__(self, finished: int) -> None:
            pass

    model = layers()
    candidate = torch.compile(model, backend=planted(other_axis))
    tracer.compare(model, candidate, X, progress=Shown())
    expected = ["comparing", "confirming", "compiling in stages", "compiling modules alone"]
    found = [name for name in dict.fromkeys(told) if name in expected]
    assert found == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, g++")
class TestInductor:
    def test_half_precision_that_it_does_not_round_to(self) -> None:
        class Rounds(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = x.half().float()
                return y + 1

        model = sequence(Rounds())
        comparison = tracer.compare(model, torch.compile(model), X)
        inside = comparison.inside
        assert (inside.stage, inside.culprits) == (Stage.BACKEND, ("1",))
        assert [rung.agrees for rung in inside.rungs] == [True] * 4 + [False]
        assert inside.node.text == "y = x.half().float()"
        assert inside.left.agrees

    def test_random_numbers_of_its_own(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
        inside = tracer.compare(model, torch.compile(model), X, train=True).inside
        assert inside.draws
        assert 'options={"fallback_random": True}' in inside.explanation
        alike = torch.compile(model, options={"fallback_random": True})
        inside = tracer.compare(model, alike, X, train=True, inside=True).inside
        assert {rung.agrees for rung in inside.rungs} == {True}


@torch.library.custom_op("trace_model_tests::bump", mutates_args=())
def bump(x: torch.Tensor) -> torch.Tensor:
    """Writes to its argument, and does not say so."""
    x.add_(1)
    return x.clone()


@bump.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        bump(y)
        return y * 2
