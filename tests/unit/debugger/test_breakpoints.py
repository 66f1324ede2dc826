"""The debugger: where it opens, what is at hand there, and that nothing is left of it."""

import builtins
import copy
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tracer.comparison.result import Comparison
from tracer.comparison.run import compare
from tracer.debugger.breakpoints import Breakpoint, diff
from tracer.errors import ModelRunError, ShapeMismatchError, UsageError
from tracer.execution.hooks import Call
from tracer.execution.stepping import Stepped, Stepping
from tracer.tensors.difference import Difference

pexpect = pytest.importorskip("pexpect")
termios = pytest.importorskip("termios", reason="no pseudo-terminals")

ROOT = Path(__file__).parents[3]
X = torch.linspace(-1.0, 1.0, 16).reshape(2, 8)


class Inner(nn.Module):
    """Two linear layers with variables of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.factor = 1.0

    def forward(self, x):
        half = self.first(x) * self.factor
        return self.finish(half)

    def finish(self, half):
        double = half * 2
        result = self.second(double)
        return result + 1


class Net(nn.Module):
    def __init__(self, how: Callable[..., object] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = Inner()
            self.last = nn.Linear(8, 8)
            self.drop = nn.Dropout(0.5).eval()
        self.register_buffer("runs", torch.zeros(()))
        self.how = how

    def forward(self, x):
        self.runs += 1
        return self.plain(x) if self.how is None else self.how(self, x)

    def plain(self, x):
        x = self.inner(x)
        return self.last(x)


def scaled() -> Net:
    """Goes wrong between the two layers of `inner`."""
    net = Net()
    net.inner.factor = 1.5
    return net


class Session:
    """A comparison at whose prompts given commands are answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.printed = ""

    def __call__(self, commands, candidate, *, reference=None, inputs=X, **options):
        lines = "".join(f"{command}\n" for command in commands.split("; "))
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        try:
            return compare(reference or Net(), candidate, inputs, **options)
        finally:
            self.printed = self._capsys.readouterr().out

    @property
    def answers(self) -> list[str]:
        """What was printed after each command, without the prompts."""
        return [part.strip() for part in self.printed.split("(Pdb) ")[1:]]


@pytest.fixture
def at_prompt(monkeypatch, capsys) -> Iterator[Session]:
    names, trace = dict(vars(builtins)), sys.gettrace()
    yield Session(monkeypatch, capsys)
    assert dict(vars(builtins)) == names
    assert sys.gettrace() is trace


class TestWhere:
    def test_in_the_calling_frame_with_an_output_at_the_end(self, at_prompt) -> None:
        at_prompt("c", Net(), breakpoints="inner.second")
        assert "`inner.second`, call 0, starts." in at_prompt.printed
        assert "finish()\n-> result = self.second(double)" in at_prompt.printed
        point = Breakpoint("inner.second", at="end")
        at_prompt("p cand_call.output.shape; p 'result' in locals(); c", Net(), breakpoints=[point])
        assert "call 0, ends." in at_prompt.printed
        assert "-> result = self.second(double)" in at_prompt.printed
        assert at_prompt.answers[:2] == ["torch.Size([2, 8])", "False"]

    def test_the_root_is_called_by_the_tracer_and_the_others_in_turn(self, at_prompt) -> None:
        at_prompt("p tuple(candidate.args[0].shape); c", Net(), breakpoints=[""])
        assert "-> return model(*args, **kwargs)" in at_prompt.printed
        assert at_prompt.answers[0] == "(2, 8)"
        at_prompt("c; c; c; c", Net(), breakpoints=["inner.*", "last"])
        stops = re.findall(r"`([\w.]+)`, call \d, starts", at_prompt.printed)
        assert stops == ["inner.first", "inner.second", "last"]

    @pytest.mark.covers
    def test_diverged_arguments_and_outputs(self, at_prompt) -> None:
        at_prompt("c; c; c", scaled(), breakpoints=[Breakpoint("*", when="diverged")])
        stops = re.findall(
            r"`([\w.]+)`, call \d, starts; different: (\w+) \(PEIR", at_prompt.printed
        )
        assert stops == [("inner.second", "input"), ("last", "input")]
        point = Breakpoint("*", at="end", when="diverged")
        at_prompt("c; c; c; c", scaled(), breakpoints=[point])
        stops = re.findall(r"(`[\w.]+`|root module), call \d, ends; different", at_prompt.printed)
        assert stops == ["`inner.second`", "`inner`", "`last`", "root module"]

    def test_nothing_diverges_and_only_the_first_run_stops(self, at_prompt) -> None:
        comparison = at_prompt("q", Net(), breakpoints=[Breakpoint("*", when="diverged")])
        assert at_prompt.printed == ""
        assert comparison.verdict.agrees
        comparison = at_prompt("c", scaled(), breakpoints=["inner.second"])
        assert comparison.verdict.confirmed  # which took more runs
        assert at_prompt.printed.count("starts") == 1

    def test_the_reference_has_gone_on(self, at_prompt) -> None:
        def swapped(net: Net, x: torch.Tensor) -> torch.Tensor:
            late = net.last(x)
            early = net.inner(x)
            return early + late

        def straight(net: Net, x: torch.Tensor) -> torch.Tensor:
            early = net.inner(x)
            late = net.last(x)
            return early + late

        candidate, reference = Net(swapped), Net(straight)
        at_prompt(
            "p late.shape, reference.early.shape; c",
            *(candidate,),
            reference=reference,
            breakpoints=["inner"],
        )
        assert "-> early = net.inner(x)" in at_prompt.printed
        assert "The reference made this call earlier" in at_prompt.printed
        assert at_prompt.answers[0] == "(torch.Size([2, 8]), torch.Size([2, 8]))"

    def test_the_candidate_has_gone_on(self, at_prompt) -> None:
        """It calls `last` inside `inner`, where the reference does not."""
        candidate = Net(lambda net, x: net.inner(x))
        finish = candidate.inner.finish
        candidate.inner.finish = lambda half: finish(candidate.last(half))
        at_prompt("p ref_call.name; c", candidate, breakpoints=["last"], confirm=False)
        assert "The candidate made this call earlier" in at_prompt.printed
        assert at_prompt.answers[0] == "'last'"

    def test_the_candidate_has_ended(self, at_prompt) -> None:
        """The reference comes to `last` long after the candidate, and the root is left out."""

        def last_first(net: Net, x: torch.Tensor) -> torch.Tensor:
            net.last(x)
            return many(net, x)

        def last_last(net: Net, x: torch.Tensor) -> torch.Tensor:
            return net.last(many(net, x) * 0 + x)

        def many(net: Net, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = net.inner(x)
            return x

        at_prompt(
            "p x.shape; candidate; s; q",
            Net(last_first),
            reference=Net(last_last),
            include=["inner.*", "last"],
            breakpoints=["last"],
        )
        assert (
            "The candidate has run to its end: this is the reference's frame" in at_prompt.printed
        )
        assert "-> return net.last(many(net, x) * 0 + x)" in at_prompt.printed
        assert at_prompt.answers[0] == "torch.Size([2, 8])"
        assert at_prompt.answers[1] == "the candidate has run to its end, and has no frames now"
        assert "--Return--" in at_prompt.answers[2]

    def test_a_reference_that_is_told_step_by_step(self, at_prompt) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        model = LlamaForCausalLM(config).eval()
        at_prompt(
            "reference; reference.x; p ref_call.arguments['input'].shape; p reference_; c; c; c",
            Stepping(model, steps=1),
            reference=Stepped(model, steps=1),
            inputs={"input_ids": torch.arange(6)[None]},
            breakpoints=["*o_proj"],
        )
        assert "the reference ran over all positions at once before" in at_prompt.answers[0]
        assert at_prompt.answers[1].startswith("*** AttributeError: the reference ran over all")
        assert at_prompt.answers[2] == "torch.Size([1, 5, 16])"
        assert "call 1, starts" in at_prompt.answers[4]


class TestAtHand:
    def test_the_variables_of_both_callers(self, at_prompt) -> None:
        at_prompt(
            "p (reference.double != candidate.double).sum(); p candidate.double is double; "
            "p diff(reference.double, double).max; c",
            scaled(),
            breakpoints=["inner.second"],
        )
        net = Net()
        off = (net.inner.first(X) * 2 * 0.5).abs().max().item()
        assert at_prompt.answers[:2] == ["tensor(16)", "True"]
        assert float(at_prompt.answers[2]) == pytest.approx(off, rel=1e-6)

    def test_the_variables_of_callers_in_the_same_module_alone(self, at_prompt) -> None:
        """`x` is one of `forward`, which called `finish`."""
        at_prompt("p reference.x.equal(candidate.x); c", Net(), breakpoints=["inner.second"])
        assert at_prompt.answers[0] == "True"
        at_prompt("reference.doubel; reference.how; c", Net(), breakpoints=["inner.second"])
        assert "in Inner.finish at tests/unit/debugger/test_breakpoints.py:" in at_prompt.answers[0]
        assert "has no variable 'doubel'; it has" in at_prompt.answers[0]
        assert "did you mean 'double'?" in at_prompt.answers[0]
        assert "has no variable 'how'" in at_prompt.answers[1]

    def test_the_calls(self, at_prompt) -> None:
        at_prompt(
            "ref_call; p ref_call.module is cand_call.module; p diff(ref_call.arguments, "
            "cand_call.arguments).max; c",
            Net(),
            breakpoints=["inner.second"],
        )
        assert at_prompt.answers[0].startswith(
            "<Call 0 of inner.second (Linear): input=float32 [2, 8], from "
        )
        assert at_prompt.answers[1:3] == ["False", "0.0"]

    def test_in_every_frame(self, at_prompt) -> None:
        at_prompt("u; p reference.double.shape; u; u; d; c", Net(), breakpoints=["inner.second"])
        assert "forward()\n-> return self.finish(half)" in at_prompt.answers[0]
        assert at_prompt.answers[1] == "torch.Size([2, 8])"
        assert "plain()\n-> x = self.inner(x)" in at_prompt.answers[2]
        assert "forward()\n-> return self.plain(x)" in at_prompt.answers[3]

    def test_a_variable_of_the_models_own_goes_first(self, at_prompt) -> None:
        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            reference, diff = "the model's", x
            return net.plain(diff) if reference else diff

        at_prompt("u; p reference; p reference_.x.shape; c; c", Net(how), breakpoints=["last"])
        notes = re.findall(r"`(\w+)` is the model's own variable.* `(\w+)`\.", at_prompt.printed)
        assert notes == [("reference", "reference_"), ("diff", "diff_")]
        assert at_prompt.answers[1:3] == ['"the model\'s"', "torch.Size([2, 8])"]

    @pytest.mark.covers
    def test_modules_called_at_the_prompt_are_not_compared(self, at_prompt) -> None:
        plain = compare(Net(), scaled(), X)
        comparison = at_prompt(
            "p self.second(double).shape; p reference.self.first(reference.x).shape; n; "
            "p self.second(double).shape; c",
            scaled(),
            breakpoints=["inner.second"],
        )
        assert at_prompt.answers[0] == at_prompt.answers[1] == "torch.Size([2, 8])"
        assert at_prompt.answers[3] == "torch.Size([2, 8])"
        assert comparison.rows == plain.rows
        assert comparison.verdict == plain.verdict

    def test_random_numbers_drawn_at_the_prompt_change_nothing(self, at_prompt) -> None:
        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            x = net.drop(x)
            return net.drop(net.last(x))

        model = Net(how).train()
        comparison = at_prompt(
            "p torch.rand(3).shape; n; p torch.rand(3).shape; n; p torch.rand(5).shape; c; c",
            copy.deepcopy(model),
            reference=model,
            breakpoints=["drop", "last"],
            train=True,
        )
        assert at_prompt.answers.count("torch.Size([3])") == 2
        assert comparison.verdict.agrees, comparison.verdict.explanation
        assert all(row.error == 0.0 for row in comparison.rows)

    def test_what_is_assigned_reaches_the_model(self, at_prompt) -> None:
        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            shift = 0.0
            x = net.inner(x)
            return net.last(x + shift)

        candidate, reference = Net(how), Net(how)
        comparison = at_prompt(
            "shift = 1.0; p candidate.shift; p reference.shift; c",
            candidate,
            reference=reference,
            breakpoints=["inner"],
            confirm=False,
        )
        assert at_prompt.answers[1:3] == ["1.0", "0.0"]
        assert comparison.verdict.symptom.module == "last"
        assert comparison.verdict.symptom.value == "kwargs.input"


class TestStepping:
    def test_next_goes_on_in_the_candidate(self, at_prompt) -> None:
        at_prompt("n; p result.shape; n; n; n; c", Net(), breakpoints=["inner.second"])
        after = at_prompt.answers
        assert "finish()\n-> return result + 1" in after[0]
        assert after[1] == "torch.Size([2, 8])"
        assert "--Return--" in after[2]
        assert "forward()" in after[3]
        assert "plain()\n-> return self.last(x)" in after[4]

    def test_step_goes_into_modules_and_over_the_rest(self, at_prompt) -> None:
        at_prompt("s; s; r; c", Net(), breakpoints=["inner"])
        assert "--Call--" in at_prompt.answers[0]
        assert "forward()\n-> def forward(self, x):" in at_prompt.answers[0]
        assert "-> half = self.first(x) * self.factor" in at_prompt.answers[1]
        assert "--Return--" in at_prompt.answers[2]
        assert "forward()->tensor(" in at_prompt.answers[2]
        at_prompt("s; c", Net(), breakpoints=["inner.second"])
        assert "finish()\n-> return result + 1" in at_prompt.answers[0]

    def test_up_and_down_pass_over_machinery(self, at_prompt) -> None:
        at_prompt("w; u; u; u; u; c", Net(), breakpoints=["inner.first"])
        where = re.findall(r"(\S+)\(\d+\)(\w+)\(\)", at_prompt.answers[0])
        assert [name for _, name in where] == ["forward", "plain", "forward"]
        assert all(file == __file__ for file, _ in where)
        assert "*** Oldest frame" in at_prompt.answers[3]

    def test_breakpoints_on_the_way(self, at_prompt) -> None:
        at_prompt("n; p reference.double.shape; c", Net(), breakpoints=["inner", "inner.second"])
        assert "`inner.second`, call 0, starts" in at_prompt.answers[0]
        assert at_prompt.answers[1] == "torch.Size([2, 8])"
        line = Inner.finish.__code__.co_firstlineno + 3
        at_prompt(f"b {__file__}:{line}; c; p result.shape; clear 1; c", Net(), breakpoints="inner")
        assert "finish()\n-> return result + 1" in at_prompt.answers[1]
        assert at_prompt.answers[2] == "torch.Size([2, 8])"

    def test_the_names_follow(self, at_prompt) -> None:
        """After a step, `reference` is where the reference has got to by then."""
        commands = "n; reference; n; reference; candidate; c"
        at_prompt(commands, Net(), breakpoints=["inner.first"])
        assert "the reference, in Inner.forward at" in at_prompt.answers[1]
        assert "the reference, in Inner.finish at" in at_prompt.answers[3]
        assert "the candidate, in Inner.forward at" in at_prompt.answers[4]

    def test_stepping_to_the_end(self, at_prompt) -> None:
        comparison = at_prompt("; ".join(["n"] * 12), Net(), breakpoints=["last"])
        assert comparison.verdict.agrees
        assert not comparison.coverage.ended


class TestQuitting:
    def check(self, comparison: Comparison, *models: nn.Module) -> None:
        assert comparison.coverage.ended
        assert str(comparison.coverage).endswith("ended by the user")
        assert not comparison.verdict.agrees
        assert "ended by the user" in comparison.verdict.explanation
        for model in models:
            assert model.runs == 0
            for module in model.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks

    def test_rows_so_far(self, at_prompt) -> None:
        reference, candidate = Net(), Net()
        random = torch.get_rng_state()
        comparison = at_prompt("q", candidate, reference=reference, breakpoints=["inner.second"])
        self.check(comparison, reference, candidate)
        assert torch.equal(torch.get_rng_state(), random)
        assert [row.module for row in comparison.rows if row.is_output] == ["inner.first"]
        assert comparison.verdict.symptom is None
        assert "agrees" in comparison.verdict.explanation
        assert comparison.coverage.reasons["last"] == "the run was ended before it was called"
        assert "last" in comparison.coverage.reference_only

    def test_what_was_compared_until_then(self, at_prompt) -> None:
        candidate = scaled()
        comparison = at_prompt("q", candidate, breakpoints=["last"])
        self.check(comparison, candidate)
        assert comparison.verdict.symptom.module == "inner.second"
        assert not comparison.verdict.confirmed
        comparison = at_prompt("q", Net(), breakpoints=[""])
        self.check(comparison)
        assert not [row for row in comparison.rows if row.is_output]
        self.check(at_prompt("p 1", Net(), breakpoints=["last"]))

    @pytest.mark.parametrize("command", ["n", "s", "r"])
    def test_in_the_middle_of_stepping(self, at_prompt, command: str) -> None:
        """Also where the model catches whatever is raised in it."""
        cleaned = []

        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            try:
                return net.plain(x)
            except Exception:
                return x
            finally:
                cleaned.append(True)

        reference, candidate = Net(how), Net(how)
        comparison = at_prompt(
            f"{command}; q", candidate, reference=reference, breakpoints=["inner.second"]
        )
        self.check(comparison, reference, candidate)
        assert cleaned == [True, True]

    def test_an_interrupt_at_the_prompt(self, at_prompt, monkeypatch) -> None:
        """It cancels the command, as in any pdb."""
        at_prompt("raise KeyboardInterrupt; p 1 + 1; c", Net(), breakpoints=["last"])
        assert "2" in at_prompt.answers


class TestPostMortem:
    @staticmethod
    def raising(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.inner(x)
        wrong = x[:, :4]
        return net.last(wrong)

    def test_the_candidate_raises(self, at_prompt) -> None:
        with pytest.raises(ModelRunError, match="the candidate raised RuntimeError in module 'la"):
            at_prompt(
                "p wrong.shape; p candidate.wrong.shape; p reference.x.shape; cand_call; d; u; q",
                Net(self.raising),
                post_mortem=True,
            )
        assert "The candidate raised RuntimeError: mat1 and mat2" in at_prompt.printed
        assert "raising()\n-> return net.last(wrong)" in at_prompt.printed
        assert at_prompt.answers[0] == at_prompt.answers[1] == "torch.Size([2, 4])"
        assert at_prompt.answers[2] == "torch.Size([2, 8])"
        assert "<Call 0 of last (Linear)" in at_prompt.answers[3]
        assert "/torch/nn/modules/module.py" in at_prompt.answers[4]
        assert at_prompt.printed.count("raised") == 1

    def test_the_reference_raises(self, at_prompt) -> None:
        with pytest.raises(ModelRunError, match="the reference raised RuntimeError"):
            at_prompt(
                "p reference.wrong.shape; p candidate.x.shape; c",
                Net(),
                reference=Net(self.raising),
                post_mortem=True,
            )
        assert "The reference raised RuntimeError" in at_prompt.printed
        assert at_prompt.answers[:2] == ["torch.Size([2, 4])", "torch.Size([2, 8])"]

    def test_both_raise(self, at_prompt) -> None:
        with pytest.raises(ModelRunError, match="the candidate raised too"):
            at_prompt(
                "q; p candidate; q",
                Net(self.raising),
                reference=Net(self.raising),
                post_mortem=True,
            )
        assert re.findall(r"The (\w+) raised", at_prompt.printed) == ["candidate", "reference"]
        assert "the candidate has run to its end" in at_prompt.answers[1]

    def test_before_any_call(self, at_prompt) -> None:
        class Failing(Net):
            def forward(self, x):
                raise ValueError("no")

        with pytest.raises(ModelRunError, match="raised ValueError"):
            at_prompt("p cand_call.name; q", Failing(), post_mortem=True)
        assert "-> raise ValueError" in at_prompt.printed

    def test_outside_any_call(self, at_prompt) -> None:
        """A hook of the user's own raises before the first call is seen to begin."""

        def hook(module: nn.Module, args: object) -> None:
            raise ValueError(f"not {type(args).__name__}")

        candidate = Net()
        candidate.register_forward_pre_hook(hook)
        with pytest.raises(ModelRunError, match="raised ValueError outside its modules"):
            at_prompt("args; p ref_call; reference; q", candidate, post_mortem=True)
        assert "hook()\n-> raise ValueError" in at_prompt.printed
        assert at_prompt.answers[1:3] == ["None", "the reference stands at no call"]

    def test_not_asked_for_or_not_needed(self, at_prompt) -> None:
        with pytest.raises(ModelRunError):
            at_prompt("q", Net(self.raising), breakpoints=["drop"])
        assert at_prompt.printed == ""
        assert at_prompt("q", Net(), post_mortem=True).verdict.agrees
        assert at_prompt.printed == ""


class TestRefused:
    @pytest.fixture
    def never(self, at_prompt) -> Iterator[Net]:
        """A model that must not be run."""

        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            pytest.fail("it was run")

        yield Net(how)
        assert at_prompt.printed == ""

    def test_a_glob_that_matches_nothing(self, at_prompt, never) -> None:
        with pytest.raises(UsageError, match=r"'\*\.secund' matches none .* mean '\*second'"):
            at_prompt("q", never, reference=never, breakpoints=["*.secund"])
        with pytest.raises(UsageError, match=r"did you mean 'inner\.second'"):
            at_prompt("q", never, reference=never, breakpoints=["iner.second"])

    @pytest.mark.parametrize("words", [{"at": "begin"}, {"when": "never"}])
    def test_another_word(self, words: dict[str, str]) -> None:
        with pytest.raises(UsageError, match=r"expected '(start|always)' or"):
            Breakpoint("*", **words)

    def test_another_debugger_and_nobody_to_answer(self, at_prompt, never, monkeypatch) -> None:
        with pytest.raises(UsageError, match="debugger 'gdb': expected ipdb or pdb"):
            at_prompt("q", never, reference=never, breakpoints=["last"], debugger="gdb")
        monkeypatch.setenv("CI", "true")
        with pytest.raises(UsageError, match="CI is set and standard input is no terminal"):
            at_prompt("q", never, reference=never, post_mortem=True)

    def test_kept_closed(self, at_prompt, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", "0")
        with pytest.warns(UserWarning, match="PYTHONBREAKPOINT is 0"):
            comparison = at_prompt("q", Net(), breakpoints=["last"])
        assert comparison.verdict.agrees
        assert at_prompt.printed == ""


def look_around() -> None:
    """What PYTHONBREAKPOINT may name."""
    frame = sys._getframe().f_back
    print("shape", tuple(frame.f_locals["double"].shape), reference.double.shape)  # noqa: F821


class TestAnotherFunction:
    def test_it_is_called_among_the_names(self, at_prompt, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", f"{__name__}.look_around")
        comparison = at_prompt("", Net(), breakpoints=["inner.second"])
        assert "`inner.second`, call 0, starts" in at_prompt.printed
        assert "shape (2, 8) torch.Size([2, 8])" in at_prompt.printed
        assert comparison.verdict.agrees

    def test_after_an_exception(self, at_prompt, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", f"{__name__}.look_around")

        def how(net: Net, x: torch.Tensor) -> torch.Tensor:
            double = net.inner(x)
            raise ValueError(f"no {double.dtype}")

        with pytest.raises(AttributeError, match="has no variable 'double'"):
            at_prompt("", Net(how), post_mortem=True)


class TestDiff:
    def test_of_tensors_and_nested_values(self) -> None:
        assert diff(X, X + 1) == Difference.of(X, X + 1)
        left, right = {"a": (X, None), "b": [X]}, {"a": (X, None), "b": [X + 1]}
        assert diff(left, right) == Difference.of(X, X).merge(Difference.of(X, X + 1))
        assert diff(left, right).mean == pytest.approx(0.5)
        assert diff(left, right).elements == 32

    @pytest.mark.parametrize(("left", "right", "said"), [
        (X, X[0], r"value: the reference has shape \(2, 8\)"),
        ({"a": X}, {"b": X}, r"only the (first|second) holds value\.[ab] \(float32 \[2, 8\]"),
        ([X, X], [X], r"only the first holds value\.1"),
        ([X, 1], [X, 2], r"value\.1 is 1 and 2; expected two tensors"),
        (X, None, r"value is float32 .* and None; expected two tensors"),
        ("a", "a", "found 'a' and 'a'; expected tensors"),
    ])  # fmt: skip
    def test_what_cannot_be_compared(self, left: object, right: object, said: str) -> None:
        with pytest.raises((UsageError, ShapeMismatchError), match=said):
            diff(left, right)

    def test_how_calls_and_differences_are_shown(self) -> None:
        call = Call("a", 1, nn.Identity(), {"x": (X, None), "flag": True}, (), None, None)
        low = "from -1 to 1"
        assert (
            repr(call) == f"<Call 1 of a (Identity): x=tuple(0 float32 [2, 8], {low}), flag=True>"
        )
        call.output = torch.zeros(1)
        assert repr(call).endswith(" -> float32 [1], all 0>")
        assert repr(diff(X, X)) == (
            "Difference(mean=0, min=0, max=0, stddev=0, peir=0, mismatched=0, elements=16)"
        )


@pytest.mark.slow
class TestInATerminal:
    """The mask bug in a real pseudo-terminal."""

    @pytest.fixture
    def start(self, tmp_path: Path):
        """Starts the example with a breakpoint; gives the child, up to where the bug is planted."""

        def started(*arguments: str) -> "pexpect.spawn[str]":
            environment = {
                **os.environ, "HOME": str(tmp_path), "TERM": "xterm", "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers where the cursor is
            }  # fmt: skip
            child = pexpect.spawn(
                *(sys.executable, ["examples/find_the_mask_bug.py", *arguments]), env=environment,
                cwd=str(ROOT), encoding="utf-8", timeout=40, dimensions=(50, 160),
            )  # fmt: skip
            child.expect("The wrapped model as it was")
            return child

        return started

    def answer(self, child: "pexpect.spawn[str]", prompt: str, *exchange: tuple[str, str]) -> None:
        for command, answer in exchange:
            child.expect(prompt)
            child.sendline(command)
            child.expect(answer)

    def end(self, child: "pexpect.spawn[str]") -> None:
        child.expect(r"o_proj +\d\.\d+e-01")  # the example goes on to its end
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0

    def test_ipdb(self, start) -> None:
        child = start("--break", "*.o_proj")
        terminal = termios.tcgetattr(child.child_fd)
        child.expect(
            r"layers\.0\.self_attn\.o_proj`, call 0, starts; different: input \(PEIR 0\.\d"
        )
        self.answer(
            *(child, "ipdb>"),
            ("print('shape', *reference.attention_mask.shape)", "shape 1 1 84 84"),
            ("print('type', candidate.attention_mask.dtype)", r"type torch\.int64"),
            ("diff(reference.attn_output, cand_call.arguments['input'])", r"peir=0\.\d+, mism"),
            ("diff(reference.attention_mask, candidate.attention_mask)", "ShapeMismatchError"),
            ("u", "attention_of_that_time"), ("p attention_mask.dtype", r"torch\.int64"),
            ("u", "_attend"), ("d", "attention_of_that_time"), ("d", "attend"), ("n", "--Return--"),
            ("c", r"layers\.1\.self_attn\.o_proj`, call 0, starts"), ("q", "ended by the user"),
        )  # fmt: skip
        assert termios.tcgetattr(child.child_fd) == terminal
        self.end(child)

    def test_pdb(self, start) -> None:
        """The first attention is handed the wrong mask; its last projection has a wrong input."""
        child = start("--debugger", "pdb", "--break", "*.layers.?.self_attn*")
        terminal = termios.tcgetattr(child.child_fd)
        child.expect(r"layers\.0\.self_attn`, call 0, starts; different: attention_mask \(float32")
        self.answer(
            *(child, r"\(Pdb\)"),
            ("w", r"_attend\(\)\s+-> attended, _ = self\.self_attn\("),
            ("p cand_call.arguments['attention_mask'].dtype", r"torch\.int64"),
            ("p reference.attention_mask.dtype", r"torch\.float32"),
            ("c", r"layers\.0\.self_attn\.o_proj`, call 0, starts; different: input \(PEIR 0\.\d"),
            ("u", r"attention_of_that_time\(\)\s+-> return self\.attend\("),
            ("p attention_mask.shape", r"torch\.Size\(\[1, 84\]\)"),
            ("d", r"attend\(\)"),
            ("s", r"--Call--\s+> \S+linear\.py\(\d+\)forward\(\)"),
            ("r", "--Return--"),
            ("c", r"layers\.1\.self_attn`, call 0, starts"),
            ("q", "ended by the user"),
        )
        assert termios.tcgetattr(child.child_fd) == terminal
        self.end(child)
