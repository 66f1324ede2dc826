"""The exact line: mistakes are named, innocent forms are not."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tracer
import wrappers
from benchmarks.mistakes import ported
from benchmarks.mistakes.clean import all_of, by_square_root, head_by_head, in_two_parts
from benchmarks.mistakes.decoder import attention_forward
from benchmarks.mistakes.groups import groups
from benchmarks.mistakes.models import (
    generation,
    one_forward,
    tiny_llama,
    tiny_qwen3_vl,
    without_cache,
)
from benchmarks.mistakes.planting import after
from tracer import cli
from tracer.cli.exit_codes import ExitCode
from tracer.comparison.result import Comparison
from tracer.reports import json as json_report

Inputs = Mapping[str, Any]

LLAMA = "model.layers.1.self_attn"
TEXT, VISION = "model.language_model.layers.1.self_attn", "model.visual.blocks.1.attn"


def planted(group: str, name: str, **options: Any) -> tuple[Any, Comparison]:
    chosen = next(each for each in groups() if each.name == group)
    mistake = next(each for each in chosen.mistakes if each.name == name)
    return mistake, tracer.compare(
        *chosen.pair(mistake), rename=chosen.rename, strict=True, **options
    )


# Of each kind of mistake one, and those that once were charged to an innocent line.
@pytest.mark.covers
@pytest.mark.parametrize(("group", "name", "kind"), [
    ("Llama", "softmax over the queries", "wrong"),
    ("Llama", "rotate-half sign", "wrong"),
    ("Llama", "heads not transposed back", "missing"),
    ("Llama", "attention under autocast", "wrong"),
    ("Llama", "another mask of the same meaning, and a scale", "wrong"),
    ("Llama", "attention scale missing", "missing"),
    ("Llama", "mask dropped inside attention", "missing"),
    ("Llama", "attention residual left out", "missing"),
    ("Llama", "mask edited for the layers after", "edit"),
    ("Llama, generation", "cache not read", "wrong"),
    ("Qwen3-VL, vision", "merged channel by channel", "wrong"),
    ("wrapped Llama, prefill", "attention scale", "wrong"),
    ("wrapped Qwen3-VL, prefill", "queries and keys exchanged", "wrong"),
    ("quantised Llama, prefill", "point of the product left out", "missing"),
])  # fmt: skip
def test_the_planted_line_is_named(group: str, name: str, kind: str) -> None:
    mistake, comparison = planted(group, name)
    zoomed = comparison.zoomed
    assert zoomed is not None
    assert zoomed.kind == kind
    named = [zoomed.culprit, zoomed.made if kind == "missing" else None]
    assert any(mistake.is_at(o.file, o.line, o.text) for o in named if o is not None), zoomed
    assert zoomed.explanation in comparison.verdict.explanation


@pytest.mark.covers
@pytest.mark.parametrize(("name", "expected"), [
    ("attention scale missing", "* scaling"),
    ("mask dropped inside attention", "attn_weights + attention_mask"),
    ("attention residual left out", "residual + hidden_states"),
    ("second norm left out", "self.post_attention_layernorm(hidden_states)"),
    ("last norm left out", "self.norm(hidden_states)"),
])  # fmt: skip
def test_the_references_line_is_named(name: str, expected: str) -> None:
    zoomed = planted("Llama", name)[1].zoomed
    assert zoomed is not None
    assert zoomed.expected is not None
    assert expected in zoomed.expected.text
    assert "modeling_llama.py" in zoomed.expected.file


def rewritten(*plants: Callable[[Any], None]) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        other = copy.deepcopy(model)
        for plant in plants:
            plant(other)
        return other

    return change


def wrapped(variant: str) -> Callable[[Any], Any]:
    return lambda model: wrappers.prepare(model, wrappers.PTQConfig(variant=variant))


def with_sdpa(model: Any) -> Any:
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    return other


RIGHT = [
    pytest.param(source, change, module, least, id=f"{what}, {module}")
    for what, change, llama, qwen in (
        ("prefill", wrapped("prefill"), 0.7, 0.6),
        ("prefill_reference", wrapped("prefill_reference"), 0.6, 0.5),
        ("decode", wrapped("decode"), 0.4, None),
        ("copy", copy.deepcopy, 0.95, 0.95),
        ("SDPA", with_sdpa, 0.5, 0.5),
        (
            "head by head",
            rewritten(all_of("Attention", attention_forward, score=head_by_head)),
            0.8,
            None,
        ),
        (
            "softmax in parts",
            rewritten(all_of("Attention", attention_forward, weigh=in_two_parts)),
            0.8,
            None,
        ),
    )
    for source, module, least in (
        (tiny_llama, LLAMA, llama),
        (tiny_qwen3_vl, TEXT, qwen),
        (tiny_qwen3_vl, VISION, qwen),
    )
    if least is not None
]


@pytest.mark.parametrize(("source", "change", "module", "least"), RIGHT)
def test_a_right_module_in_another_form_has_no_culprit(source, change, module, least):
    reference, inputs = source()
    comparison = tracer.compare(reference, change(reference), inputs, zoom=module)
    zoomed = comparison.zoomed
    assert comparison.verdict.agrees
    assert zoomed is not None
    assert (zoomed.kind, zoomed.culprit, zoomed.unmatched) == ("none", None, 0)
    assert zoomed.matched >= least * zoomed.operations[1], zoomed
    assert "there is no culprit" in comparison.verdict.explanation


@pytest.mark.slow
def test_right_ports_and_norms() -> None:
    reference, inputs = without_cache(tiny_llama)()
    port = ported.port(reference)
    for module in (LLAMA, "model.layers.1", "model.norm", ""):
        options: Any = {"rename": ported.RENAME, "zoom": module}
        zoomed = tracer.compare(reference, port, inputs, **options).zoomed
        assert zoomed is not None
        assert zoomed.kind == "none"
    norms = rewritten(all_of("Norm", by_square_root))(reference)
    zoomed = tracer.compare(reference, norms, inputs, zoom="model.norm").zoomed
    assert zoomed is not None
    assert (zoomed.kind, zoomed.leading_to_match) == ("none", 1)  # the square root


# Small modules: the reference, and a candidate with another forward.


class Gate(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.compute = compute

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.compute(self, x, attention_mask)


class Outer(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.last = Gate(compute), nn.Linear(6, 3)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.last(self.gate(x, attention_mask))


def right(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    return torch.sigmoid(self.first(x)) * self.second(x) + 0.5 * x


def pair(wrong: Callable[..., Tensor]) -> tuple[nn.Module, nn.Module, Inputs]:
    torch.manual_seed(0)
    reference = Outer(right).eval()
    candidate = copy.deepcopy(reference)
    candidate.gate.compute = wrong
    return reference, candidate, {"x": torch.randn(2, 5, 6)}


def zoomed_text(wrong: Callable[..., Tensor], **options: Any) -> tuple[str, str]:
    zoomed = tracer.compare(*pair(wrong), **options).zoomed
    assert zoomed is not None
    assert zoomed.culprit is not None
    return zoomed.kind, zoomed.culprit.text


def bias_forgotten(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate = torch.sigmoid(self.first(x))
    return gate * self.second(x)


def in_place(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate = torch.sigmoid(self.first(x))
    gate[:, 0] = 0.0
    return gate * self.second(x) + 0.5 * x


def in_place_and_right(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate = self.first(x).sigmoid_()
    return gate.mul_(self.second(x)).add_(x, alpha=0.5)


def by_data(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate = torch.sigmoid(self.first(x))
    gate.data.clamp_(max=0.5)
    return gate * self.second(x) + 0.5 * x


def to_memory(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    gate, out = torch.sigmoid(self.first(x)), torch.empty_like(x)
    torch.sub(gate, self.second(x), out=out)
    return out + 0.5 * x


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square() + x


def by_own_function(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    return Doubled.apply(torch.sigmoid(self.first(x))) * self.second(x) + 0.5 * x


def wrong_constant(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    kept = torch.arange(6) > 0
    return torch.sigmoid(self.first(x)) * self.second(x) * kept + 0.5 * x


@pytest.mark.parametrize(("wrong", "kind", "text"), [
    (bias_forgotten, "missing", "return gate * self.second(x)"),
    (in_place, "wrong", "gate[:, 0] = 0.0"),
    (by_data, "wrong", "gate.data.clamp_(max=0.5)"),
    (to_memory, "wrong", "torch.sub(gate, self.second(x), out=out)"),
    (by_own_function, "wrong", "return x.square() + x"),
    (wrong_constant, "wrong", "kept = torch.arange(6) > 0"),
])  # fmt: skip
def test_small_mistakes(wrong: Callable[..., Tensor], kind: str, text: str) -> None:
    assert zoomed_text(wrong) == (kind, text)


def test_right_in_place() -> None:
    zoomed = tracer.compare(*pair(in_place_and_right), zoom="gate").zoomed
    assert zoomed is not None
    assert zoomed.kind == "none"


def test_the_zoom_goes_into_the_module_that_is_wrong() -> None:
    zoomed = tracer.compare(*pair(in_place), zoom="").zoomed
    assert zoomed is not None
    assert zoomed.module == "gate"
    assert zoomed.culprit is not None
    assert zoomed.culprit.text == "gate[:, 0] = 0.0"


@pytest.mark.covers
def test_wrong_arguments_are_replaced_and_named() -> None:
    reference, candidate, inputs = pair(in_place)

    def given_more(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return args[0] + 1, *args[1:]

    candidate.get_submodule("gate").register_forward_pre_hook(given_more)
    zoomed = tracer.compare(reference, candidate, inputs, zoom="gate").zoomed
    assert zoomed is not None
    assert zoomed.given == ("x",)
    assert zoomed.culprit is not None
    assert zoomed.culprit.text == "gate[:, 0] = 0.0"
    assert "`gate` was given the reference's `x`, which had differed" in zoomed.explanation


def test_wrong_masks_are_replaced() -> None:
    def masked(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        return functional.softmax(self.first(x) + mask, -1) * self.second(x)

    reference, candidate, inputs = pair(masked)
    reference.get_submodule("gate").compute = masked  # type: ignore[assignment]
    inputs = {**inputs, "attention_mask": torch.zeros(1, 1, 1, 6).squeeze(0)}

    def hidden(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return args[0], torch.full_like(args[1], -1e4).tril(-1)

    candidate.get_submodule("gate").register_forward_pre_hook(hidden)
    zoomed = tracer.compare(reference, candidate, inputs, zoom="gate").zoomed
    assert zoomed is not None
    assert zoomed.kind == "none"


@pytest.mark.covers
def test_by_itself_only_where_the_origin_is_confirmed_and_in_own_lines() -> None:
    assert tracer.compare(*pair(right)).zoomed is None
    assert tracer.compare(*pair(in_place), confirm=False).zoomed is None
    assert planted("Llama", "one weight")[1].zoomed is None
    assert planted("Llama", "no mask at all")[1].zoomed is None


def test_nothing_is_recorded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    own = tracer.diagnosis.zoom.zoom.OperationLog.begin  # type: ignore[attr-defined]

    def begin(self: Any) -> None:
        begun.append(1)
        own(self)

    monkeypatch.setattr("tracer.diagnosis.zoom.zoom.OperationLog.begin", begin)
    tracer.compare(*pair(right))
    assert not begun
    tracer.compare(*pair(in_place))
    assert len(begun) == 2  # once on each side


class TestRefusals:
    def test_unknown_and_compiled_modules(self) -> None:
        with pytest.raises(tracer.UsageError, match=r"zoom 'gat': .* did you mean 'gate'"):
            tracer.compare(*pair(right), zoom="gat")
        reference, candidate, inputs = pair(right)
        candidate.gate.first = torch.compile(candidate.gate.first, backend="eager")
        with pytest.raises(tracer.UsageError, match="cannot be recorded"):
            tracer.compare(reference, candidate, inputs, zoom="gate")

    @pytest.mark.covers
    def test_more_values_than_may_be_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tracer.diagnosis.zoom.operations.MOST_BYTES", 100)
        reference, candidate, inputs = pair(bias_forgotten)
        with pytest.raises(tracer.UsageError, match="GiB of values"):
            tracer.compare(reference, candidate, inputs, zoom="gate")
        comparison = tracer.compare(reference, candidate, inputs)
        assert comparison.verdict.confirmed
        assert comparison.zoomed is None
        assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()

    def test_calls_that_there_are_not(self) -> None:
        reference, inputs = one_forward(tiny_llama, 2)()
        candidate = generation(tiny_llama, 2)()[0]
        with pytest.raises(tracer.UsageError, match="all positions at once"):
            tracer.compare(reference, candidate, inputs, zoom=LLAMA)
        reference, candidate, inputs = pair(right)
        for model in (reference, candidate):
            model.spare = nn.Linear(2, 2)
        with pytest.raises(tracer.UsageError, match="not called by both"):
            tracer.compare(reference, candidate, inputs, zoom="spare")

    def test_a_child_that_cannot_be_seen_leaves_the_verdict(self) -> None:
        reference, candidate, inputs = pair(in_place)
        candidate.gate.spare = torch.compile(nn.Linear(2, 2), backend="eager")
        assert tracer.compare(reference, candidate, inputs).zoomed is None


def test_a_candidate_that_raises_in_the_zoom_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that fails with the reference's inputs leaves the verdict as it is."""
    calls = [0]

    def fragile(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 1:
            raise RuntimeError
        return right(self, x, mask) + 1

    assert tracer.compare(*pair(fragile)).zoomed is None


def test_reports_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = tracer.compare(*pair(in_place))
    document: Any = json.loads(json_report.render(comparison))
    assert document["zoomed"]["culprit"]["text"] == "gate[:, 0] = 0.0"
    assert document["zoomed"]["module"] == "gate"
    comparison.show()
    shown = capsys.readouterr().out
    assert "  candidate: fill_ at" in shown
    assert "    gate[:, 0] = 0.0" in shown


@pytest.mark.covers
def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "tiny-llama", "--zoom", LLAMA]) == ExitCode.AGREES
    assert f"Inside `{LLAMA}` there is no culprit" in capsys.readouterr().out
    options = ["--candidate", "quantized", "--zoom", f"{LLAMA}.q_proj", "--isolate", "none"]
    cli.main(["compare", "tiny-llama", *options])
    assert f"Inside `{LLAMA}.q_proj`" in capsys.readouterr().out
    assert cli.main(["compare", "tiny-llama", "--zoom", "nothing"]) == ExitCode.WRONG_USE
    assert "zoom 'nothing'" in capsys.readouterr().err


@pytest.mark.covers
def test_what_a_helper_of_both_sides_does_is_charged_to_the_line_that_calls_it() -> None:
    zoomed = planted("Llama", "rope on half of the channels")[1].zoomed
    assert zoomed is not None
    assert zoomed.culprit is not None
    assert zoomed.culprit.function == "other_half"


def test_planted_in_a_module_of_torch() -> None:
    reference, inputs = tiny_llama()
    candidate = rewritten(after("lm_head", partial(torch.mul, other=1.5)))(reference)
    zoomed = tracer.compare(reference, candidate, inputs).zoomed
    assert zoomed is not None
    assert zoomed.culprit is not None
    assert zoomed.culprit.name == "mul"
