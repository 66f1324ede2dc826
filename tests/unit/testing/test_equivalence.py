"""assert_equivalent: what it returns, and what the text of a failure shows."""

import copy
import inspect

import pytest
import torch
from torch import nn

import tracer
from tracer.tensors.tolerance import Tolerance

X = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.factor = 1.0

    def forward(self, x):
        hidden = self.up(x) * self.factor
        return self.down(torch.relu(hidden))


def mistaken() -> Mlp:
    model = Mlp()
    model.factor = 1.5
    return model


def failure(*arguments: object, **options: object) -> tracer.NotEquivalentError:
    with pytest.raises(tracer.NotEquivalentError) as caught:
        tracer.assert_equivalent(*arguments, **options)
    return caught.value


@pytest.fixture(scope="module")
def wrong() -> tracer.NotEquivalentError:
    return failure(Mlp(), mistaken(), X)


def test_models_that_agree() -> None:
    comparison = tracer.assert_equivalent(Mlp(), Mlp(), X)
    assert isinstance(comparison, tracer.Comparison)
    assert comparison.verdict.agrees


class TestText:
    def test_the_verdict_and_the_explanation(self, wrong) -> None:
        assert str(wrong).splitlines()[0].startswith("diverges: ")
        text = " ".join(str(wrong).split())
        assert "The error is introduced in the forward of the root module itself" in text
        assert "Its `factor` is 1.0 in the reference and 1.5 in the candidate." in text

    def test_the_rows_and_the_lines_of_both_sides(self, wrong) -> None:
        rows = [line.split() for line in str(wrong).splitlines()]
        assert ["module", "mean", "min", "max", "stddev", "PEIR"] in [row[:6] for row in rows]
        marked = [row for row in rows if row[:1] == ["▶"]]
        assert [row[1] for row in marked] == ["down"]
        assert str(wrong).splitlines()[-1].startswith("coverage: 3 of 3 modules, 3 calls")
        lines = str(wrong).splitlines()
        source, number = inspect.getsourcelines(Mlp.forward)
        line = number + next(i for i, text in enumerate(source) if "self.down(" in text)
        assert lines[0].endswith(f"test_equivalence.py:{line - 1}, in the root module")
        for side in ("reference", "candidate"):  # the line that zoom has found
            assert any(text.startswith(f"{side}: ") and f":{line - 1}" in text for text in lines)
        marked = [text for text in lines if text.strip().startswith(f"{line - 1} >")]
        assert len(marked) == 2
        assert all("hidden = self.up(x) * self.factor" in text for text in marked)

    @pytest.mark.covers
    def test_it_fits_and_has_no_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = nn.Sequential(*(Mlp() for _ in range(10)))
        other = copy.deepcopy(stack)
        other[7].factor = 1.5
        text = str(failure(stack, other, X))
        assert max(map(len, text.splitlines())) <= 92
        assert len(text.splitlines()) < 80
        assert "… " in text
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert "\x1b" not in str(failure(Mlp(), mistaken(), X))


def test_the_error_is_an_assertion_and_holds_the_comparison(wrong) -> None:
    assert isinstance(wrong, AssertionError)
    assert wrong.comparison.verdict.origin.module == ""


class TestLimit:
    @pytest.mark.covers
    def test_a_peir_or_a_tolerance(self) -> None:
        rows = failure(Mlp(), mistaken(), X).comparison.rows
        assert rows[-1].module == ""
        peir = rows[-1].peir  # a limit is held against what is computed of an argument
        tracer.assert_equivalent(Mlp(), mistaken(), X, peir=1.01 * peir)
        failure(Mlp(), mistaken(), X, peir=0.99 * peir)
        tracer.assert_equivalent(Mlp(), mistaken(), X, peir=Tolerance(1.0))

    def test_a_quantised_candidate_needs_one(self) -> None:
        loaded = tracer.models.load("tiny-llama", sequence_length=4)
        quantized = tracer.models.candidate(loaded, "quantized")
        with pytest.raises(
            tracer.UsageError, match=r"quantises at \d+ points, such as .* peir=0\.1"
        ):
            tracer.assert_equivalent(loaded.model, quantized, loaded.inputs)
        tracer.assert_equivalent(loaded.model, quantized, loaded.inputs, peir=0.9)
        tracer.assert_equivalent(quantized, quantized, loaded.inputs)


class TestCoverage:
    def test_too_few_modules_or_none(self) -> None:
        error = failure(Mlp(), Mlp(), X, min_modules=4)
        assert str(error).startswith("3 modules were compared, and at least 4 were expected\n")
        assert error.comparison.verdict.agrees
        tracer.assert_equivalent(Mlp(), Mlp(), X, min_modules=3)
        with pytest.raises(tracer.NothingComparedError):
            tracer.assert_equivalent(Mlp(), nn.Linear(8, 4), X)
        with pytest.raises(tracer.UsageError, match="matches none"):
            tracer.assert_equivalent(Mlp(), Mlp(), X, include="layers.*")

    def test_what_was_not_compared_is_told(self) -> None:
        candidate = Mlp()
        candidate.up = nn.Sequential(candidate.up)
        candidate.extra = nn.ReLU()
        text = str(failure(Mlp(), candidate, X, min_modules=9))
        assert "unpaired: " in text
        assert "extra" in text


def test_what_compare_takes(wrong) -> None:
    """Each option that both take has the default of `compare`."""
    theirs = inspect.signature(tracer.compare).parameters
    own = inspect.signature(tracer.assert_equivalent).parameters
    shared = own.keys() & theirs.keys()
    assert own.keys() - shared == {"peir", "min_modules"}
    assert all(own[name].default == theirs[name].default for name in shared)
    options = {"rename": {"^up$": "up"}, "isolate": "leaves", "noise_floor": True, "samples": 8}
    comparison = tracer.assert_equivalent(Mlp(), Mlp(), X, **options)
    assert comparison.isolation is not None
    assert any(row.floor is not None for row in comparison.rows)
    assert any(row.sample is not None for row in comparison.rows)
