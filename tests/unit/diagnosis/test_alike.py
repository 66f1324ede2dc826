"""Origins that are the same in several layers."""

from dataclasses import replace

import pytest

from tracer.diagnosis.alike import Layers, alike, layers_of, pattern
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind


def finding(module: str, line: str = "c.py:5") -> Finding:
    return Finding(Origin(module, None, OriginKind.COMPUTATION, "r.py:3", line), FindingKind.INSIDE)


def test_what_differs_by_the_layer_alone_is_one() -> None:
    findings = [finding(f"layers.{n}.attn") for n in range(3)]
    other = finding("layers.1.mlp")
    groups = alike([*findings[:2], other, findings[2]])
    assert [group.first for group in groups] == [findings[0], other]
    assert groups[0].others == (findings[1], findings[2])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": FindingKind.LEFT},
        {"names": ("x",)},
        {"origin": replace(finding("layers.1.attn").origin, candidate_line="c.py:6")},
        {"origin": replace(finding("layers.1.attn").origin, argument="mask")},
    ],
)
def test_what_differs_otherwise_is_not(change) -> None:
    both = finding("layers.0.attn"), replace(finding("layers.1.attn"), **change)
    assert len(alike(both)) == 2


@pytest.mark.parametrize(
    ("first", "others", "layers"),
    [
        ("a.layers.0.x", ["a.layers.2.x", "a.layers.1.x"], Layers("layers", (1, 2))),
        ("0.x", ["3.x"], Layers("", (3,))),
        ("a.0.b.0", ["a.1.b.1"], None),
        ("a.x", ["a.y"], None),
        ("a.0", ["a.0.b"], None),
    ],
)
def test_the_number_in_which_names_differ(first, others, layers) -> None:
    assert layers_of(first, others) == layers


def test_a_pattern_has_a_star_for_each_number() -> None:
    assert pattern("model.layers.12.experts.3.up2") == "model.layers.*.experts.*.up2"
