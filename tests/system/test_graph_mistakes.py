"""Mistakes planted in an exported graph are named at their module and original line."""

import pytest
from torch.export import ExportedProgram

import tracer
from tests.builders.exported import (
    MISTAKES,
    decoder,
    decoder_inputs,
    dynamic,
    exported,
    planted,
    specialised_positions,
)
from tracer.diagnosis.finding import OriginKind
from tracer.diagnosis.zoom.case import ZoomKind

TOKENS_OF_ANOTHER_LENGTH = 4


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return exported()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named_and_confirmed(program, mistake) -> None:
    _, module, line = MISTAKES[mistake]
    comparison = tracer.compare(decoder(), planted(program, mistake), decoder_inputs())
    verdict = comparison.verdict
    assert verdict.origin.module == module
    assert verdict.confirmed
    if not line:
        assert verdict.origin.kind is OriginKind.PARAMETER
        assert "`weight`" in verdict.explanation
        return
    zoomed = comparison.zoomed
    named = zoomed.expected if zoomed.kind is ZoomKind.MISSING else zoomed.culprit
    assert line in named.text
    assert comparison.zoomed.culprit.file == __file__.replace(
        "system/test_graph_mistakes.py", "builders/exported.py"
    )


@pytest.mark.covers
def test_an_export_in_training_mode() -> None:
    """The first dropout draws, and the line that calls it is named."""
    comparison = tracer.compare(decoder(), exported(decoder().train()), decoder_inputs())
    assert comparison.verdict.origin.module == "blocks.0.mlp.drop"
    assert comparison.verdict.confirmed
    assert "self.drop(" in comparison.zoomed.culprit.text


@pytest.mark.covers
def test_a_specialised_shape_is_named_where_it_was_made() -> None:
    program = dynamic()
    shorter = decoder_inputs(TOKENS_OF_ANOTHER_LENGTH)
    assert tracer.compare(decoder(), program, shorter).verdict.agrees
    specialised_positions(program)
    with pytest.raises(tracer.ModelRunError, match=r"blocks.0.attn.*exported.py:\d+") as raised:
        tracer.compare(decoder(), program, shorter)
    verdict = raised.value.comparison.verdict
    assert (verdict.origin.module, verdict.origin.argument) == ("", "position_embeddings")
    assert "exported.py" in verdict.explanation


@pytest.mark.covers
def test_the_reference_may_be_the_graph(program) -> None:
    comparison = tracer.compare(planted(program, "wrong scale"), decoder(), decoder_inputs())
    assert comparison.verdict.origin.module == "blocks.1.attn"
    assert comparison.verdict.confirmed
    both = tracer.compare(program, planted(program, "wrong axis"), decoder_inputs())
    assert both.verdict.confirmed
    assert "softmax(dim=-1)" in both.zoomed.culprit.text


@pytest.mark.covers
def test_isolation_of_a_graph(program) -> None:
    isolated = tracer.compare(
        decoder(),
        planted(program, "wrong scale"),
        decoder_inputs(),
        isolate="leaves",
        what_if=1,
    ).isolation
    worst = max(isolated.modules, key=lambda module: module.share)
    assert worst.module == "blocks.1.attn"
    assert worst.share > 0.99
