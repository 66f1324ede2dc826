"""What the gate has decided, in words."""

from tracer.regression.result import Gate, Less, Limit, Reason
from tracer.reports.narrator.gate import lines, where

KEPT = Limit("*.head", 0.05, 3, 0, "lm.head", 0, "output", 0.01)


def test_the_outcome_and_every_finding() -> None:
    gate = Gate(
        passes=False,
        fail_on="divergence",
        reasons=(Reason("diverges"),),
        let_pass=(Reason("agreed", "main.json"),),
        diverges=True,
        baseline="main.json",
        outputs=4,
        limits=(KEPT,),
    )
    assert lines(gate) == [
        "gate: fails (--fail-on divergence)",
        "the models diverge",
        "let pass: the models agreed in main.json, and diverge now",
        "3 outputs are within the limit *.head=0.05: PEIR at most 0.01",
        "4 outputs in common with main.json: none has changed",
    ]


def test_what_there_is_less_of() -> None:
    less = Less("modules", 2, 9, ("a", "b")), Less("elements", 1000, 2000)
    assert where(Reason("less", less=less)) == (
        "2 of 9 modules gone, `a`, `b`; only 1,000 of 2,000 elements"
    )
