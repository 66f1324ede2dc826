"""Sentences of verdicts: one for each kind of finding, and one for each outcome of a trial."""

import pytest

import tracer
from tracer.diagnosis.checkpoints import Checkpoints
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind, TightTolerance
from tracer.diagnosis.parameters import ParameterDifference, ParameterKind, Setting
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Agreement, Divergence, Ended, Spread, Tally, Verdict
from tracer.interventions.trial import Replacements
from tracer.tensors.known_mistakes import Fit

ORIGIN = Origin("m", None, OriginKind.COMPUTATION, "/a/m.py:3", None)
LINES = ["  reference: /a/m.py:3", "  candidate: (no source)"]
WEIGHT = ParameterDifference(ParameterKind.VALUES, True, 0.5, 0.75, 0.125, (1, 2))
OUTPUT = Replacements(output=("m", 0))


def said(*findings, why="", **fields):
    """The lines of a divergence."""
    details = Divergence(findings, **fields)
    verdict = Verdict(False, None, ORIGIN, False, details, why_not_tried=why)
    return tracer.explain(verdict).splitlines()


@pytest.mark.parametrize(
    ("kind", "fields", "lines"),
    [
        (
            FindingKind.EDITED,
            {"names": ("x", "y")},
            [
                "`m` edits its argument `x` and `y` in place, which is used again after it; the "
                "reference's does not.",
                *LINES,
            ],
        ),
        (
            FindingKind.BEFORE_CALL,
            {"other": "m.a", "since": "m.b", "settings": (Setting("eps", "1", "2"),)},
            [
                "The error is introduced in the forward of `m` itself: what it computes for `m.a` "
                "is wrong, after `m.b` still agreed.",
                *LINES,
                "Its `eps` is 1 in the reference and 2 in the candidate.",
            ],
        ),
        (
            FindingKind.AFTER_CALLS,
            {"other": "m.a", "settings": (Setting(None, "A", "B"),) * 9},
            [
                "The error is introduced in the forward of `m` itself, after its last call "
                "(`m.a`), which still agreed.",
                *LINES,
                *["Its class is A in the reference and B in the candidate."] * 6,
                "3 more settings differ.",
            ],
        ),
        (
            FindingKind.INSIDE,
            {"form_alone": True, "unexplained": 2},
            [
                "The error is introduced in the forward of `m` itself: its inputs agree, its "
                "output does not.",
                *LINES,
                "If the form alone differs, give the candidate's module a method "
                "`to_reference_output(output)` that reads it back.",
                "2 more values disagree although their inputs are right.",
            ],
        ),
        (
            FindingKind.LEFT,
            {"names": ("cache",)},
            ["What `m` leaves in its argument `cache` is wrong.", *LINES],
        ),
        (
            FindingKind.PARAMETERS,
            {"parameters": {"w": WEIGHT}, "equals": {"w": "n.w"}},
            [
                "The inputs of `m` agree, its `w` differs (PEIR 0.125, most at [1, 2]: 0.5 against "
                "0.75).",
                "Its `w` equals the reference's `n.w`.",
                *LINES,
            ],
        ),
        (
            FindingKind.RAISES,
            {"settings": (Setting("w", "float32", "float16"),)},
            [
                "`m` of the candidate raises; nothing else had differed.",
                "Its `w` is float32 in the reference and float16 in the candidate.",
            ],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, FindingKind) else "",
)
def test_how_it_comes_about(kind, fields, lines):
    assert said(Finding(ORIGIN, kind, **fields)) == lines


@pytest.mark.parametrize(("from_outside", "passed", "peir", "lines"), [
    (False, ("a", "b"), None, ["`m` passes a wrong `x` to `m.a` and 2 more:", "a", "b"]),
    (True, ("a", ""), 0.5, ["What runs it passes a wrong `x` to `m.a`:", "a", "PEIR 0.5 away"]),
])  # fmt: skip
def test_a_wrong_argument(from_outside, passed, peir, lines):
    origin = Origin("m", "x", OriginKind.ARGUMENT, None, None)
    finding = Finding(
        *(origin, FindingKind.PASSED),
        other="m.a",
        more_calls=0 if from_outside else 2,
        from_outside=from_outside,
        passed=passed,
        peir=peir,
    )
    assert said(finding) == [
        lines[0],
        f"  reference: {lines[1]}, at (no source)",
        f"  candidate: {lines[2]}, at (no source)",
    ]


@pytest.mark.parametrize(("difference", "text"), [
    (ParameterDifference(ParameterKind.REFERENCE_ONLY), "the candidate has none"),
    (ParameterDifference(ParameterKind.CANDIDATE_ONLY), "the reference has none"),
    (ParameterDifference(ParameterKind.CHECKSUMS), "its checksum is not the recorded one"),
    (ParameterDifference(ParameterKind.SHAPES, False, "[1]", "[2]"), "shape [1] against [2]"),
    (ParameterDifference(ParameterKind.FORMS, True, "A", "B"), "A against B"),
    (
        ParameterDifference(ParameterKind.PARTS, parts={"scale": WEIGHT}),
        "`scale` PEIR 0.125, most at [1, 2]: 0.5 against 0.75",
    ),
])  # fmt: skip
def test_how_a_parameter_differs(difference, text):
    lines = said(Finding(ORIGIN, FindingKind.PARAMETERS, parameters={"w": difference}))
    assert lines[0] == f"The inputs of `m` agree, its `w` differs ({text})."


@pytest.mark.parametrize(("outcome", "trial", "text"), [
    ("not_tried", None, "Not confirmed: a second run was not asked for."),
    ("not_replaced", OUTPUT, "which cannot be put there, nothing was shown."),
    ("raised", OUTPUT, "Not confirmed: with the reference's output of `m`, it broke."),
    ("still_there", OUTPUT, "Not confirmed: with the reference's output of `m`, it is still"),
    ("still_diverges", OUTPUT, "it still diverges at output of `left`."),
    ("falls", OUTPUT, "`m`, PEIR at output of `m` falls from 0.5 to 0, and PEIR at output of"),
    ("another_remains", OUTPUT, "falls from 0.5 to 0; a divergence at output of `left` remains"),
    ("another_follows", OUTPUT, "follows at output of `left`, PEIR 0.25, from inputs that"),
    ("all_agrees", Replacements(parameters=(("m", 0), ("w",))), "reference's `w`, everything"),
    ("after_agrees", Replacements(spared=(("m", 0), ("x",))), "a copy of `x` for it, everything"),
    ("runs", Replacements(arguments={("m", 0): "x"}), "reference's `x`, it does not raise."),
])  # fmt: skip
def test_what_a_trial_has_shown(make_row, outcome, trial, text):
    proof = Proof(
        *(Outcome(outcome), trial),
        falls=(make_row("m", 0.5), make_row("m")),
        final=(make_row("", 0.5), make_row("")) if outcome == "falls" else None,
        remaining=make_row("left", 0.25),
        error="it broke",
    )
    line = said(Finding(ORIGIN, FindingKind.INSIDE, proof))[-1]
    assert text in line
    assert line.startswith("Confirmed: with " if proof.confirmed else "Not confirmed: ")


def test_why_nothing_was_tried(make_row):
    finding = Finding(ORIGIN, FindingKind.INSIDE, Proof(Outcome.NOT_TRIED))
    assert said(finding, why="it is a recording")[-1] == "Not confirmed: it is a recording."


def test_a_whole_divergence(make_row):
    mistakes = (Fit("scaled by 2", 0.001), Fit("clipped", 0.01), Fit("negated", 0.02))
    proof = Proof(Outcome.ALL_AGREES, OUTPUT, mistakes=mistakes)
    lines = said(
        Finding(ORIGIN, FindingKind.INSIDE, proof),
        Finding(ORIGIN, FindingKind.LEFT, proof, names=("x",)),
        Finding(ORIGIN, FindingKind.LEFT, names=("y",)),
        first=make_row("later", 0.5),
        introduced=make_row("m", 2e-6),
        one_sided=(("reference", "gone", 1),),
        spread=Spread(7, 5, make_row("", 0.25)),
    )
    assert lines == [
        "The error is introduced in the forward of `m` itself: its inputs agree, its output does "
        "not.",
        *LINES,
        "First visible at output of `later`, PEIR 0.5 (limit 1e-05).",
        "The error was introduced at output of `m`, PEIR 2e-06 (limit 1e-05).",
        "Confirmed: with the reference's output of `m`, everything agrees.",
        "It matches a known mistake: scaled by 2 (residual 0.001).",
        "It matches a known mistake: clipped (residual 0.01).",
        "The reference calls `gone` (call 1), the candidate does not.",
        "Of 7 outputs after it, 5 disagree; output of the root module ends at PEIR 0.25.",
        "One more origin, each with the reference's values before it:",
        "2. What `m` leaves in its argument `x` is wrong.",
        *(f" {line}" for line in LINES),
        "   Confirmed: with the reference's output of `m`, everything agrees.",
        "One more place is suspected, which no run has confirmed.",
    ]


def layer(number: int, **fields) -> Finding:
    """A confirmed finding in a layer, which the candidate calls a block."""
    name = f"layers.{number}.attn"
    origin = Origin(name, None, OriginKind.COMPUTATION, "r.py:3", "c.py:5", f"blocks.{number}.a")
    return Finding(origin, FindingKind.INSIDE, Proof(Outcome.ALL_AGREES, OUTPUT), **fields)


@pytest.mark.parametrize(("numbers", "words"), [
    ((0, 1), "`blocks.1.a`"), ((0, 1, 2, 3, 4), "blocks 1 to 4"),
    ((0, 2, 4, 5, 6), "blocks 2 and 4 to 6"), ((0, 1, 2, 4), "blocks 1, 2 and 4"),
])  # fmt: skip
def test_the_same_in_several_layers_is_one_origin(numbers, words):
    findings = tuple(map(layer, numbers))
    names = {f"layers.{n}.attn": f"blocks.{n}.a" for n in numbers}
    verdict = Verdict(False, None, ORIGIN, True, Divergence(findings), names=names)
    lines = tracer.explain(verdict).splitlines()
    assert lines[0].startswith(
        "The error is introduced in the forward of `blocks.0.a` (reference: `layers.0.attn`) itself"
    )
    assert f"The same in {words}." in lines
    assert not any("more origin" in line for line in lines)


def test_another_checkpoint_comes_first_with_its_counts():
    finding = Finding(ORIGIN, FindingKind.INSIDE)
    lines = said(finding, checkpoints=Checkpoints(39, 0, 1, 1.6))
    assert lines[0] == (
        "Another checkpoint? None of the reference's 39 modules with parameters hold equal ones in "
        "the candidate; 1 differs (by up to PEIR 1.6), 38 have no counterpart. If it is the same "
        "one, pair the modules by rename rules (--map)."
    )
    lines = said(finding, checkpoints=Checkpoints(39, 2, 37, 0.5))
    assert lines[0].endswith("Only 2 of the reference's 39 modules with parameters hold equal ones "
                             "in the candidate; 37 differ (by up to PEIR 0.5).")  # fmt: skip


def test_a_tolerance_below_rounding_is_warned_of():
    text = tracer.explain(TightTolerance(1e-8, "float32", 1e-5))
    assert text == (
        "The tolerance of 1e-08 is below the limit of float32, 1e-05: rounding alone may exceed it."
    )


def test_an_agreement(make_row):
    none, some = Tally(0, None), Tally(3, make_row("m", 0.5, value="kwargs.mask"))
    setting = ("m", Setting("eps", "1", "2"))
    agreement = Agreement(make_row("m", 1e-6), 4, some, some, none, (setting,) * 5)
    assert tracer.explain(Verdict(True, None, None, False, agreement)).splitlines() == [
        "The models agree: the largest PEIR is 1e-06, at output of `m` (limit 1e-05).",
        "4 compared elements are NaN or infinite on both sides alike; the models agree on them, "
        "but look whether they should be there.",
        "3 values differ at padded positions only, which nothing visible depends on: first "
        "argument `mask` of `m`.",
        "3 attention masks let different positions through, without any effect on a computed "
        "value: first argument `mask` of `m`, .",
        "Settings differ without an effect beyond the tolerance:",
        *["  `m`: its `eps` is 1 in the reference and 2 in the candidate."] * 3,
        "  and 2 more",
    ]


@pytest.mark.parametrize(
    ("disagrees", "text"),
    [(False, "What was compared until then agrees"), (True, "First visible at output of `m`")],
)
def test_a_run_that_was_ended(make_row, disagrees, text):
    verdict = Verdict(False, None, None, False, Ended(make_row("m", 0.5) if disagrees else None))
    head, rest = verdict.explanation.splitlines()
    assert head == "The run was ended by the user, before the models came to their end."
    assert rest.startswith(text)


def test_what_is_no_finding():
    with pytest.raises(TypeError, match="expected a finding of the tracer's, found a str"):
        tracer.explain("text")
