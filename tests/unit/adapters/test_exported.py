"""Programs of torch.export and graphs of torch.fx run as models, whatever is in them."""

import weakref

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._python_dispatch import TorchDispatchMode

import tracer
from tests.builders.exported import DIM, decoder, decoder_inputs, exported
from tracer.adapters.opening import as_model


def export(model: nn.Module, *args: object, **options: object) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, args, strict=options.pop("strict", False), **options)


def agree(model: nn.Module, program: object, *args: object) -> tracer.Comparison:
    """The comparison of a model and its program, which are equal."""
    comparison = tracer.compare(model, program, args)
    assert comparison.verdict.outcome == "agrees"
    assert max(row.peir for row in comparison.rows) == 0
    assert not comparison.form_differences
    assert not comparison.coverage.unmatched_calls
    return comparison


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.same = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity()
        self.rest = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, x):
        return self.rest(self.same(self.bn(self.conv(x))))


def test_convolutions_and_what_leaves_no_operation() -> None:
    model, x = Convolutions().eval(), torch.randn(2, 3, 6, 6)
    coverage = agree(model, export(model, x), x).coverage
    assert coverage.reference_only == ("same",)
    assert coverage.reasons["same"] == "the graph has no operation of it that is used"


class Shared(nn.Module):
    """A module under three names, called four times, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.rest = nn.ModuleList([self.a, nn.Sequential(nn.Linear(4, 4), nn.Tanh())])

    def forward(self, x):
        return self.rest[1](self.rest[1](self.a(self.a(x)))) + self.b(x) * 2 + self.rest[0](x + 1)


@pytest.mark.parametrize("strict", [False, True])
def test_calls_of_a_shared_module_are_counted_together(strict) -> None:
    model, x = Shared().eval(), torch.randn(2, 4)
    comparison = agree(model, export(model, x, strict=strict), x)
    calls = {(row.module, row.call) for row in comparison.rows if row.is_output}
    assert {("a", n) for n in range(4)} | {("rest.1.0", 0), ("rest.1.0", 1)} <= calls
    assert not comparison.coverage.candidate_only


class Counting(nn.Module):
    """It writes to buffers, and to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        self.calls.add_(1)
        y = self.linear(x) * self.calls
        x.add_(1)
        return y


# PyTorch warns of how it copies its own specs.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_what_is_written_to_is_put_back(decomposed) -> None:
    model, x = Counting().eval(), torch.randn(2, 4)
    program = export(model, x.clone())
    graph = as_model(program.run_decompositions() if decomposed else program)
    before = x.clone()
    agree(model, graph, x)
    assert torch.equal(x, before)
    assert graph.get_buffer("calls") == model.calls
    once = graph.get_buffer("calls").item()
    graph(x.clone())
    assert graph.get_buffer("calls") == once + 1


class Higher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.loop = nn.Linear(4, 4), Loop()

    def forward(self, x):
        y = torch.cond(x.sum() > 0, torch.sin, torch.cos, (self.linear(x),))
        with torch.no_grad():
            return self.loop(y)


class Loop(nn.Module):
    def forward(self, x):
        steps = while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 1.5), (torch.tensor(0), x))
        return steps[1]


def test_operators_of_higher_order_are_one_operation_each() -> None:
    model, x = Higher().eval(), torch.randn(2, 4)
    comparison = agree(model, export(model, x), x)
    assert set(comparison.coverage.paired_modules) == {"", "linear", "loop"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("form", ["unflattened", "module", "strict"])
def test_other_forms_of_a_program(form) -> None:
    if form == "strict":
        program = torch.export.export(decoder(), (), decoder_inputs(), strict=True)
    else:
        made = exported()
        program = torch.export.unflatten(made) if form == "unflattened" else made.module()
    comparison = tracer.compare(decoder(), program, decoder_inputs())
    assert comparison.verdict.outcome == "agrees"
    assert not comparison.coverage.reference_only
    assert not comparison.coverage.candidate_only


@pytest.mark.covers
def test_a_program_is_taken_by_the_other_functions(tmp_path) -> None:
    program, inputs = exported(), decoder_inputs()
    shown = tracer.flow(program, inputs)
    assert "blocks.0.attn" in {call.module for call in shown.calls}
    recording = tracer.record(program, inputs, tmp_path / "run.trace")
    assert recording.calls == len(shown.calls)
    recorded = tracer.open_trace(tmp_path / "run.trace")
    assert tracer.compare(decoder(), recorded, inputs).verdict.outcome == "agrees"
    kept = tracer.capture(decoder(), program, inputs, include="blocks.0.mlp")
    assert len(kept) > 0
    tracer.assert_equivalent(decoder(), program, inputs)


class _Alive(TorchDispatchMode):
    """Counts the bytes of results that are alive, and the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, torch.Tensor) else []:
            size = tensor.untyped_storage().nbytes()
            if not func.is_view and size:
                self.now += size
                weakref.finalize(tensor.untyped_storage(), self._gone, size)
        self.most = max(self.most, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


class Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = [nn.Linear(DIM, DIM), nn.Tanh()]
        self.blocks = nn.ModuleList(nn.Sequential(*layer) for _ in range(layers))

    def forward(self, hidden):
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


def test_memory_is_flat_in_depth() -> None:
    most = {}
    for layers in (2, 32):
        model, hidden = Deep(layers).eval(), torch.randn(1, 8, DIM)
        graph = as_model(export(model, hidden))
        with torch.no_grad(), _Alive() as alive:
            graph(hidden)
        most[layers] = alive.most
    assert most[32] == most[2]
