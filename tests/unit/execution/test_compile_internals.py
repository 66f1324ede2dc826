"""What PyTorch does not promise of compiling; broken, see `_TorchDynamoContext.__call__` and
`OptimizedModule` in `torch._dynamo`."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from tracer.execution import compile_internals as internals


def test_what_a_module_was_compiled_with() -> None:
    linear = nn.Linear(2, 2)
    assert internals.compile_settings(linear) is None
    wrapped = torch.compile(linear, backend="eager", dynamic=True, fullgraph=True)
    settings = internals.compile_settings(wrapped)
    assert (settings.name, settings.dynamic, settings.fullgraph) == ("eager", True, True)
    assert settings.inline
    linear.compile(backend="aot_eager")
    settings = internals.compile_settings(linear)
    assert (settings.name, settings.dynamic, settings.inline) == ("aot_eager", None, False)


def test_what_was_taken_out_has_no_backend() -> None:
    assert internals.compile_settings(torch.compiler.disable(nn.Linear(2, 2))) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_of_inductor_and_backends_of_aot() -> None:
    def backend_of(**how: object) -> Callable[..., object]:
        return internals.compile_settings(torch.compile(nn.Linear(2, 2), **how)).backend

    options = {"fallback_random": True}
    assert internals.inductor_options(backend_of(options=options)) == options
    assert internals.inductor_options(backend_of(backend="eager")) is None
    own = aot_autograd(fw_compiler=lambda module, inputs: module.forward)
    assert internals.is_of_aot(backend_of(backend=own))
    assert not internals.is_of_aot(backend_of(backend="eager"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_of_pytorch_are_compiled_where_that_is_asked_for() -> None:
    for inline in (True, False):
        graphs: list[object] = []
        linear = nn.Linear(2, 2)

        def keep(module: object, inputs: object, graphs: list[object] = graphs) -> object:
            graphs.append(module)
            return module.forward

        internals.compile_in_place(linear, inline=inline, backend=keep)
        linear(torch.ones(1, 2))
        assert len(graphs) == inline


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_graphs_and_breaks_are_counted() -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    graphs, reasons = internals.dynamo_counts()
    torch.compile(breaks, backend="eager")(torch.ones(2))
    after, found = internals.dynamo_counts()
    assert after - graphs == 2
    assert sum(found.values()) == sum(reasons.values()) + 1


def test_limits_of_compiling_are_put_back() -> None:
    before = torch._dynamo.config.recompile_limit
    with internals.many_compiled():
        assert torch._dynamo.config.recompile_limit > 1000
    assert torch._dynamo.config.recompile_limit == before


def test_backends_by_name() -> None:
    module = torch.fx.symbolic_trace(nn.ReLU())
    x = torch.tensor([-1.0, 1.0])
    run = internals.backend_called("eager")(module, [x])
    assert torch.equal(run(x), x.relu())
