"""The study of fill values: what it wants next, given what is known."""

from tests.builders.study_results import LOSSES, PAIR, fill_in, study
from wrappers.studies import Results
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH


def test_the_search(known: Results):
    assert study().fills == (-40.0, -80.0, -120.0)
    first = study().wanted(known)
    assert ({t.settings["variant"] for t in first}, len(first)) == ({SEARCH}, 9)
    fill_in(study(), known, LOSSES | {(SEARCH, -80.0): 0.5})
    last = [t for t in study().wanted(known) if t.settings["variant"] == FAITHFUL]
    fills = {t.settings["attention_mask_fill_value"] for t in last}
    assert fills == {-80.0, -120.0}  # the two best, of which one is the default
    refined = study(refine=True)
    depth = {f: abs(f + 72) for f in (-40.0, -60.0, -70.0, -80.0, -90.0, -100.0, -120.0)}
    losses = {(v, f): 1 + d / 100 for v in (SEARCH, FAITHFUL) for f, d in depth.items()}
    fill_in(refined, known, losses)
    assert refined.searched(PAIR, known) == [-40, -60, -70, -80, -90, -100, -120]
