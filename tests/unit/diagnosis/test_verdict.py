"""The verdict on small modules: origin, lines, counterfactual, and what is said."""

import copy
import inspect

import pytest
import torch
from torch import nn

import tracer
from tracer.text import short_line


class Block(nn.Module):
    """Two linear layers with a residual, whose parts a test can break."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.factor = 1.0

    def forward(self, x, mask=None, offset=0):
        hidden = torch.relu(self.first(x)) * self.factor
        if mask is not None:
            hidden = hidden + mask
        return x + self.second(hidden) + offset


class Model(nn.Module):
    """Three blocks; the model makes the mask for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 4)
        self.mask_value = 0.0
        self.offset = 0

    def forward(self, x):
        mask = x.new_full((1, 1, 8), self.mask_value)
        for block in self.blocks:
            x = block(x, mask=mask, offset=self.offset)
        return self.head(x)


@pytest.fixture
def reference() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def judged(reference, candidate, x, **options):
    return tracer.compare(reference, candidate, x, **options).verdict


def test_agreement_has_no_origin(reference, x) -> None:
    verdict = judged(reference, copy.deepcopy(reference), x)
    assert verdict.agrees
    assert verdict.symptom is verdict.origin is None
    assert not verdict.confirmed
    assert verdict.explanation == "The models agree: every compared value is equal."


def test_parameter(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.blocks[1].second.weight[2, 3] += 1.0
    verdict = judged(reference, candidate, x)
    assert (verdict.symptom.module, verdict.symptom.value) == ("blocks.1.second", "output")
    assert (verdict.origin.module, verdict.origin.kind) == ("blocks.1.second", "parameter")
    assert verdict.origin.argument is None
    assert verdict.confirmed
    assert "`weight` differs" in verdict.explanation
    assert "[2, 3]" in verdict.explanation
    assert "everything agrees" in verdict.explanation
    assert verdict.mistakes[0] == "wrong in one channel only, number 2"


def test_buffer(x) -> None:
    reference = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    candidate = copy.deepcopy(reference)
    candidate[1].running_mean += 0.5
    verdict = judged(reference, candidate, x)
    assert (verdict.origin.module, verdict.origin.kind) == ("1", "parameter")
    assert "`running_mean` differs" in verdict.explanation
    assert verdict.confirmed


@pytest.mark.covers
def test_own_lines_of_a_parent_are_named_with_the_setting_that_differs(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.blocks[1].factor = 1.5
    verdict = judged(reference, candidate, x)
    assert (verdict.symptom.module, verdict.symptom.value) == ("blocks.1.second", "kwargs.input")
    assert (verdict.origin.module, verdict.origin.kind) == ("blocks.1", "computation")
    assert "Its `factor` is 1.0 in the reference and 1.5 in the candidate." in verdict.explanation
    lines, start = inspect.getsourcelines(Block.forward)
    call = start + next(n for n, line in enumerate(lines) if "self.second(" in line)
    assert verdict.origin.reference_line == f"{__file__}:{call}"
    assert verdict.origin.candidate_line == f"{__file__}:{call}"
    assert verdict.mistakes[0] == "scaled by 1.5"


@pytest.mark.covers
def test_own_lines_after_the_last_call(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    block = candidate.blocks[2]
    block.forward = lambda x, mask=None, offset=0: block.second(torch.relu(block.first(x)))
    verdict = judged(reference, candidate, x)
    assert (verdict.symptom.module, verdict.symptom.value) == ("blocks.2", "output")
    assert (verdict.origin.module, verdict.origin.kind) == ("blocks.2", "computation")
    assert "after its last call (`blocks.2.second`), which still agreed" in verdict.explanation
    assert verdict.confirmed


def test_leaf_without_children(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    own = candidate.head.forward
    candidate.head.forward = lambda x: -own(x)
    verdict = judged(reference, candidate, x)
    assert (verdict.origin.module, verdict.origin.kind) == ("head", "computation")
    assert verdict.mistakes == ("negated",)
    assert verdict.origin.candidate_line.startswith(__file__)


@pytest.mark.covers
def test_argument_of_the_same_shape(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.mask_value = -50.0
    verdict = judged(reference, candidate, x)
    assert verdict.origin.module == ""
    assert (verdict.origin.kind, verdict.origin.argument) == ("argument", "mask")
    assert verdict.symptom.module == "blocks.0.second"
    assert verdict.confirmed
    assert "the root module passes a wrong `mask` to `blocks.0` and 2 more" in verdict.explanation
    assert "with the reference's `mask`, PEIR at argument `input` of `blocks.0.second` falls" in (
        verdict.explanation
    )


@pytest.mark.covers
def test_plain_argument(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.offset = 3
    verdict = judged(reference, candidate, x)
    assert (verdict.origin.module, verdict.origin.argument) == ("", "offset")
    assert verdict.confirmed
    assert "reference: 0, at" in verdict.explanation
    assert "candidate: 3, at" in verdict.explanation


def test_mask_without_effect_is_told_and_agrees(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.mask_value = -50.0
    for model in (reference, candidate):
        for block in model.blocks:
            block.forward = lambda x, mask=None, offset=0, block=block: block.second(x)
    verdict = judged(reference, candidate, x)
    assert verdict.agrees
    assert "1 attention masks let different positions through" in verdict.explanation
    assert "without any effect" in verdict.explanation


def test_unconfirmed_without_a_second_run(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.blocks[1].factor = 1.5
    verdict = judged(reference, candidate, x, confirm=False)
    assert verdict.origin.module == "blocks.1"
    assert not verdict.confirmed
    assert "Not confirmed" in verdict.explanation


@pytest.mark.covers
def test_second_mistake_is_told_apart(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.blocks[0].factor = 2.0
    candidate.blocks[2].factor = 2.0
    verdict = judged(reference, candidate, x)
    assert verdict.origin.module == "blocks.0"
    assert verdict.confirmed
    assert "another divergence follows at argument `input` of `blocks.2.second`" in (
        verdict.explanation
    )


def test_nan_in_the_candidate(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    own = candidate.blocks[1].first.forward

    def forward(x):
        output = own(x)
        output[..., 0, 0] = float("nan")
        return output

    candidate.blocks[1].first.forward = forward
    verdict = judged(reference, candidate, x)
    assert (verdict.symptom.module, verdict.origin.module) == ("blocks.1.first",) * 2
    assert verdict.confirmed
    assert "0 non-finite elements; candidate 1" in verdict.explanation
    assert verdict.symptom.peir == float("inf")


def test_nan_on_both_sides_agrees_and_is_told(reference) -> None:
    x = torch.randn(5, 8)
    x[0] = float("nan")
    verdict = judged(reference, copy.deepcopy(reference), x)
    assert verdict.agrees
    assert "NaN or infinite on both sides" in verdict.explanation


def test_output_of_another_shape(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    own = candidate.blocks[1].second.forward
    candidate.blocks[1].second.forward = lambda x: own(x)[..., :1, :]
    comparison = tracer.compare(reference, candidate, x)
    assert comparison.verdict.origin.module == "blocks.1.second"
    assert comparison.verdict.symptom.peir == float("inf")
    assert "shape [1, 5, 8]; candidate [1, 1, 8]" in comparison.verdict.explanation
    row = next(row for row in comparison.rows if not row.agrees)
    assert row.difference is None


def test_form_is_no_divergence_declared_or_not(reference, x) -> None:
    class Paired(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    class Declared(Paired):
        def to_reference_output(self, output):
            return output[0]

    class Unpacked(Model):
        def forward(self, x):
            return super().forward(x)[0]

    for form in (Paired, Declared):
        candidate = Unpacked().eval()
        candidate.load_state_dict(reference.state_dict())
        candidate.head.__class__ = form
        verdict = judged(reference, candidate, x)
        assert verdict.outcome == "agrees", verdict.explanation


def test_scale_folded_and_declared_hides_no_other_mistake(reference, x) -> None:
    class Folded(nn.Linear):
        reference_output_scale = 4.0

        def to_reference_output(self, output):
            return output / 4.0

    class Unfolding(Block):
        def forward(self, x, mask=None, offset=0):
            hidden = torch.relu(self.first(x) / 4.0) + mask
            return x + self.second(hidden) + offset

    candidate = copy.deepcopy(reference)
    block = candidate.blocks[1]
    block.__class__ = Unfolding
    block.first.__class__ = Folded
    with torch.no_grad():
        block.first.weight *= 4.0
        block.first.bias *= 4.0
    assert judged(reference, candidate, x).agrees
    with torch.no_grad():
        block.first.weight[1, 1] += 1.0
    verdict = judged(reference, candidate, x)
    assert (verdict.origin.module, verdict.symptom.value) == ("blocks.1.first", "output")
    assert "`weight` differs" in verdict.explanation


def test_mistake_below_the_tolerance_is_followed_back_to_where_it_began(x) -> None:
    torch.manual_seed(3)
    reference = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(12))).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for layer in candidate:
            layer.weight *= 1.0 + 4e-6
    comparison = tracer.compare(reference, candidate, x)
    assert not comparison.verdict.agrees
    assert comparison.verdict.symptom.module != "0"
    assert comparison.verdict.origin.module == "0"
    assert "The error was introduced at output of `0`" in comparison.verdict.explanation


def test_accumulated_rounding_has_no_origin(x) -> None:
    torch.manual_seed(3)
    reference = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))).eval().double()
    candidate = copy.deepcopy(reference)
    noise = torch.Generator().manual_seed(0)
    for layer in candidate:
        layer.register_forward_hook(
            lambda module, args, output: (
                output
                * (1 + 3e-8 * torch.randn(output.shape, generator=noise, dtype=torch.float64))
            )
        )
    verdict = judged(reference, candidate, x.double(), tolerance=2.4e-8)
    assert not verdict.agrees
    assert not verdict.confirmed
    assert "accumulated rounding" in verdict.explanation


def test_call_that_only_one_side_makes(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    block = candidate.blocks[1]
    block.forward = lambda x, mask=None, offset=0: x
    verdict = judged(reference, candidate, x)
    assert verdict.origin.module == "blocks.1"
    assert "The reference calls `blocks.1.first`, the candidate does not." in verdict.explanation


def test_counterfactual_that_cannot_run_leaves_a_suspect(x) -> None:
    class Other(Model):
        """Works in another width behind the same interface."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(6) for _ in range(3))
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return super().forward(x[..., :6])

    torch.manual_seed(0)
    reference, candidate = Model().eval(), Other().eval()
    candidate.forward = lambda x: Other.forward(candidate, x)
    for model in (reference, candidate):
        for block in model.blocks:
            block.forward = lambda x, mask=None, offset=0, block=block: block.second(x)
    verdict = judged(reference, candidate, x)
    assert not verdict.agrees
    assert not verdict.confirmed
    assert (verdict.origin.module, verdict.origin.kind) == ("", "computation")
    assert "the candidate raised RuntimeError in module" in verdict.explanation


def test_many_changed_parameters_are_counted_not_listed(x) -> None:
    class Leaf(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                self.register_parameter(name, nn.Parameter(torch.ones(8)))

        def forward(self, x):
            return x * sum(self.parameters())

    verdict = judged(nn.Sequential(Leaf("a")), nn.Sequential(Leaf("abcdefgh")), x)
    assert verdict.origin.kind == "parameter"
    assert "4 more" in verdict.explanation


def test_models_are_left_as_they_were(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.blocks[1].second.weight[2, 3] += 1.0
    before = {name: value.clone() for name, value in candidate.state_dict().items()}
    parameters = dict(candidate.named_parameters())
    assert judged(reference, candidate, x).confirmed
    assert all(torch.equal(before[name], value) for name, value in candidate.state_dict().items())
    after = dict(candidate.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())


def test_short_line() -> None:
    path = "/a/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py:12"
    assert short_line(path) == "transformers/models/llama/modeling_llama.py:12"
    assert short_line("/somewhere/else/project/model.py:3") == "else/project/model.py:3"
    assert short_line("/model.py:3") == "/model.py:3"
    assert short_line(None) == "(no source)"
