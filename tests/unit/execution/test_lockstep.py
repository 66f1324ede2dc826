"""Lockstep: two models side by side, in every order of calls, and nothing leaks between them."""

import contextvars
import copy
import gc
import random
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig

from tests.builders.comparing import agreed, doing
from tests.builders.hooks import hooks_of
from tracer.comparison.result import Comparison
from tracer.comparison.run import compare
from tracer.errors import ModelRunError
from tracer.execution.hooks import Answer, Call, NewOutput, Phase
from tracer.execution.lockstep import lockstep
from tracer.execution.side import EventKey
from tracer.measurement.rows import Row
from tracer.tensors.difference import Difference

X = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """Two layers, called as the test says."""

    def __init__(self, how: Callable[..., object], depth: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a = nn.Linear(8, 8)
            self.b = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.how = how

    def forward(self, x):
        return self.how(self, x)


class Watcher:
    """A visitor that notes what it saw."""

    observer = None

    def __init__(self, look: Callable[[Call, Call, Phase], Answer] | None = None) -> None:
        self.seen: list[EventKey] = []
        self.edited: dict[EventKey, frozenset[str]] = {}
        self.look = look

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        self.seen.append((reference.name, reference.index, phase))
        return None if self.look is None else self.look(reference, candidate, phase)

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        self.edited[key] = paths

    def end(self) -> None:
        pass


def walked(reference, candidate, watcher, x=X, clone=frozenset()):
    names = {name: name for name, _ in reference.named_modules()}
    return lockstep(
        reference,
        candidate,
        lambda: reference(x),
        lambda: candidate(x),
        {name: name for name, _ in candidate.named_modules() if name in names},
        watcher,
        reference_names={id(m): name for name, m in reference.named_modules()},
        candidate_names={id(m): name for name, m in candidate.named_modules()},
        clone=clone,
    )


def outputs_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What a model and its copy give side by side."""
    outputs: list[torch.Tensor] = []

    def look(reference: Call, candidate: Call, phase: Phase) -> Answer:
        if reference.name == "" and phase is Phase.END:
            outputs.extend((reference.output, candidate.output))
        return None

    walked(model, copy.deepcopy(model), Watcher(look), x)
    return outputs


def in_order(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.b(net.a(x))


def rows_of(comparison: Comparison, value: str = "output") -> dict[tuple[str, int], Row]:
    return {(row.module, row.call): row for row in comparison.rows if row.value == value}


def perturbed(net: Net) -> Net:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.b[0].weight.add_(0.01)
    return other


class TestOrder:
    def test_events_come_in_order_of_execution(self) -> None:
        watcher = Watcher()
        outcome = walked(Net(in_order), Net(in_order), watcher)
        start, end = Phase.START, Phase.END
        assert watcher.seen == [
            ("", 0, start), ("a", 0, start), ("a", 0, end), ("b", 0, start), ("b.0", 0, start),
            ("b.0", 0, end), ("b.1", 0, start), ("b.1", 0, end), ("b", 0, end), ("", 0, end),
        ]  # fmt: skip
        assert outcome.failure is None
        assert outcome.held_bytes_peak == 0
        assert outcome.reference_calls == outcome.candidate_calls

    def test_both_sides_stand_at_the_same_event(self) -> None:
        """Neither has gone on when the visitor sees a call."""
        progress: list[str] = []

        def counted(side: str) -> Net:
            def how(net: Net, x: torch.Tensor) -> torch.Tensor:
                progress.append(f"{side} before a")
                x = net.a(x)
                progress.append(f"{side} after a")
                return net.b(x)

            return Net(how)

        def look(reference: Call, candidate: Call, phase: Phase) -> Answer:
            progress.append(f"{reference.name or 'root'} {phase.value}")
            return None

        walked(counted("reference"), counted("candidate"), Watcher(look))
        assert progress[:7] == [
            "root start", "candidate before a", "reference before a", "a start", "a end",
            "candidate after a", "reference after a",
        ]  # fmt: skip

    def test_the_other_order_on_the_other_side(self) -> None:
        reference = Net(lambda net, x: net.a(x) + net.b(x))
        candidate = doing(reference, _b_first)
        watcher = Watcher()
        outcome = walked(reference, candidate, watcher)
        assert sorted(watcher.seen, key=str) == sorted(_all_events(reference), key=str)
        assert outcome.held_bytes_peak > 0
        assert outcome.unmatched_reference == outcome.unmatched_candidate == ()
        assert compare(reference, candidate, X).verdict.agrees

    def test_calls_that_one_side_makes(self) -> None:
        once = Net(in_order)
        twice = doing(once, lambda net, x: (in_order(net, x), net.a(x))[0])
        for side, models in (("candidate", (once, twice)), ("reference", (twice, once))):
            assert agreed(*models, X).coverage.unmatched_calls == ((side, "a", 1),)
        both = Net(in_order)
        one = doing(both, lambda net, x: net.b[1](net.b[0](net.a(x))))
        coverage = agreed(both, one, X).coverage
        assert coverage.unmatched_calls == (("reference", "b", 0),)
        assert coverage.reference_only == ("b",)
        assert coverage.reasons["b"] == "called by the reference, not by the candidate"

    def test_repeated_calls_in_blocks_that_wait(self) -> None:
        """The end of one call of a block forgets nothing of the block's next call."""

        def blocks_first(net: Net, x: torch.Tensor) -> torch.Tensor:
            return net.b(net.b(x)) + net.a(x)

        def block_last(net: Net, x: torch.Tensor) -> torch.Tensor:
            late = net.a(x)
            return net.b(net.b(x)) + late

        reference = Net(blocks_first)
        comparison = agreed(reference, doing(reference, block_last), X)
        assert comparison.coverage.unmatched_calls == ()
        expected = {("b.0", 0), ("b.0", 1), ("b.1", 1), ("b", 1), ("a", 0)}
        assert expected <= rows_of(comparison).keys()

    def test_values_of_held_calls_are_those_that_were_passed(self) -> None:
        """Whatever the order, each row has the statistics of an untraced computation."""
        reference = Net(lambda net, x: net.a(x) + net.b(x))
        candidate = perturbed(reference)
        candidate.how = _b_first
        rows = rows_of(compare(reference, candidate, X))
        with torch.no_grad():
            expected = Difference.of(reference.b(X), candidate.b(X))
        assert (rows["b", 0].difference, rows["a", 0].difference.max) == (expected, 0.0)


def _b_first(net: Net, x: torch.Tensor) -> torch.Tensor:
    late = net.b(x)
    return net.a(x) + late


def _all_events(model: Net) -> list[EventKey]:
    names = [name for name, m in model.named_modules() if not isinstance(m, nn.ModuleList)]
    return [(name, 0, phase) for name in names for phase in Phase]


class TestEditsInPlace:
    def test_in_order_nothing_is_held_or_cloned(self) -> None:
        def edits(net: Net, x: torch.Tensor) -> torch.Tensor:
            x = net.a(x)
            y = net.b(x)
            x.add_(1.0)
            y.relu_()
            return x + y

        reference = Net(edits)
        candidate = perturbed(reference)
        comparison = compare(reference, candidate, X)
        assert comparison.coverage.held_bytes_peak == 0
        rows = rows_of(comparison)
        with torch.no_grad():
            first = reference.a(X)
            assert rows["b", 0].difference == Difference.of(reference.b(first), candidate.b(first))
        assert rows["a", 0].difference.max == 0.0

    def test_an_edit_while_a_call_waits_is_noticed_and_undone_by_another_run(self) -> None:
        def reference_order(net: Net, x: torch.Tensor) -> torch.Tensor:
            first = net.a(x)
            kept = first.clone()
            first.mul_(100.0)
            return net.b(x) + kept

        def candidate_order(net: Net, x: torch.Tensor) -> torch.Tensor:
            second = net.b(x)
            kept = second.clone()
            second.fill_(7.0)
            return net.a(x) + kept

        reference = Net(reference_order)
        candidate = perturbed(reference)
        candidate.how = candidate_order
        watcher = Watcher()
        walked(reference, candidate, watcher)
        assert watcher.edited
        again = Watcher()
        walked(reference, candidate, again, clone=frozenset(watcher.edited))
        assert not again.edited
        rows = rows_of(compare(reference, candidate, X))
        assert rows["a", 0].difference.max == 0.0
        with torch.no_grad():
            assert rows["b", 0].difference == Difference.of(reference.b(X), candidate.b(X))

    def test_inference_tensors_are_cloned_since_they_have_no_version(self) -> None:
        def edited(net: Net, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                first = net.a(x)
                kept = first.clone()
                first.mul_(100.0)
                return net.b(x) + kept

        reference = Net(edited)
        comparison = agreed(reference, doing(reference, _b_first), X)
        assert rows_of(comparison)["a", 0].difference.max == 0.0

    def test_a_list_that_grows_while_a_call_waits(self) -> None:
        class Collects(nn.Module):
            def forward(self, x, states):
                return list(states)

        def collect_first(net: Net, x: torch.Tensor) -> torch.Tensor:
            states = [x]
            net.a(states[0])
            net.collect(x, states)
            states.append(x * 2)
            net.b(x)
            return x

        def collect_last(net: Net, x: torch.Tensor) -> torch.Tensor:
            net.b(x)
            net.a(x)
            net.collect(x, [x])
            return x

        reference = Net(collect_first)
        reference.collect = Collects()
        assert agreed(reference, doing(reference, collect_last), X).form_differences == ()

    def test_a_cache_that_is_filled_while_a_call_waits(self) -> None:
        class Attends(nn.Module):
            def forward(self, x, past):
                keys, _ = past.update(x[None, None], x[None, None], 0)
                return keys.sum(dim=-2)

        def attend_first(net: Net, x: torch.Tensor) -> torch.Tensor:
            past = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
            first = net.attend(x, past)
            second = net.attend(x, past)
            return net.a(x) + first + second

        def attend_last(net: Net, x: torch.Tensor) -> torch.Tensor:
            past = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
            late = net.a(x)
            first = net.attend(x, past)
            return late + first + net.attend(x, past)

        reference = Net(attend_first)
        reference.attend = Attends()
        comparison = agreed(reference, doing(reference, attend_last), X)
        assert all(row.agrees for row in comparison.rows)


class TestSharing:
    def test_models_against_themselves_and_tied_weights(self) -> None:
        model = Net(in_order)
        comparison = agreed(model, model, X)
        assert all(row.difference.max == 0.0 for row in comparison.rows)
        assert comparison.coverage.compared_calls == 5
        reference = Net(in_order)
        reference.b[0].weight = reference.a.weight
        candidate = copy.deepcopy(reference)
        assert candidate.b[0].weight is candidate.a.weight
        assert compare(reference, candidate, X).verdict.agrees

    def test_modules_that_both_sides_hold(self) -> None:
        reference = Net(in_order)
        candidate = perturbed(reference)
        candidate.a = reference.a
        candidate.b[1] = reference.b[1]
        comparison = compare(reference, candidate, X)
        rows = rows_of(comparison)
        assert rows["a", 0].difference.max == 0.0
        assert rows["b.1", 0].difference.max > 0.0
        assert comparison.verdict.origin.module == "b.0"
        # One side's `a` is the other's `b.0`: a call is read with its own side's names.
        reference = Net(in_order)
        candidate = copy.deepcopy(reference)
        candidate.b[0] = reference.a
        candidate.a = reference.b[0]
        reference.b[0].load_state_dict(reference.a.state_dict())
        assert compare(reference, candidate, X).verdict.agrees

    def test_a_compiled_candidate_that_shares_all_modules(self) -> None:
        reference = Net(in_order)
        before = hooks_of(reference)
        comparison = agreed(reference, torch.compile(reference, backend="eager"), X)
        assert tuple(comparison.coverage.paired_modules) == ("",)
        reason = comparison.coverage.reasons["a"]
        assert reason == "hidden: the root of the candidate is compiled, scripted or fused"
        assert hooks_of(reference) == before


class TestExceptions:
    @pytest.mark.parametrize("side", ["reference", "candidate", "both"])
    @pytest.mark.parametrize("where", ["b.0", "", "before", "hook", "pre-hook"])
    def test_an_exception_names_its_side_and_module(self, side: str, where: str) -> None:
        models = {"reference": Net(in_order), "candidate": Net(in_order)}
        for name, model in models.items():
            if side in (name, "both"):
                _make_fail(model, where)
        before = hooks_of(*models.values())
        with pytest.raises(ModelRunError) as caught:
            compare(models["reference"], models["candidate"], X)
        assert hooks_of(*models.values()) == before
        message = str(caught.value)
        # Where both raise, it is the reference that matters: it is right by definition.
        assert message.startswith(
            f"the {'reference' if side == 'both' else side} raised ValueError"
        )
        assert message.endswith("; the candidate raised too") is (side == "both")
        assert "boom" in message
        assert isinstance(caught.value.__cause__, ValueError)
        assert ("in module 'b.0'" if where == "b.0" else "in its own forward") in message
        rows = rows_of(caught.value.comparison)
        assert (("a", 0) in rows) is (where in ("b.0", "", "hook", "pre-hook"))

    def test_a_caught_exception_is_no_failure(self) -> None:
        def careful(net: Net, x: torch.Tensor) -> torch.Tensor:
            try:
                x = net.b(x)
            except ValueError:
                x = net.a(x)
            return net.a(x)

        reference = Net(careful)
        _make_fail(reference, "b.0")
        comparison = agreed(reference, copy.deepcopy(reference), X)
        assert {("a", 0), ("a", 1)} <= rows_of(comparison).keys()

    def test_an_exception_that_only_the_candidate_catches(self) -> None:
        """Its call is over; what comes after is not held back as if it were still inside."""

        def careful(net: Net, x: torch.Tensor) -> torch.Tensor:
            with suppress(ValueError):
                net.b(x)
            for layer in net.layers:
                x = layer(x)
            return net.a(x)

        reference = Net(careful, depth=6)
        candidate = copy.deepcopy(reference)
        _make_fail(candidate, "b.0")
        comparison = agreed(reference, candidate, X)
        assert ("layers.5", 0) in rows_of(comparison)
        assert comparison.coverage.held_bytes_peak <= 6 * X.numel() * 4

    @pytest.mark.parametrize("side", ["reference", "candidate"])
    @pytest.mark.parametrize(
        ("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (SystemExit, ModelRunError)]
    )
    def test_an_interrupt_goes_through_and_an_exit_is_an_error(self, side, error, seen):
        models = {"reference": Net(in_order), "candidate": Net(in_order)}

        def interrupted(net: Net, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad(), torch.autocast("cpu"):
                net.a(x)
                raise error

        models[side].how = interrupted
        before = hooks_of(*models.values())
        with pytest.raises(seen):
            compare(models["reference"], models["candidate"], X)
        assert hooks_of(*models.values()) == before
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")

    def test_the_other_sides_finally_blocks_run(self) -> None:
        ended: list[str] = []

        def tidy(net: Net, x: torch.Tensor) -> torch.Tensor:
            try:
                with torch.autocast("cpu"):
                    return in_order(net, x)
            finally:
                ended.append("tidied")

        failing = Net(in_order)
        _make_fail(failing, "b.0")
        with pytest.raises(ModelRunError):
            compare(failing, Net(tidy), X)
        assert ended == ["tidied"]
        assert not torch.is_autocast_enabled("cpu")

    def test_an_exception_of_the_visitor_ends_both_sides(self) -> None:
        def look(reference: Call, candidate: Call, phase: Phase) -> Answer:
            if reference.name == "b.0":
                raise RuntimeError("visitor")
            return None

        reference, candidate = Net(in_order), Net(in_order)
        before = hooks_of(reference, candidate)
        with pytest.raises(RuntimeError, match="visitor"):
            walked(reference, candidate, Watcher(look))
        assert hooks_of(reference, candidate) == before


def _make_fail(model: Net, where: str) -> None:
    def raises(*_: object) -> None:
        raise ValueError("boom")

    def fails_at_the_end(net: Net, x: torch.Tensor) -> None:
        in_order(net, x)
        raises()

    if where == "b.0":
        model.b[0].forward = raises
    elif where == "":
        model.how = fails_at_the_end
    elif where == "before":
        model.how = raises
    elif where == "hook":
        model.register_forward_hook(raises)
    else:
        model.b.register_forward_pre_hook(raises)


class Modes:
    """Function and dispatch modes that note what they see."""

    class Functions(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))


def state() -> dict[str, object]:
    """What a model could leave switched on."""
    return {
        "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(), "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "device": torch.empty(0).device,
        "current device": torch.utils._device.CURRENT_DEVICE,
        "functions": len(torch.overrides._get_current_function_mode_stack()),
        "operators": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        "context": VARIABLE.get(),
    }  # fmt: skip


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="outside")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def variable(value: str) -> Iterator[None]:
    token = VARIABLE.set(value)
    try:
        yield
    finally:
        VARIABLE.reset(token)


STATES: dict[str, Callable[[], object]] = {
    "grad": torch.no_grad, "inference": torch.inference_mode,
    "dtype": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast without cache": lambda: torch.autocast("cpu", cache_enabled=False),
    "device": lambda: torch.device("meta"), "functions": Modes.Functions,
    "operators": Modes.Operators, "context": lambda: variable("inside"),
}  # fmt: skip


class TestNothingLeaks:
    @pytest.mark.parametrize("kind", STATES)
    @pytest.mark.parametrize("side", [0, 1])
    def test_a_state_around_a_call_stays_on_its_side(self, kind: str, side: int) -> None:
        seen: tuple[list[object], list[object]] = ([], [])
        outside = state()

        def model(number: int) -> Net:
            def how(net: Net, x: torch.Tensor) -> torch.Tensor:
                seen[number].append(state())
                if number == side:
                    with STATES[kind]():
                        inside = state()
                        y = net.a(x.detach())
                        assert state() == inside
                        net.b(y)
                        assert state() == inside
                else:
                    net.b(net.a(x))
                    seen[number].append(state())
                seen[number].append(state())
                return x

            net = Net(how)
            net.a.register_forward_hook(lambda *_: seen[number].append(state()))
            return net

        states_of_visitor: list[object] = []

        def look(reference: Call, candidate: Call, phase: Phase) -> Answer:
            states_of_visitor.append(state())
            return None

        outcome = walked(model(0), model(1), Watcher(look))
        assert outcome.failure is None, outcome.failure
        assert states_of_visitor == [outside] * len(states_of_visitor)
        assert seen[1 - side] == [outside] * len(seen[1 - side])
        assert seen[side][0] == seen[side][-1] == outside
        assert seen[side][1] != outside
        assert state() == outside

    @pytest.mark.parametrize("first", STATES)
    @pytest.mark.parametrize("second", STATES)
    def test_states_of_both_sides_may_overlap(self, first: str, second: str) -> None:
        """One opens, the other opens, the first closes, the other closes."""
        outside = state()

        def model(kind: str, opens: str) -> Net:
            def how(net: Net, x: torch.Tensor) -> torch.Tensor:
                if opens == "first":
                    with STATES[kind]():
                        inside = state()
                        net.a(x)
                        assert state() == inside
                    assert state() == outside
                    net.b(x)
                else:
                    net.a(x)
                    with STATES[kind]():
                        inside = state()
                        net.b(x)
                        assert state() == inside
                assert state() == outside
                return x

            return Net(how)

        assert walked(model(first, "first"), model(second, "second"), Watcher()).failure is None
        assert state() == outside
        assert walked(model(first, "second"), model(second, "first"), Watcher()).failure is None
        assert state() == outside

    def test_modes_see_the_models_own_operations_and_no_others(self) -> None:
        for mode_class in (Modes.Functions, Modes.Operators):
            modes: list[object] = []

            def how(net, x, mode_class=mode_class, modes=modes):
                with mode_class() as mode:
                    modes.append(mode)
                    y = net.b(net.a(x))
                return y * 1

            model = Net(how)
            with torch.no_grad():
                model(X)
            other = copy.deepcopy(model)
            other.how = in_order
            compare(model, other, X)
            compare(other, model, X)
            alone, *traced = [mode.seen for mode in modes]
            assert alone
            assert all(seen == alone for seen in traced)

    def test_what_a_model_leaves_switched_on_stays_with_it(self) -> None:
        outside = state()

        def careless(net: Net, x: torch.Tensor) -> torch.Tensor:
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float64)
            torch.set_autocast_enabled("cpu", True)
            VARIABLE.set("left")
            return net.a(x)

        seen: list[object] = []

        def plain(net: Net, x: torch.Tensor) -> torch.Tensor:
            y = net.a(x)
            seen.append(state())
            return y

        with torch.no_grad():
            inside = state()
            assert walked(Net(plain), Net(careless), Watcher()).failure is None
            assert state() == inside
        assert (seen, state()) == ([inside], outside)

    def test_different_casts_of_a_shared_parameter(self) -> None:
        def under(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
            def how(net: Net, x: torch.Tensor) -> torch.Tensor:
                with torch.autocast("cpu", dtype=dtype):
                    return net.a(net.a(x)) * 1.0

            return how

        reference = Net(under(torch.bfloat16))
        candidate = copy.deepcopy(reference)
        candidate.a, candidate.how = reference.a, under(torch.float16)
        rows = rows_of(compare(reference, candidate, X))
        assert (rows["a", 1].dtype, rows["a", 1].candidate_dtype) == (torch.bfloat16, torch.float16)

    @pytest.mark.parametrize("ambient", ["inference", "autocast", "dtype", "grad"])
    def test_the_state_around_the_comparison_holds_for_both(self, ambient: str) -> None:
        model = Net(in_order)
        with STATES[ambient]():
            inside = state()
            assert compare(model, copy.deepcopy(model), X).verdict.agrees
            assert state() == inside


class TestRandomNumbers:
    def test_it_is_the_dropout_of_an_untraced_run(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8))
        torch.manual_seed(3)
        expected = model(X)
        torch.manual_seed(3)
        assert all(torch.equal(output, expected) for output in outputs_of(model, X))

    def test_generators_are_as_before_afterwards(self) -> None:
        def draws(net: Net, x: torch.Tensor) -> torch.Tensor:
            x = x + random.random() + float(np.random.rand()) + torch.rand(8)
            return net.a(x) + random.random() + float(np.random.rand()) + torch.rand(8)

        model = Net(draws)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        expected = random.random(), np.random.rand(), torch.rand(3).tolist()
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert rows_of(agreed(model, copy.deepcopy(model), X))["", 0].difference.max == 0.0
        assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected

    def test_generators_are_as_before_after_a_failure(self) -> None:
        model = Net(lambda net, x: net.a(torch.rand(8)).missing)
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        with pytest.raises(ModelRunError):
            compare(model, model, X)
        assert torch.equal(torch.rand(3), expected)


class TestWhatModelsCompute:
    def test_outputs_are_bit_identical_with_tracing(self) -> None:
        torch.manual_seed(0)
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        ).eval()
        x = torch.randn(2, 5, 16)
        with torch.no_grad():
            expected = model(x)
            assert all(torch.equal(output, expected) for output in outputs_of(model, x))

    def test_an_answer_goes_to_the_candidate_alone(self) -> None:
        def look(reference: Call, candidate: Call, phase: Phase) -> Answer:
            if reference.name == "a" and phase is Phase.END:
                return NewOutput(torch.zeros(4, 8))
            if reference.name == "b" and phase is Phase.START:
                seen.append((reference.arguments["input"], candidate.arguments["input"]))
            return None

        seen: list[tuple[object, object]] = []
        model = Net(in_order)
        walked(model, copy.deepcopy(model), Watcher(look))
        reference, candidate = seen[0]
        assert torch.equal(reference, model.a(X))
        assert torch.equal(candidate, torch.zeros(4, 8))

    def test_calls_in_other_threads_are_left_alone(self) -> None:
        def threaded(net: Net, x: torch.Tensor) -> torch.Tensor:
            results: list[torch.Tensor] = []
            thread = threading.Thread(target=lambda: results.append(net.b(x)))
            thread.start()
            thread.join()
            return net.a(results[0])

        reference = Net(threaded)
        comparison = agreed(reference, doing(reference, lambda net, x: net.a(net.b(x))), X)
        assert ("b", 0) not in rows_of(comparison)
        assert rows_of(comparison)["a", 0].agrees

    def test_generators_are_gone_through_side_by_side(self) -> None:
        def generated(net: Net, x: torch.Tensor) -> torch.Tensor:
            def parts() -> Iterator[torch.Tensor]:
                for layer in (net.a, net.b):
                    yield layer(x)

            return torch.stack(list(parts()))

        model = Net(generated)
        assert {("a", 0), ("b", 0)} <= rows_of(agreed(model, copy.deepcopy(model), X)).keys()

    def test_a_model_that_calls_itself(self) -> None:
        class Recursive(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.leaf = nn.Linear(8, 8)

            def forward(self, x, depth=3):
                return self.leaf(self(x, depth - 1)) if depth else x

        model = Recursive()
        comparison = agreed(model, copy.deepcopy(model), X)
        assert {("leaf", 2), ("", 3)} <= rows_of(comparison).keys()
        assert comparison.coverage.held_bytes_peak == 0

    def test_the_users_own_hooks_take_part(self) -> None:
        reference, candidate = Net(in_order), Net(in_order)
        candidate.a.register_forward_hook(lambda module, args, output: output + 1.0)
        handles = hooks_of(reference, candidate)
        comparison = compare(reference, candidate, X)
        assert rows_of(comparison)["a", 0].difference.mean == pytest.approx(1.0)
        assert hooks_of(reference, candidate) == handles


class TestMemory:
    def test_no_activation_outlives_its_comparison(self) -> None:
        """At any event at most a few of the activations of a deep model are alive."""
        alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        most = 0

        def deep(net: Net, x: torch.Tensor) -> torch.Tensor:
            nonlocal most
            for layer in net.layers:
                x = layer(x)
                alive.add(x)
                most = max(most, len(alive))
            return net.b(net.a(x))

        model = Net(deep, depth=24)
        comparison = agreed(model, copy.deepcopy(model), X)
        # Two on each side: what the next layer takes and what it gives.
        assert most <= 4
        assert comparison.coverage.held_bytes_peak == 0
        gc.collect()
        assert len(alive) == 0

    @pytest.mark.parametrize("side", ["reference", "candidate"])
    def test_what_only_one_side_calls_is_let_go_with_its_layer(self, side: str) -> None:
        """Held memory does not grow with the number of layers."""

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Tanh(), nn.Tanh()))
                self.out = nn.Linear(8, 8)

            def forward(self, x):
                return self.out(self.inner(x))

        class Shortcut(Layer):
            def forward(self, x):
                inner = x @ self.inner[0].weight.T + self.inner[0].bias
                return self.out(inner.tanh().tanh())

        def stack(depth: int, cls: type[Layer]) -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(*(cls() for _ in range(depth)))

        peaks = {}
        for depth in (2, 12):
            models = {"full": stack(depth, Layer), "short": stack(depth, Shortcut)}
            order = ("full", "short") if side == "reference" else ("short", "full")
            comparison = agreed(models[order[0]], models[order[1]], X)
            called = {call[1] for call in comparison.coverage.unmatched_calls}
            assert f"{depth - 1}.inner.1.1" in called
            peaks[depth] = comparison.coverage.held_bytes_peak
        assert peaks[12] == peaks[2] > 0

    @pytest.mark.parametrize("side", ["reference", "candidate"])
    def test_an_extra_call_does_not_send_the_other_side_through_the_model(self, side: str) -> None:
        def once(net: Net, x: torch.Tensor) -> torch.Tensor:
            x = net.a(x)
            for layer in net.layers:
                x = layer(x)
            return net.b(x)

        def twice(net: Net, x: torch.Tensor) -> torch.Tensor:
            net.a(x)
            return once(net, x)

        peaks = {}
        for depth in (60, 120):
            models = [Net(once, depth=depth)]
            models.insert(side == "candidate", copy.deepcopy(models[0]))
            models[side == "candidate"].how = twice
            comparison = agreed(*models, X)
            assert comparison.coverage.unmatched_calls == ((side, "a", 1),)
            assert (f"layers.{depth - 1}", 0) in rows_of(comparison)
            peaks[depth] = comparison.coverage.held_bytes_peak
        assert peaks[60] == peaks[120]

    def test_an_order_that_is_quite_another_costs_no_comparison(self) -> None:
        """Also beyond what the reference is let ahead by."""

        def backwards(net: Net, x: torch.Tensor) -> torch.Tensor:
            return sum(layer(x) for layer in reversed(net.layers)) + net.a(x)

        reference = Net(lambda net, x: net.a(x) + sum(layer(x) for layer in net.layers), depth=80)
        comparison = agreed(reference, doing(reference, backwards), X)
        assert comparison.coverage.unmatched_calls == ()
        assert {(f"layers.{i}", 0) for i in range(80)} <= rows_of(comparison).keys()


def test_a_scripted_candidate() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(copy.deepcopy(model))
        assert agreed(model, scripted, X).coverage.compared_calls == 1
        assert compare(scripted, model, X).verdict.agrees
