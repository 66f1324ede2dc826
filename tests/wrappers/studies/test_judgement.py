import math
import random
import statistics

import pytest

from wrappers.studies import Difference, Spread, choose


def by_seed(*figures: float) -> dict[int, float]:
    return dict(enumerate(figures))


class TestSpread:
    def test_it_is_that_of_a_sample(self):
        spread = Spread.of([1.0, 2.0, 4.0])
        assert (spread.mean, spread.count) == (pytest.approx(7 / 3), 3)
        assert spread.deviation == pytest.approx(statistics.stdev([1, 2, 4]))

    def test_one_figure_has_none(self):
        assert math.isnan(Spread.of([1.0]).deviation)


class TestDifference:
    def test_students_interval_by_hand(self):
        # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(2) = 4.303.
        difference = Difference.of(by_seed(2, 4, 6), by_seed(1, 2, 3))
        assert difference.mean == 2.0
        assert difference.high - 2.0 == pytest.approx(4.303 / math.sqrt(3))
        assert not difference.is_clear

    def test_what_all_seeds_share_falls_out(self):
        luck = [0.0, 5.0, -3.0]
        one = by_seed(*(1.0 + x for x in luck))
        other = by_seed(*(x + noise for x, noise in zip(luck, (0.01, -0.01, 0.0), strict=True)))
        assert Difference.of(one, other).is_clear

    def test_only_common_seeds_count(self):
        assert Difference.of({0: 1.0, 1: 2.0}, {1: 1.0, 2: 9.0}).count == 1
        with pytest.raises(ValueError, match="no seed in common"):
            Difference.of({0: 1.0}, {1: 1.0})

    def test_one_seed_says_nothing(self):
        difference = Difference.of({0: 1.0}, {0: 9.0})
        assert (difference.low, difference.high) == (-math.inf, math.inf)
        assert not difference.is_clear

    def test_an_interval_of_95_percent_holds_the_truth_in_95_percent(self):
        draw = random.Random(0)
        held = 0
        for _ in range(2000):
            figures = by_seed(*(draw.gauss(0.3, 1.0) for _ in range(4)))
            difference = Difference.of(figures, by_seed(0, 0, 0, 0))
            held += difference.low <= 0.3 <= difference.high
        assert 0.935 <= held / 2000 <= 0.965


class TestChoose:
    def test_a_clear_winner(self):
        choice = choose({"a": by_seed(1.0, 2.0, 3.0), "b": by_seed(0.5, 1.51, 2.49)}, default="a")
        assert (choice.best, choice.chosen, choice.alike) == ("b", "b", ("b",))

    def test_no_difference_keeps_the_default(self):
        choice = choose({"a": by_seed(1.0, 1.0, 1.0), "b": by_seed(0.5, 1.4, 1.0)}, default="a")
        assert (choice.best, choice.chosen) == ("b", "a")
        assert choice.alike == ("a", "b")

    def test_a_sure_and_negligible_difference_keeps_the_default(self):
        figures = {"a": by_seed(1.0, 1.1, 1.2), "b": by_seed(0.9995, 1.0995, 1.1994)}
        choice = choose(figures, default="a")
        assert choice.over_default.is_clear
        assert (choice.best, choice.chosen) == ("b", "a")

    def test_the_default_is_best(self):
        choice = choose({"a": by_seed(1.0, 1.0), "b": by_seed(2.0, 2.1)}, default="a")
        assert (choice.best, choice.chosen, choice.over_default) == ("a", "a", None)

    def test_a_tie_goes_to_the_default(self):
        assert choose({"b": by_seed(1.0), "a": by_seed(1.0)}, default="a").best == "a"

    def test_an_infinite_loss_is_never_best(self):
        choice = choose({"a": by_seed(1.0, 1.1), "b": by_seed(math.inf, math.inf)}, default="a")
        assert choice.best == "a"
        assert choice.alike == ("a",)
