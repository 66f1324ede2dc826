import math
import random
import statistics

import pytest

from wrappers.studies import Difference, Outcome, Spread, choose
from wrappers.studies.judge.judgement import MARGIN, extremes_in_words, in_words, student


def by_seed(*figures: float) -> dict[int, float]:
    return dict(enumerate(figures))


class TestSpread:
    def test_it_is_that_of_a_sample(self):
        spread = Spread.of([1.0, 2.0, 4.0])
        assert (spread.mean, spread.count) == (pytest.approx(7 / 3), 3)
        assert spread.deviation == pytest.approx(statistics.stdev([1, 2, 4]))
        assert str(spread) == "2.3333 ± 1.5 over 3 seeds"
        assert math.isnan(Spread.of([1.0]).deviation)
        assert str(Spread.of([1.0])) == "1.0000"

    @pytest.mark.parametrize(("figures", "mean"), [
        ([1.0, math.inf], math.inf), ([math.inf, -math.inf], math.nan), ([1.0, math.nan], math.nan),
    ])  # fmt: skip
    def test_what_is_not_finite(self, figures, mean):
        spread = Spread.of(figures)
        assert spread.mean == pytest.approx(mean, nan_ok=True)
        assert math.isnan(spread.deviation)


class TestStudent:
    @pytest.mark.parametrize(
        ("p", "degrees", "quantile"),
        [
            # Tables of Student's t, to their last digit.
            (0.975, 1, 12.706),
            (0.975, 2, 4.303),
            (0.975, 3, 3.182),
            (0.975, 4, 2.776),
            (0.975, 7, 2.365),
            (0.975, 10, 2.228),
            (0.995, 1, 63.657),
            (0.995, 2, 9.925),
            (0.9995, 2, 31.599),
            (0.9995, 5, 6.869),
            (0.95, 30, 1.697),
        ],
    )
    def test_known_quantiles(self, p, degrees, quantile):
        assert student(p, degrees) == pytest.approx(quantile, abs=5.1e-4)

    @pytest.mark.parametrize("p", [0.6, 0.975, 1 - 0.025 / 11])
    def test_closed_forms(self, p):
        # One degree is Cauchy's distribution; two have t = (2p - 1) / sqrt(2 p (1 - p)).
        assert student(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        two = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert student(p, 2) == pytest.approx(two, rel=1e-9)

    @pytest.mark.parametrize("degrees", [5000, 5001])
    def test_many_degrees_are_normal(self, degrees):
        normal = statistics.NormalDist().inv_cdf(0.9975)
        assert student(0.9975, degrees) == pytest.approx(normal, rel=1e-3)
        assert student(0.5, 3) == pytest.approx(0.0, abs=1e-12)


class TestDifference:
    def test_students_interval_by_hand(self):
        # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(2) = 4.3027.
        difference = Difference.of(by_seed(2, 4, 6), by_seed(1, 2, 3))
        assert difference.mean == 2.0
        assert difference.high - 2.0 == pytest.approx(4.3026527 / math.sqrt(3))
        assert difference.outcome is Outcome.UNKNOWN
        assert str(difference) == "+2.0000 [-0.4841, +4.4841]"
        # Five comparisons share the 5 %: each at 99 %, t(2) = 9.9248.
        difference = Difference.of(by_seed(2, 4, 6), by_seed(1, 2, 3), comparisons=5)
        assert difference.high - 2.0 == pytest.approx(9.9248432 / math.sqrt(3))

    def test_common_seeds_alone_count(self):
        luck = [0.0, 5.0, -3.0]
        one = by_seed(*(1.0 + x for x in luck))
        other = by_seed(*(x + noise for x, noise in zip(luck, (0.01, -0.01, 0.0), strict=True)))
        assert Difference.of(one, other).outcome is Outcome.WORSE
        assert Difference.of({0: 1.0, 1: 2.0}, {1: 1.0, 2: 9.0}).count == 1
        with pytest.raises(ValueError, match="no seed in common"):
            Difference.of({0: 1.0}, {1: 1.0})
        difference = Difference.of({0: 1.0}, {0: 9.0})
        assert (difference.low, difference.high) == (-math.inf, math.inf)
        assert difference.outcome is Outcome.UNKNOWN

    @pytest.mark.parametrize(("low", "high", "outcome"), [
        (-0.2, -0.0011, Outcome.BETTER), (0.0011, 0.2, Outcome.WORSE),
        (-0.001, 0.001, Outcome.ALIKE), (-0.0009, -0.0001, Outcome.ALIKE), (0, 0, Outcome.ALIKE),
        (-0.17, 0.17, Outcome.UNKNOWN), (-0.0112, -0.0004, Outcome.UNKNOWN),
        (0.0, 0.0011, Outcome.UNKNOWN), (-math.inf, math.inf, Outcome.UNKNOWN),
        (math.nan, math.nan, Outcome.UNKNOWN),
    ])  # fmt: skip
    def test_the_whole_interval_says_what_it_is(self, low, high, outcome):
        assert MARGIN == 0.001
        assert Difference((low + high) / 2, low, high, 3).outcome is outcome

    @pytest.mark.parametrize(("one", "other", "outcome"), [
        ((math.inf, math.inf), (1.0, 1.0), "worse"), ((1.0, 1.0), (math.inf, math.inf), "better"),
        ((math.inf, 1.0), (1.0, 1.1), "cannot tell"),
        ((math.inf, 1.0), (1.0, math.inf), "cannot tell"),
        ((math.inf, math.inf), (math.inf, math.inf), "cannot tell"),
        ((math.nan, 1.0), (1.0, 1.0), "cannot tell"),
    ])  # fmt: skip
    def test_what_is_not_finite(self, one, other, outcome):
        assert Difference.of(by_seed(*one), by_seed(*other)).outcome == outcome

    def test_an_interval_of_95_percent_holds_the_truth_in_95_percent(self):
        draw = random.Random(0)
        held = 0
        for _ in range(2000):
            figures = by_seed(*(draw.gauss(0.3, 1.0) for _ in range(4)))
            difference = Difference.of(figures, by_seed(0, 0, 0, 0))
            held += difference.low <= 0.3 <= difference.high
        assert 0.935 <= held / 2000 <= 0.965


class TestChoose:
    def test_a_winner_or_none(self):
        choice = choose({"a": by_seed(1.0, 2.0, 3.0), "b": by_seed(0.5, 1.51, 2.49)}, default="a")
        assert (choice.best, choice.chosen) == ("b", "b")
        assert "better than the default, a, by 0.5000 [0.4752, 0.5248]: choose b" in (
            in_words(choice)
        )
        choice = choose({"a": by_seed(1.0, 1.0, 1.0), "b": by_seed(0.5, 1.4, 1.0)}, default="a")
        assert (choice.best, choice.chosen) == ("b", "a")
        assert in_words(choice).endswith(
            "; cannot tell it from the default, a (-0.0333 [-1.1535, +1.0868]): more calibration "
            "sets may tell."
        )
        figures = {"a": by_seed(1.0, 1.1, 1.2), "b": by_seed(0.9995, 1.0995, 1.1994)}
        choice = choose(figures, default="a")
        assert (choice.best, choice.chosen) == ("b", "a")
        assert "no difference that matters to the default, a (-0.0005 [" in in_words(choice)
        assert in_words(choice).endswith("keep the default.")

    def test_one_that_is_better_is_chosen_before_a_lucky_one(self):
        figures = {
            "a": by_seed(1.0, 1.0, 1.0),
            "lucky": by_seed(0.2, 1.1, 0.7),
            "b": by_seed(0.9, 0.9, 0.9),
        }
        choice = choose(figures, default="a")
        assert (choice.best, choice.chosen) == ("lucky", "b")
        assert "b is better than that, by 0.1000 [0.1000, 0.1000]: choose b" in in_words(choice)

    def test_the_default_is_best(self):
        assert choose({"b": by_seed(1.0), "a": by_seed(1.0)}, default="a").best == "a"
        choice = choose({"a": by_seed(1.0, 1.0)}, default="a")
        assert "it is the default, and there is nothing to compare it with." in in_words(choice)
        assert extremes_in_words(choice) == "a is the baseline: nothing to compare it with."
        choice = choose({"a": by_seed(1.0, 1.0), "b": by_seed(2.0, 2.1)}, default="a")
        assert (choice.best, choice.chosen) == ("a", "a")
        assert in_words(choice) == (
            "a has the least loss, 1.0000 ± 0 over 2 seeds; it is the default; worse than the "
            "default: b, +1.0500 [+0.4147, +1.6853]."
        )

    def test_the_best_of_many_and_chance(self):
        choice = choose({"a": by_seed(1.0), "b": by_seed(0.5)}, default="a")
        assert choice.chosen == "a"
        assert "one calibration set says nothing of the spread (-0.5000)" in in_words(choice)
        figures = {"a": by_seed(1.0, 1.0, 1.0), "b": by_seed(0.95, 0.96, 0.97)}
        assert choose(figures, default="a").chosen == "b"
        many = figures | {f"c{number}": by_seed(2.0, 2.0, 2.0) for number in range(9)}
        assert choose(many, default="a").chosen == "a"
        draw = random.Random(1)
        wrong = 0
        for _ in range(500):
            figures = {
                name: by_seed(*(draw.gauss(1.0, 0.1) for _ in range(3))) for name in "abcdefgh"
            }
            wrong += choose(figures, default="a").chosen != "a"
        assert wrong / 500 <= 0.05

    def test_long_lists_and_missing_seeds(self):
        names = {name: by_seed(1.0, 1.1, 1.2) for name in "bcdefghi"}
        figures = names | {"a": by_seed(1.0, 1.1, 1.15), "z": by_seed(9.0, 9.0, 9.0)}
        assert in_words(choose(figures, default="a")).endswith(
            "; cannot tell from the default: b, c, d, e, f, g and 2 more; worse than the default: "
            "z, +7.9167 [+7.3275, +8.5058]."
        )
        # Over the seeds that both have, b is worse by 0.095.
        figures = {"a": {0: 1.4, 1: 3.0, 2: 1.4}, "b": {0: 1.5, 2: 1.49}, "c": {}}
        choice = choose(figures, default="a")
        assert (choice.order, choice.incomplete) == (("a",), {"b": 1, "c": 3})
        assert in_words(choice).endswith(
            "; b is left out: it has no result for 1 of 3 seeds"
            "; c is left out: it has no result for any seed of a."
        )
        choice = choose({"a": {0: 1.4, 2: 1.4}, "b": {0: 1.3, 1: 9.0, 2: 1.3}}, default="a")
        assert (choice.chosen, choice.spread.mean) == ("b", pytest.approx(1.3))
        with pytest.raises(KeyError):
            choose({"b": by_seed(1.0)}, default="a")
        with pytest.raises(KeyError):
            choose({"a": {}, "b": by_seed(1.0)}, default="a")

    @pytest.mark.parametrize("bad", [(math.inf, math.inf), (math.nan, math.nan), (math.nan, 0.1)])
    def test_what_is_not_finite_is_not_ranked(self, bad):
        choice = choose({"b": by_seed(*bad), "a": by_seed(1.0, 1.1)}, default="a")
        assert (choice.order, choice.chosen) == (("a",), "a")
        assert in_words(choice).endswith("; b is left out: its figures are not finite.")

    def test_what_is_not_finite(self):
        figures = {"a": by_seed(math.nan, 1.0), "b": by_seed(1.2, 1.1), "c": by_seed(1.0, 1.1)}
        choice = choose(figures, default="a")
        assert (choice.best, choice.chosen, choice.over) == ("c", "c", {})
        assert "that of the default, a, is not finite: choose c" in in_words(choice)
        assert extremes_in_words(choice) == "a is the baseline: its figures are not finite."
        figures = {"a": by_seed(math.nan, math.nan), "b": by_seed(math.inf, 1.0)}
        choice = choose(figures, default="a")
        assert (choice.order, choice.chosen) == (("a",), "a")
        assert in_words(choice) == "none has a finite loss: keep a."


class TestExtremes:
    def test_against_the_baseline(self):
        figures = {
            "base": by_seed(1.0, 1.1, 1.2),
            "worse": by_seed(1.3, 1.4, 1.51),
            "better": by_seed(0.99, 1.15, 1.1),
        }
        text = extremes_in_words(choose(figures, "base"), "loss over a past")
        assert text == (
            "better has the least loss over a past: -0.0200 [-0.2905, +0.2505] over base, "
            "cannot tell; worse has the most loss over a past: +0.3033 [+0.2826, +0.3240] over "
            "base, worse."
        )

    def test_the_baseline_at_an_end(self):
        figures = {"base": by_seed(1.0, 1.1), "worse": by_seed(1.3, 1.4)}
        text = extremes_in_words(choose(figures, "base"))
        assert text.startswith("base, the baseline, has the least loss; worse has the most loss")
