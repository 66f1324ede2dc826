"""Whether a baseline is of the same comparison: what is refused, what may change."""

from dataclasses import replace

import pytest
import torch

from tracer.comparison.identity import Content, Identity, SideIdentity
from tracer.regression.related import Mismatch, mismatches, of_older, unchecked
from tracer.reports.narrator.gate import mismatch

TENSOR = torch.linspace(-1.0, 1.0, 500)
WEIGHTS = Content.of(TENSOR)
SIDE = SideIdentity("Llama", "float32", False, None, (), WEIGHTS)
SETTINGS = {"reference": "models/a", "candidate": "quantized", "weight": "uint8", "seed": "0"}
THEN = Identity(
    SIDE,
    SideIdentity("QuantLlama", "float32", False, None, ("uint8",)),
    {"input_ids": Content.of(torch.arange(8)), "pixels": Content.of(TENSOR)},
    SETTINGS,
)


def other(**changed: object) -> Identity:
    return replace(THEN, **changed)


def setting(**changed: str) -> Identity:
    return other(settings=SETTINGS | changed)


@pytest.mark.parametrize(("now", "said"), [
    (other(reference=replace(SIDE, model="Qwen")),
     "the reference is of class Llama, and here Qwen"),
    (other(reference=replace(SIDE, dtype="bfloat16")),
     "the reference computes in float32, and here in bfloat16"),
    (other(reference=replace(SIDE, training=True)),
     "the reference is in evaluation mode, and here in training mode"),
    (other(reference=replace(SIDE, steps=3)),
     "the reference runs for no decode steps, and here 3"),
    (other(candidate=replace(THEN.candidate, points=("int16", "uint8"))),
     "the candidate is quantised to uint8, and here to int16, uint8"),
    (other(candidate=replace(THEN.candidate, points=())),
     "the candidate is quantised to uint8, and here to nothing"),
    (other(reference=replace(SIDE, weights=Content.of(TENSOR[1:]))),
     "the reference has other weights (float32 [500], and here float32 [499])"),
    (other(reference=replace(SIDE, weights=Content.of(TENSOR.flip(0)))),
     "the reference has other weights (relative L2 "),
    (setting(weight="int16"), "`weight` is uint8, and here int16"),
    (setting(seed="1"), "`seed` is 0, and here 1"),
    (setting(override="*=int16"), "`override` is not given, and here *=int16"),
    (setting(candidate="wrapped"), "`candidate` is quantized, and here wrapped"),
    (other(inputs=THEN.inputs | {"input_ids": Content.of(torch.arange(9))}),
     "the input `input_ids` is int64 [8], and here int64 [9]"),
    (other(inputs=THEN.inputs | {"input_ids": Content.of(torch.arange(8).flip(0))}),
     "the input `input_ids` holds other values (relative L2 "),
    (other(inputs=THEN.inputs | {"pixels": Content.of(1.1 * TENSOR)}),
     "the input `pixels` holds other values (relative L2 "),
    (other(inputs={"input_ids": THEN.inputs["input_ids"]}),
     "the input `pixels` is float32 [500], and here nothing"),
])  # fmt: skip
def test_what_is_of_another_comparison(now: Identity, said: str) -> None:
    (found,) = mismatches(THEN, now)
    assert mismatch(found).startswith(said)
    assert mismatches(now, now) == ()


@pytest.mark.parametrize("now", [
    THEN,
    setting(reference="elsewhere/b"),  # the same weights
    other(candidate=replace(THEN.candidate, model="Renamed")),  # its kind is the same
    other(reference=replace(SIDE, weights=Content.of(TENSOR * (1 + 1e-7)))),
    other(inputs=THEN.inputs | {"pixels": Content.of(TENSOR * 1.001)}),  # decoded elsewhere
])  # fmt: skip
def test_what_may_change(now: Identity) -> None:
    assert mismatches(THEN, now) == ()


def test_names_count_where_weights_are_not_known() -> None:
    then = other(reference=replace(SIDE, weights=None))
    assert mismatches(then, replace(then, settings=SETTINGS | {"reference": "x/models/a"})) == ()
    (found,) = mismatches(then, replace(then, settings=SETTINGS | {"reference": "models/b"}))
    assert found == Mismatch("setting", "reference", "models/a", "models/b")
    recorded = replace(SIDE, weights=None, recording="1")
    (found,) = mismatches(
        other(reference=recorded), other(reference=replace(recorded, recording="2"))
    )
    assert found.what == "weights"


def test_the_class_of_a_candidate_counts_where_nothing_else_names_it() -> None:
    then = other(settings={})
    (found,) = mismatches(then, replace(then, candidate=replace(then.candidate, model="B")))
    assert found == Mismatch("class", "candidate", "QuantLlama", "B")


@pytest.mark.parametrize(("path", "same"), [
    ("port.py:build", True), ("v1/port.py:build", True), ("v2/port.py:build", False),
    ("v1/port.py:make", False),
])  # fmt: skip
def test_a_candidate_by_its_path(path: str, same: bool) -> None:
    then, now = setting(candidate="v1/port.py:build"), setting(candidate=path)
    assert (mismatches(then, now) == ()) is same


# As a report of an older version has it.
RUN = {
    "reference": "tiny-llama (Llama, float32, cpu)",
    "candidate": "quantized (variant prefill, activation uint8, weight uint8)",
}


class TestOlder:
    def now(self, **changed: str) -> Identity:
        made = {"reference": "tiny-llama", "candidate": "quantized", "calibrate": "8"}
        quantiser = {"variant": "prefill", "activation": "uint8", "weight": "uint8"}
        return other(settings=made | quantiser | changed)

    def test_what_its_words_say(self) -> None:
        then = of_older(RUN)
        assert mismatches(then, self.now()) == ()
        assert unchecked(then, self.now()) == ("weights", "inputs")
        for name, value in (
            *(("reference", "random-llama"), ("candidate", "sdpa")),
            *(("weight", "int16"), ("variant", "decode")),
        ):
            found = mismatches(then, self.now(**{name: value}))
            assert [each.name for each in found] == [name]
        (found,) = mismatches(then, replace(self.now(), reference=replace(SIDE, dtype="float64")))
        assert found == Mismatch("dtype", "reference", "float32", "float64")

    @pytest.mark.parametrize("run", [None, {"reference": "the model", "candidate": "b"}])
    def test_one_that_says_nothing(self, run) -> None:
        then = of_older(run)
        assert then is None
        assert mismatches(then, self.now()) == ()
        assert unchecked(then, self.now()) == ("weights", "inputs", "settings")
        assert unchecked(then, None) == ()
