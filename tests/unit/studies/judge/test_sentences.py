"""What a study found, in sentences."""

from tests.builders.study_results import LOSSES, PAIR, SEEDS, fill_in, metrics, study
from wrappers.studies import MaskFill, Result, Results, report_of
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH


def test_variants_that_disagree(known: Results):
    fill_in(study(), known, LOSSES | {(SEARCH, -80.0): 0.5, (FAITHFUL, -80.0): 2.0})
    assert report_of(study(), known).reading[-1] == (
        "uint8/uint8: the variants differ in what is best (in prefill_reference -80 has 0.5010 "
        "and -120 has 0.8810: better; in prefill -80 has 2.0010 and -120 has 0.8810: worse); they "
        "disagree: prefill_reference speaks for -80, prefill, which computes as the hardware does, "
        "for -120."
    )


def test_variants_that_differ_in_nothing_sure(known: Results):
    """Each has another best, by less than the spread, and both keep the default."""
    noise = {SEARCH: (-0.3, 0.1, 0.05), FAITHFUL: (0.3, -0.1, 0.02)}
    made = MaskFill(fills=(-80.0,), pairs=[PAIR], seeds=SEEDS)
    while missing := known.missing(made.wanted(known)):
        for trial in missing:
            is_default = trial.settings["attention_mask_fill_value"] == -120.0
            shift = 0.0 if is_default else noise[trial.settings["variant"]][trial.seed]
            known.add(Result(trial, metrics(1.0 + shift, trial.seed)))
    line = report_of(made, known).reading[-1]
    assert "the variants differ in what is best" in line
    assert line.count(": cannot tell") == 2


def test_a_best_that_differs_by_next_to_nothing_is_no_disagreement(known: Results):
    fill_in(study(), known, LOSSES | {(SEARCH, -80.0): 0.8799, (FAITHFUL, -80.0): 0.8801})
    assert not any("the variants differ" in line for line in report_of(study(), known).reading)


def test_what_is_worse_is_told(known: Results):
    fill_in(study(), known, LOSSES)
    line = next(r for r in report_of(study(), known).reading if SEARCH in r and "least" in r)
    assert line.endswith(
        "worse than the default: -80, +0.0400 [+0.0400, +0.0400]; -40, +0.0800 [+0.0800, +0.0800]."
    )


def test_no_difference(known: Results):
    class Noisy(dict):
        def __getitem__(self, place):
            return 1.0

    fill_in(study(), known, Noisy())
    for line in report_of(study(), known).reading[1:]:
        assert line.endswith("; no difference that matters to the default: -40, -80.")
