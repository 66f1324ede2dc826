"""The tables of the localisation benchmark: mistakes are found, and right pairs agree."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tracer
from benchmarks import localisation
from benchmarks.mistakes import llama
from benchmarks.mistakes.clean import CLEAN, Pair
from benchmarks.mistakes.groups import Group, groups
from benchmarks.mistakes.models import tiny_llama, tiny_qwen3_vl
from benchmarks.mistakes.planting import Mistake, parameter
from tracer.models import builtin as tiny

# A mistake in two layers at once, and one that made the model raise: what is named is right, and no
# second run can show it.
UNCONFIRMED = {"cache of another layer", "MLP loaded in bfloat16"}


def listed() -> Iterator[tuple[Group, Mistake]]:
    """Every 24th mistake in the first setting of its table, fewer in the others, and all that are
    known to be missed; the benchmark runs the rest."""
    seen: set[int] = set()
    for group in groups():
        step = 72 if id(group.mistakes) in seen else 24
        seen.add(id(group.mistakes))
        for place, mistake in enumerate(group.mistakes):
            if place % step == 0 or mistake.missed:
                yield group, mistake


SMOKE = 10


def rows() -> Iterator[Any]:
    """What is listed as parameters; those beyond a few, spread over the tables, are slow."""
    found = list(listed())
    for place, (group, mistake) in enumerate(found):
        marks = [pytest.mark.xfail(reason=mistake.missed)] if mistake.missed else []
        if place % (len(found) // SMOKE):
            marks.append(pytest.mark.slow)
        yield pytest.param(group, mistake, id=f"{group.name}: {mistake.name}", marks=marks)


@pytest.mark.no_cover  # what a mistake makes of the tracer's rooms is covered by their own tests
@pytest.mark.parametrize(("group", "mistake"), list(rows()))
def test_a_mistake_is_found(group: Group, mistake: Mistake) -> None:
    check(group, mistake)


@pytest.mark.slow
@pytest.mark.no_cover  # what a mistake makes of the tracer's rooms is covered by their own tests
@pytest.mark.parametrize("name", llama.COARSE[::2])
def test_a_mistake_is_found_in_a_real_checkpoint(shared_data: Path, name: str) -> None:
    group = next(group for group in groups(shared_data) if group.name == "stories260K")
    check(group, next(mistake for mistake in group.mistakes if mistake.name == name))


def check(group: Group, mistake: Mistake) -> None:
    *models, inputs = group.pair(mistake)
    try:
        verdict = tracer.compare(
            *models, inputs, rename=group.rename, train=mistake.train, strict=True
        ).verdict
    except tracer.ModelRunError as error:
        verdict = error.comparison.verdict
    assert not verdict.agrees, verdict.explanation
    assert verdict.origin is not None
    found = verdict.origin.argument or verdict.origin.kind
    assert (verdict.origin.module, found) == (mistake.module, mistake.found), verdict.explanation
    assert (verdict.origin.argument is None) == (verdict.origin.kind != "argument")
    assert verdict.confirmed == (mistake.name not in UNCONFIRMED), verdict.explanation
    for line in (verdict.origin.reference_line, verdict.origin.candidate_line):
        assert line is not None
        file, _, number = line.rpartition(":")
        assert file.endswith(".py")
        assert int(number) > 0


# Compiling takes as long as all the others together; other tests have compiled models.
@pytest.mark.no_cover  # what a mistake makes of the tracer's rooms is covered by their own tests
@pytest.mark.parametrize(
    "pair",
    [pair for pair in CLEAN if pair.name != "compiled"][::3],
    ids=lambda pair: f"{pair.group}: {pair.name}",
)
def test_a_right_pair_agrees(pair: Pair) -> None:
    *models, inputs = pair.make()
    verdict = tracer.compare(*models, inputs, rename=pair.rename).verdict
    assert verdict.agrees, verdict.explanation
    assert verdict.symptom is None
    assert verdict.origin is None


def test_what_is_planted_and_its_names() -> None:
    for name, source in (("random-llama", tiny_llama), ("tiny-qwen3-vl", tiny_qwen3_vl)):
        reference, _ = source()
        fresh = tiny.build(name, 0).state_dict()
        assert all(torch.equal(fresh[key], value) for key, value in reference.state_dict().items())
    for group in groups():
        assert len({mistake.name for mistake in group.mistakes}) == len(group.mistakes)
    assert len({(pair.group, pair.name) for pair in CLEAN}) == len(CLEAN)


class TestBenchmark:
    """What the script prints, on few mistakes."""

    def outcomes(self, *names: str, wrong: bool = False) -> list[localisation.Outcome]:
        group = next(group for group in groups() if group.name == "Llama")
        mistakes = [mistake for mistake in group.mistakes if mistake.name in names]
        if wrong:
            plant = parameter("lm_head", lambda weight: 2 * weight)
            mistakes.append(Mistake("elsewhere", plant, "model.norm", "parameter"))
        right = next(pair for pair in CLEAN if pair.name == "copy")
        planted = [localisation.planted(group, mistake) for mistake in mistakes]
        return [*planted, localisation.right(right)]

    @pytest.mark.covers
    def test_figures(self) -> None:
        table = localisation.figures(self.outcomes("one weight", "norm eps", wrong=True))
        header, *lines = table.splitlines()
        assert header.split("  ")[0] == "group"
        assert [line.split("  ")[0] for line in lines] == ["Llama", "right pairs, Llama", "all"]
        values = lines[0].split("  ")
        found = [value.strip() for value in values if value][1:9]
        shares = ["66.7 %", "66.7 %", "100.0 %"]
        assert found == ["3", *shares, "1", "100.0 %", "0", "0"]
        assert "      -  " in lines[1]

    @pytest.mark.covers
    def test_what_was_missed(self) -> None:
        assert localisation.missed(self.outcomes("one weight")) == "Nothing was missed."
        text = localisation.missed(self.outcomes("logits in bfloat16", wrong=True), markdown=True)
        assert text.splitlines()[1] == "|---|---|---|---|---|"
        assert "| Llama | elsewhere | `model.norm`: parameter | `lm_head`: parameter |" in text
        assert "the agreement says so" in text
        outcomes = self.outcomes("norm eps", "attention scale")
        assert localisation.missed_lines(outcomes) == "No exact line was missed."
        lost = [replace(outcome, line_is_right=False) for outcome in outcomes[:1]]
        text = localisation.missed_lines(lost)
        assert text.splitlines()[0].split() == ["group", "line", "missed", "named"]
        assert "torch.rsqrt(variance + self.variance_epsilon)" in text

    def test_only_and_group(self) -> None:
        outcomes = list(localisation.run(None, "Llama", "norm eps"))
        assert [(o.group, o.name, o.is_right) for o in outcomes] == [("Llama", "norm eps", True)]

    def test_models_that_raise(self) -> None:
        outcome = self.outcomes("MLP loaded in bfloat16")[0]
        assert outcome.is_right
        assert "the candidate raised RuntimeError" in outcome.raised
        reference, inputs = tiny_llama()
        broken: Any = {**inputs, "input_ids": inputs["input_ids"] + 10_000}
        pair = Pair("right", "out of the vocabulary", lambda: (reference, reference, broken))
        outcome = localisation.right(pair)
        assert not outcome.is_right
