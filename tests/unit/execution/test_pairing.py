"""Pairing: by name, through wrappers and rules, by parameter values, and by place."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tracer.errors import UsageError
from tracer.execution.pairing import Pairing, pair, proposed_rules


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.q_proj(x))


class Model(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Attention() for _ in range(layers))
        self.act = nn.SiLU()

    def forward(self, x):
        return x


class Wrapped(nn.Module):
    """A wrapper that keeps what it wraps in an attribute."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x):
        return self.wrapped(x)


class Under(nn.Module):
    """Holds a module at a dotted path."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__()
        first, _, rest = path.partition(".")
        setattr(self, first, Under(rest, module) if rest else module)

    def forward(self, x):
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def renamed_tree(model: nn.Module, names: dict[str, str]) -> nn.Module:
    """A copy in which children have other names, at every level."""
    clone = copy.deepcopy(model)
    for module in [*clone.modules()]:
        module._modules = OrderedDict(
            (names.get(name, name), child) for name, child in module._modules.items()
        )
    return clone


def check(pairing: Pairing) -> None:
    """What holds for any pairing."""
    assert pairing.pairs[""] == ""
    assert set(pairing.pairs) <= set(pairing.candidate)
    assert set(pairing.pairs.values()) <= set(pairing.reference)
    assert len(set(pairing.pairs.values())) == len(pairing.pairs)
    assert list(pairing.pairs) == [name for name in pairing.candidate if name in pairing.pairs]
    assert pairing.by_value <= set(pairing.pairs)


def test_equal_names_are_pairs(model: Model) -> None:
    pairing = pair(model, copy.deepcopy(model))
    check(pairing)
    assert pairing.pairs == {name: name for name, _ in model.named_modules()}
    assert pairing.by_value == frozenset()


@pytest.mark.parametrize("prefix", [
    "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_model.model", "wrapped",
    "module.wrapped",
])  # fmt: skip
def test_wrappers_are_seen_through(model: Model, prefix: str) -> None:
    pairing = pair(model, Under(prefix, copy.deepcopy(model)))
    check(pairing)
    for name, _ in model.named_modules():
        if name:
            assert pairing.pairs[f"{prefix}.{name}"] == name
    assert pairing.by_value == frozenset()


def test_wrappers_in_the_middle_are_seen_through(model: Model) -> None:
    candidate = copy.deepcopy(model)
    candidate.layers[1].q_proj = Wrapped(candidate.layers[1].q_proj)
    candidate.layers[0] = torch.compile(candidate.layers[0], backend="eager")
    pairing = pair(model, candidate)
    check(pairing)
    assert pairing.pairs["layers.1.q_proj"] == "layers.1.q_proj"
    assert "layers.1.q_proj.wrapped" not in pairing.pairs
    assert pairing.pairs["layers.0"] == "layers.0"
    assert "layers.0.q_proj" not in pairing.pairs.values()


def test_the_reference_may_be_wrapped_and_exact_names_come_first(model: Model) -> None:
    pairing = pair(nn.DataParallel(copy.deepcopy(model)), model)
    check(pairing)
    assert pairing.pairs["layers.0.norm"] == "module.layers.0.norm"
    reference = nn.ModuleDict({"a": nn.Linear(2, 2), "module": nn.ModuleDict({"a": nn.ReLU()})})
    pairing = pair(reference, copy.deepcopy(reference))
    assert pairing.pairs == {name: name for name, _ in reference.named_modules()}


class TestRules:
    def test_rules_turn_the_candidates_names_into_the_references(self, model: Model) -> None:
        candidate = renamed_tree(model, {"layers": "blocks", "q_proj": "query", "norm": "ln"})
        for parameter in candidate.parameters():
            nn.init.normal_(parameter)  # nothing to recognise but the names
        rules = {r"^blocks\.(\d+)": r"layers.\1", "query$": "q_proj", r"\.ln$": ".norm"}
        pairing = pair(model, candidate, rules)
        check(pairing)
        assert pairing.pairs["blocks.1.query"] == "layers.1.q_proj"
        assert pairing.pairs["blocks.0.ln"] == "layers.0.norm"
        assert set(pairing.pairs) == set(dict(candidate.named_modules()))
        assert pairing.by_value == {"blocks"}

    def test_what_is_no_rule(self, model: Model) -> None:
        with pytest.raises(UsageError, match="matches none of the candidate's 11 module names"):
            pair(model, copy.deepcopy(model), {"blocks": "layers"})
        with pytest.raises(UsageError, match="no valid regular expression"):
            pair(model, copy.deepcopy(model), {"layers.(": "x"})
        with pytest.raises(UsageError, match="no valid regular expression"):
            pair(model, copy.deepcopy(model), {"layers": r"\2"})
        with pytest.raises(UsageError, match=r"no name it makes.*did you mean 'layers'"):
            pair(model, copy.deepcopy(model), {"^layers": "layer"})

    def test_a_rule_may_lead_through_a_wrapper_of_the_reference(self, model: Model) -> None:
        candidate = renamed_tree(model, {"layers": "blocks"})
        pairing = pair(nn.DataParallel(copy.deepcopy(model)), candidate, {"^blocks": "layers"})
        assert pairing.pairs["blocks.0.q_proj"] == "module.layers.0.q_proj"

    def test_a_rule_comes_before_what_modules_hold(self, model: Model) -> None:
        """The user may pair modules whose values say otherwise."""
        candidate = renamed_tree(model, {"layers": "blocks"})
        swap = {r"^blocks\.0": "layers.X", r"^blocks\.1": "layers.0", r"layers\.X": "layers.1"}
        with pytest.raises(UsageError, match="no name it makes"):
            pair(model, candidate, swap)
        swap = {r"^blocks\.0": "layers.1", r"^blocks\.1": "layers.0"}
        pairing = pair(model, candidate, swap)
        assert pairing.pairs["blocks.0.q_proj"] == "layers.1.q_proj"
        assert pairing.pairs["blocks.1.norm"] == "layers.0.norm"


class TestValues:
    def test_modules_are_found_under_any_name(self, model: Model) -> None:
        candidate = renamed_tree(
            model, {"embed": "tok", "layers": "h", "q_proj": "w1", "k_proj": "w2", "act": "f"}
        )
        pairing = pair(model, candidate)
        check(pairing)
        assert pairing.pairs["h.1.w1"] == "layers.1.q_proj"
        assert pairing.pairs["h.0.w2"] == "layers.0.k_proj"
        assert (pairing.pairs["tok"], pairing.pairs["h.1"]) == ("embed", "layers.1")
        assert (pairing.pairs["h"], pairing.pairs["f"]) == ("layers", "act")
        assert {"h.1.w1", "tok"} <= pairing.by_value

    def test_transposed_weights_are_the_same_values(self) -> None:
        torch.manual_seed(0)
        reference = nn.ModuleDict({"query": nn.Linear(8, 6), "key": nn.Linear(8, 6)})
        candidate = nn.ModuleDict({"b": nn.Module(), "a": nn.Module()})
        for name, source in (("a", "query"), ("b", "key")):
            for kind in ("weight", "bias"):
                value = getattr(reference[source], kind).detach().t().contiguous()
                candidate[name].register_parameter(kind, nn.Parameter(value))
        pairing = pair(reference, candidate)
        check(pairing)
        assert pairing.pairs == {"": "", "b": "key", "a": "query"}

    def test_the_order_matters_only_for_equal_values(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(5, 5) for _ in range(6)]
        reference = nn.ModuleDict({f"r{i}": layer for i, layer in enumerate(layers)})
        order = [3, 0, 5, 1, 4, 2]
        candidate = nn.ModuleDict({f"c{i}": copy.deepcopy(layers[i]) for i in order})
        assert pair(reference, candidate).pairs == {"": "", **{f"c{i}": f"r{i}" for i in order}}
        reference = nn.ModuleDict({"a": nn.LayerNorm(4), "b": nn.LayerNorm(4)})
        candidate = nn.ModuleDict({"x": nn.LayerNorm(4), "y": nn.LayerNorm(4)})
        assert pair(reference, candidate).pairs == {"": "", "x": "a", "y": "b"}

    def test_lower_precision_pairs_by_place_instead(self, model: Model) -> None:
        pairing = pair(model, renamed_tree(model, {"q_proj": "w1"}).bfloat16())
        check(pairing)
        assert pairing.pairs["layers.0.w1"] == "layers.0.q_proj"
        assert "layers.0.w1" in pairing.by_value

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("parameter", [
        torch.tensor([1 + 2j, 3.0]), torch.tensor([1, 200], dtype=torch.uint8),
        torch.tensor([True, False]), torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.tensor([1.0, torch.nan, torch.inf]), torch.empty(0, 3), torch.tensor(2.5),
    ], ids=lambda p: f"{p.dtype}{list(p.shape)}")  # fmt: skip
    def test_parameters_of_any_dtype(self, parameter: torch.Tensor) -> None:
        def holder(name: str) -> nn.Module:
            inner = nn.Module()
            inner.p = nn.Parameter(parameter.clone(), requires_grad=False)
            return nn.ModuleDict({name: inner})

        assert pair(holder("a"), holder("b")).pairs == {"": "", "b": "a"}

    def test_parameters_without_values(self) -> None:
        reference = nn.ModuleDict({"a": nn.Linear(2, 2, device="meta")})
        candidate = nn.ModuleDict({"b": nn.Linear(2, 2, device="meta")})
        assert pair(reference, candidate).pairs == {"": "", "b": "a"}  # by place


class TestPlaces:
    def test_modules_without_parameters_follow_their_parents(self) -> None:
        reference = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), act=nn.ReLU(), out=nn.Tanh()))
        candidate = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), relu=nn.ReLU(), final=nn.Tanh()))
        pairing = pair(reference, candidate)
        assert pairing.pairs == {"": "", "fc": "fc", "relu": "act", "final": "out"}
        assert pairing.by_value == {"relu", "final"}

    @pytest.mark.parametrize(("one", "other"), [
        (nn.ReLU(), nn.Tanh()), (nn.Linear(3, 3), nn.Linear(3, 4)),
    ])  # fmt: skip
    def test_another_class_or_shape_is_no_counterpart(self, one, other) -> None:
        assert pair(nn.ModuleDict({"a": one}), nn.ModuleDict({"b": other})).pairs == {"": ""}

    def test_an_extra_module_does_not_shift_the_others(self, model: Model) -> None:
        torch.manual_seed(1)
        candidate = copy.deepcopy(model)
        candidate.layers[0].extra = nn.Linear(8, 8)
        pairing = pair(model, candidate)
        assert "layers.0.extra" not in pairing.pairs
        assert pairing.pairs["layers.0.q_proj"] == "layers.0.q_proj"


def test_a_module_with_two_names_is_paired_by_its_first() -> None:
    shared = nn.Linear(2, 2)
    reference = nn.ModuleDict({"a": shared, "b": shared})
    candidate = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    candidate["a"].load_state_dict(shared.state_dict())
    pairing = pair(reference, candidate)
    assert pairing.pairs == {"": "", "a": "a"}
    assert list(pairing.reference) == ["", "a"]


@pytest.mark.parametrize("other", [nn.Sequential(), nn.Linear(2, 2), nn.Sequential(nn.ReLU())])
def test_empty_models(other: nn.Module) -> None:
    empty = nn.Sequential()
    assert pair(empty, other).pairs == {"": ""}
    assert pair(other, empty).pairs == {"": ""}


def test_the_models_are_left_as_they_are(model: Model) -> None:
    candidate = renamed_tree(model, {"layers": "h"})
    before = {name: value.clone() for name, value in candidate.state_dict().items()}
    pair(model, candidate)
    after = candidate.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


class TestProposedRules:
    def test_they_pair_by_name_what_was_paired_by_value(self, model: Model) -> None:
        names = {"embed": "tok", "layers": "h", "q_proj": "w1", "k_proj": "w2", "norm": "n"}
        candidate = renamed_tree(model, names)
        rules = proposed_rules(pair(model, candidate))
        assert len(rules) == 5
        pairing = pair(model, candidate, rules)
        assert pairing.by_value == frozenset()
        assert pairing.pairs == pair(model, candidate).pairs

    def test_none_where_names_are_enough(self, model: Model) -> None:
        assert proposed_rules(pair(model, copy.deepcopy(model))) == {}

    def test_other_layers_say_which_module_a_changed_one_is(self, model: Model) -> None:
        candidate = renamed_tree(model, {"layers": "h", "q_proj": "w1", "k_proj": "w2"})
        nn.init.normal_(candidate.h[1].w1.weight)
        nn.init.normal_(candidate.h[1].w2.weight)
        pairing = pair(model, candidate)
        assert pairing.pairs["h.1.w1"] == "layers.1.q_proj"
        assert pairing.pairs["h.1.w2"] == "layers.1.k_proj"
