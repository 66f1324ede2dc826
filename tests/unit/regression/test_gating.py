"""The gate: what is worse, better, gone and new; limits; what fails at which level."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import tracer
from tracer.diagnosis.verdict import Symptom
from tracer.errors import UsageError
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.regression.baseline import Baseline, Figures
from tracer.regression.gating import PEIR_MARGIN, RELATIVE_L2_MARGIN, gate
from tracer.tensors.difference import Difference

ESTIMATED = (Remark(RemarkKind.ESTIMATED),)


def kinds(decided: tracer.Gate) -> dict[str, str]:
    """The changes by module."""
    return {change.module: change.kind for change in decided.changes}


def levels(decided: tracer.Gate) -> list[str]:
    return [reason.level for reason in decided.reasons]


@pytest.fixture
def then(make_row, make_comparison):
    """Makes a baseline of modules and their PEIRs."""

    def make(**fields) -> Baseline:
        peirs = fields.pop("peirs")
        rows = [make_row(name, peir, **fields) for name, peir in peirs.items()]
        return Baseline.of(make_comparison(rows), "main.json")

    return make


@pytest.fixture
def now(make_row, make_comparison):
    def make(peirs, **fields) -> tracer.Comparison:
        return make_comparison([make_row(name, peir, **fields) for name, peir in peirs.items()])

    return make


class TestWorse:
    """Two models that should agree."""

    def test_as_it_was_or_beyond_the_tolerance(self, then, now):
        peirs = {"a": 1e-7, "b": 0.5, "c": math.nan, "d": None}
        decided = gate(now(peirs), then(peirs=peirs))
        assert decided.passes
        assert (decided.outputs, decided.changes, decided.reasons) == (4, (), ())
        assert decided.diverges
        assert [reason.level for reason in decided.let_pass] == ["divergence"]
        decided = gate(now({"a": 1.01e-5, "b": 0.0}), then(peirs={"a": 0.99e-5, "b": 0.0}))
        assert kinds(decided) == {"a": "worse"}
        assert str(decided.reasons[0]).startswith(
            "1 of 2 outputs is worse than in main.json: `a`, relative L2 "
        )
        assert gate(now({"a": 0.9e-5}), then(peirs={"a": 1e-9})).changes == ()

    @pytest.mark.parametrize(
        ("factor", "expected"), [(0.99, {}), (1.01, {"a": "worse"}), (0.99**2, {})]
    )
    def test_growing_beyond_the_margin(self, then, now, factor, expected):
        decided = gate(now({"a": 0.1 * RELATIVE_L2_MARGIN * factor}), then(peirs={"a": 0.1}))
        assert kinds(decided) == expected
        assert decided.passes is not bool(expected)

    def test_a_peak_that_the_whole_hardly_feels(self, make_row, make_comparison):
        r = torch.linspace(0, 1, 1001, dtype=torch.float64)
        noise = 0.05 * torch.sin(torch.arange(1001, dtype=torch.float64))
        spiked = noise.clone()
        spiked[500] = 0.05 * PEIR_MARGIN * 1.02
        plain, peak = (Difference.of(r, r + off) for off in (noise, spiked))
        assert peak.relative_l2 < RELATIVE_L2_MARGIN * plain.relative_l2
        before, after = (
            make_comparison([replace(make_row("a", 0.5), difference=d)]) for d in (plain, peak)
        )
        assert kinds(gate(after, Baseline.of(before))) == {"a": "worse"}
        assert kinds(gate(before, Baseline.of(after))) == {"a": "better"}

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            (0.5, None, "worse"),  # a shape that differs
            (None, 0.5, "better"),
            (0.5, math.nan, "worse"),
            (math.nan, 0.5, "better"),
            (0.0, 0.5, "worse"),
            (0.5, 0.0, "better"),
        ],
    )
    def test_what_is_not_finite_or_nothing(self, then, now, before, after, expected):
        decided = gate(now({"a": after, "b": 0.5}), then(peirs={"a": before, "b": 0.5}))
        assert kinds(decided) == {"a": expected}
        assert decided.passes is (expected == "better")

    def test_more_elements_that_are_not_finite(self, make_row, make_comparison):
        def broken(count: int) -> tracer.Comparison:
            r = torch.linspace(0, 1, 100)
            c = r.clone()
            c[:count] = math.nan
            return make_comparison([make_row("a", 0.5, agrees=False)]), Difference.of(r, c)

        few, many = (
            replace(made, rows=(replace(made.rows[0], difference=difference),))
            for made, difference in (broken(3), broken(30))
        )
        decided = gate(many, Baseline.of(few, "main.json"))
        assert kinds(decided) == {"a": "worse"}
        assert "3 → 30 elements not finite on one side" in decided.reasons[0].where
        assert gate(few, Baseline.of(few)).passes

    def test_what_does_not_count(self, make_row, make_comparison):
        loose = make_comparison([make_row("a", 1e-3, limit=0.1, agrees=True)])
        strict = make_comparison([make_row("a", 1e-3)])
        assert gate(strict, Baseline.of(loose)).changes == ()
        assert gate(loose, Baseline.of(strict)).changes == ()
        before = make_comparison([make_row("a"), make_row("a", 0.5, value="kwargs.x", agrees=True)])
        after = make_comparison([make_row("a"), make_row("a", 5.0, value="kwargs.x", agrees=True)])
        assert gate(after, Baseline.of(before)).changes == ()

    def test_the_worst_comes_first_and_the_first_is_named(self, then, now):
        peirs = dict.fromkeys("abcd", 0.01)
        decided = gate(now({"a": 0.01, "b": 0.05, "c": 0.5, "d": 0.001}), then(peirs=peirs))
        assert list(kinds(decided).items()) == [("c", "worse"), ("b", "worse"), ("d", "better")]
        assert decided.reasons[0].what == "2 of 4 outputs are worse than in main.json"
        assert decided.reasons[0].where.startswith("first `b`, relative L2 ")
        assert "; most `c`, relative L2 " in decided.reasons[0].where

    def test_models_that_agreed_and_differ_in_an_argument_now(self, make_row, make_comparison):
        before = make_comparison([make_row("a"), make_row("a", 0.0, value="kwargs.x")])
        after = make_comparison([make_row("a"), make_row("a", 0.5, value="kwargs.x")])
        decided = gate(after, Baseline.of(before, "main.json"))
        assert [str(reason) for reason in decided.reasons] == [
            "the models agreed in main.json, and diverge now"
        ]
        assert gate(after, Baseline.of(after)).passes


class TestQuantised:
    """A candidate that differs everywhere."""

    def test_leaving_the_tolerance_by_little_is_as_it_was(self, then, now):
        before, after = {"a": 0.99e-5, "b": 0.1}, {"a": 1.01e-5, "b": 0.1}
        assert gate(now(after), then(peirs=before), differences_expected=True).changes == ()
        assert kinds(gate(now(after), then(peirs=before))) == {"a": "worse"}

    def test_a_new_output_may_differ(self, then, now):
        after = now({"a": 0.1, "b": 0.1})
        decided = gate(after, then(peirs={"a": 0.1}), differences_expected=True)
        assert decided.passes
        assert kinds(decided) == {"b": "new"}
        decided = gate(after, differences_expected=True)
        assert decided.passes and not decided.diverges
        assert not gate(after).passes


class TestEstimates:
    """A baseline told by fingerprints leaves a factor of 0.62 to 2.13 open."""

    def decided(self, make_row, make_comparison, factor: float) -> tracer.Gate:
        before = Baseline.of(make_comparison([make_row("a", 0.1, remarks=ESTIMATED)]), "then.trace")
        assert before.figures["a", 0, "output", (1, 3)].estimated
        after = make_comparison([make_row("a", 0.1 * factor)])
        return gate(after, before, differences_expected=True)

    @pytest.mark.parametrize(("factor", "expected"), [
        (2.1 * 1.25, {}), (2.15 * 1.25, {"a": "worse"}), (0.63 / 1.25, {}),
        (0.6 / 1.25, {"a": "better"}),
    ])  # fmt: skip
    def test_only_what_goes_beyond(self, make_row, make_comparison, factor, expected):
        assert kinds(self.decided(make_row, make_comparison, factor)) == expected

    def test_that_it_agreed_is_not_certain(self, make_row, make_comparison):
        before = Baseline.of(make_comparison([make_row("a", 0.9e-5, remarks=ESTIMATED)]))
        assert gate(make_comparison([make_row("a", 1.1e-5)]), before).passes
        assert not gate(make_comparison([make_row("a", 5e-5)]), before).passes


class TestGoneAndNew:
    def test_a_module_that_is_gone(self, then, now):
        decided = gate(now({"a": 0.0}), then(peirs={"a": 0.0, "b": 0.0, "c": 0.0}))
        assert kinds(decided) == {"b": "gone", "c": "gone"}
        assert decided.modules_gone == ("b", "c")
        assert [str(reason) for reason in decided.reasons] == [
            "less was compared than in main.json: 2 of 3 modules gone, `b`, `c`; only 1 of 3 "
            "calls; only 3 of 9 elements"
        ]
        assert levels(decided) == ["coverage"]

    @pytest.mark.parametrize(("after", "before", "found", "passes"), [
        ({"a": 0.0, "c": 0.0}, {"a": 0.0, "b": 0.0}, {"c": "new", "b": "gone"}, False),
        ({"a": 0.0, "b": 1e-9}, {"a": 0.0}, {"b": "new"}, True),
        ({"a": 0.5, "b": 0.5}, {"a": 0.5}, {"b": "new"}, False),
    ])  # fmt: skip
    def test_a_module_that_is_new(self, then, now, after, before, found, passes):
        decided = gate(now(after), then(peirs=before))
        assert kinds(decided) == found
        assert decided.passes is passes
        if after["a"]:
            (reason,) = decided.reasons
            said = "1 output diverges that main.json does not have: first `b`"
            assert str(reason) == said

    def test_an_output_of_another_shape(self, make_row, make_comparison):
        before = make_comparison([make_row("a"), make_row("b", shape=(9, 9))])
        decided = gate(make_comparison([make_row("a"), make_row("b")]), Baseline.of(before, "x"))
        assert [change.kind for change in decided.changes] == ["new", "gone"]
        assert str(decided.reasons[0]) == (
            "less was compared than in x: 1 of 2 outputs gone or of another shape, first `b`"
        )

    def test_fewer_calls_and_nothing_in_common(self, now, then, make_row, make_comparison):
        before = replace(then(peirs={"a": 0.0}), calls=5, elements=4_000)
        (reason,) = gate(now({"a": 0.0}), before).reasons
        assert reason.where == "only 1 of 5 calls; only 3 of 4,000 elements"
        assert gate(now({"a": 0.0}), replace(before, calls=1, elements=2)).passes
        before = Baseline.of(make_comparison([make_row("a", shape=(2, 2))]), "main.json")
        with pytest.raises(UsageError, match=r"none of the 1 outputs in the baseline main\.json"):
            gate(make_comparison([make_row("a")]), before)


class TestLimits:
    def test_limits_take_the_place_of_the_tolerance(self, now, make_row, make_comparison):
        assert gate(now({"a": 0.0, "b": 0.4}), max_peir={"b": 0.5}).passes
        assert not gate(now({"a": 0.4, "b": 0.4}), max_peir={"b": 0.5}).passes
        decided = gate(now({"a": 1e-6}), max_peir={"*": 1e-7})
        assert [str(reason) for reason in decided.reasons] == [
            "1 of 1 outputs is beyond the limit *=1e-07: most `a`, PEIR 1e-06"
        ]
        assert levels(decided) == ["regression"]
        assert not decided.diverges
        rows = [make_row("a", 0.4, value="kwargs.x"), make_row("a", 0.4)]
        assert gate(make_comparison(rows), max_peir={"a": 0.5}).passes
        assert not gate(make_comparison(rows), max_peir={"a": 0.3}).passes
        off = [make_row("a", 0.6, value="kwargs.x"), make_row("a", 0.4)]
        assert gate(make_comparison(off), max_peir={"a": 0.5}).diverges

    def test_the_last_that_matches_counts(self, now):
        peirs = {"x.a": 0.4, "x.b": 0.1}
        assert not gate(now(peirs), max_peir={"x.a": 0.5, "*": 0.2}).passes
        decided = gate(now(peirs), max_peir={"*": 0.2, "x.a": 0.5})
        assert decided.passes
        found = [(limit.glob, limit.outputs, limit.module) for limit in decided.limits]
        assert found == [("x.a", 1, "x.a"), ("*", 1, "x.b")]
        # One without a module left to it does not count, and what could not be computed is beyond.
        (limit,) = gate(now({"a": 0.1}), max_peir={"a": 0.0, "*": 0.2}).limits
        assert limit.glob == "*"
        decided = gate(now({"a": None}), max_peir={"a": 1e9})
        assert decided.limits[0].worst == math.inf
        assert not decided.passes

    def test_what_is_within_one_is_not_worse(self, then, now):
        before, after = then(peirs={"a": 0.01}), now({"a": 0.4})
        assert gate(after, before, max_peir={"a": 0.5}).passes
        decided = gate(after, before, max_peir={"a": 0.5}, differences_expected=True)
        assert kinds(decided) == {"a": "worse"}

    @pytest.mark.parametrize(("limits", "message"), [
        ({"lm_haed": 0.1}, "lm_haed=0.1 matches none of the 2 modules .* mean 'lm_head'"),
        ({"*": math.nan}, "expected a finite PEIR of at least 0"),
        ({"*": -0.1}, "expected a finite PEIR of at least 0"),
        ({"*": math.inf}, "expected a finite PEIR of at least 0"),
    ])  # fmt: skip
    def test_that_are_none(self, now, limits, message):
        with pytest.raises(UsageError, match=message):
            gate(now({"lm_head": 0.1, "": 0.1}), max_peir=limits)


class TestFailOn:
    """Each level holds what those after it do."""

    @pytest.mark.parametrize(("fail_on", "counted"), [
        ("divergence", ["regression", "coverage", "divergence"]),
        ("regression", ["regression", "coverage"]), ("coverage", ["coverage"]), ("never", []),
        (None, ["regression", "coverage"]),
    ])  # fmt: skip
    def test_levels(self, then, now, fail_on, counted):
        before = then(peirs={"a": 0.1, "b": 0.1, "c": 0.0})
        decided = gate(now({"a": 0.1, "b": 0.4}), before, fail_on=fail_on)
        assert levels(decided) == counted
        assert decided.passes is (not counted)
        found = {reason.level for reason in (*decided.reasons, *decided.let_pass)}
        assert found == {"regression", "coverage", "divergence"}

    def test_without_a_baseline_divergence_fails(self, now):
        assert gate(now({"a": 0.0})).passes
        decided = gate(now({"a": 0.5}))
        assert (levels(decided), decided.fail_on) == (["divergence"], "divergence")
        assert gate(now({"a": 0.5}), fail_on="never").passes

    @pytest.mark.parametrize(("fail_on", "message"), [
        ("regression", "checked against a baseline or limits, and there are none"),
        ("coverage", "checked against a baseline, and there is none"),
        ("worse", "expected one of divergence, regression, coverage, never"),
    ])  # fmt: skip
    def test_nothing_to_hold_it_against(self, now, fail_on, message):
        with pytest.raises(UsageError, match=message):
            gate(now({"a": 0.5}), fail_on=fail_on)

    def test_a_run_that_was_ended(self, now):
        comparison = now({"a": 0.5})
        ended = replace(comparison, coverage=replace(comparison.coverage, ended=True))
        with pytest.raises(UsageError, match="the comparison is of a run that did not come to"):
            gate(ended)


class Block(nn.Module):
    """Three layers by name, one of which can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        self.skips = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x if self.skips else x + self.down(self.up(x).relu())
        return self.head(hidden)


class TestPlanted:
    """Regressions in real comparisons."""

    def coarse(self, reference: Block, **bits: int) -> Block:
        """A copy whose weights are rounded to so many bits, 8 by default."""
        candidate = Block()
        candidate.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for name in ("up", "down", "head"):
                weight = getattr(candidate, name).weight
                step = weight.abs().max() / 2 ** (bits.get(name, 8) - 1)
                weight.copy_((weight / step).round() * step)
        return candidate

    @pytest.fixture
    def pair(self):
        torch.manual_seed(0)
        reference, inputs = Block(), torch.randn(5, 8)
        comparison = tracer.compare(reference, self.coarse(reference), inputs, confirm=False)
        return reference, inputs, Baseline.of(comparison, "main.json")

    def decided(self, pair, candidate: Block) -> tracer.Gate:
        reference, inputs, baseline = pair
        comparison = tracer.compare(reference, candidate, inputs, confirm=False)
        return gate(comparison, baseline, differences_expected=True)

    @pytest.mark.parametrize(("bits", "found"), [
        ({}, {}),
        ({"down": 4}, {"down": "worse", "head": "worse", "": "worse"}),
        ({"up": 12, "down": 12, "head": 12}, dict.fromkeys(("up", "down", "head", ""), "better")),
    ])  # fmt: skip
    def test_other_bits(self, pair, bits, found):
        decided = self.decided(pair, self.coarse(pair[0], **bits))
        assert kinds(decided) == found
        assert decided.passes is ("worse" not in found.values())
        if not decided.passes:
            assert decided.reasons[0].where.startswith("`down`, relative L2 ")

    def test_weights_and_layers_that_were_changed(self, pair):
        candidate = self.coarse(pair[0])
        with torch.no_grad():
            candidate.up.weight[3] *= 1.5
        assert self.decided(pair, candidate).reasons[0].where.split("`")[1] == "up"
        candidate = self.coarse(pair[0])
        candidate.skips = True
        decided = self.decided(pair, candidate)
        assert decided.modules_gone == ("up", "down")
        assert levels(decided) == ["regression", "coverage"]
        assert "2 of 4 modules gone, `up`, `down`" in decided.reasons[1].where

    def test_a_layer_that_is_new(self, pair):
        reference, inputs, baseline = pair
        fewer = replace(
            baseline,
            figures={key: f for key, f in baseline.figures.items() if key[0] != "down"},
            modules=("", "up", "head"),
        )
        comparison = tracer.compare(reference, self.coarse(reference), inputs, confirm=False)
        decided = gate(comparison, fewer, differences_expected=True)
        assert decided.passes
        assert kinds(decided) == {"down": "new"}


def test_a_symptom_without_a_row_is_never_excused(make_row, make_comparison):
    comparison = make_comparison([make_row("a", 0.5), make_row("b", 0.4)])
    assert gate(comparison, max_peir={"b": 0.5}).diverges
    assert not gate(comparison, max_peir={"*": 0.5}).diverges
    unseen = replace(comparison.verdict, symptom=Symptom("a", 0, "output", math.inf))
    comparison = replace(make_comparison([make_row("a")]), verdict=unseen)
    assert gate(comparison, max_peir={"*": 0.5}).diverges


def test_figures_have_bounds_only_where_they_are_estimated():
    exact = Figures(0.1, 0.2, 0, 1e-5, agrees=False)
    assert exact.bounds == (0.1, 0.1)
    low, high = replace(exact, estimated=True).bounds
    assert (low, high) == pytest.approx((0.0622, 0.2127), rel=1e-3)
