"""Pairs that an accelerator measures while both models go on; here one that only says so."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import tracer
from tests.builders.second_device import DEVICE, Elsewhere, second_device
from tracer.execution.hooks import Answer, Call, Phase
from tracer.measurement import underway as module
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallRecord, Row
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import ValuePath

HIDDEN = torch.ones(6, 6).triu(1).bool()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.act = nn.GELU()
        self.out = nn.Linear(8, 8)

    def forward(self, x, attention_mask):
        y = self.mix(self.norm(x))
        return x + self.out(self.act((y @ y.mT + attention_mask).softmax(-1) @ y))


class Net(nn.Module):
    def __init__(self, depth: int = 2, fill: float = -1e9, edits: Callable = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.fill, self.edits = fill, edits

    def forward(self, input_ids, attention_mask=None):
        shape = 1, 1, 1
        mask = torch.zeros(6, 6, device=input_ids.device)
        mask = mask.masked_fill(HIDDEN.to(input_ids.device), self.fill).expand(*shape[:1], 6, 6)
        if attention_mask is not None:
            mask = mask + (1.0 - attention_mask[:, None, :].float()) * self.fill
        x = self.embed(input_ids)
        for layer in self.layers:
            x = self.edits(layer(x, attention_mask=mask))
        return x


IDS = torch.arange(12).view(2, 6)
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with second_device():
        yield


def pair(**candidates: object) -> tuple[Net, Net]:
    return Net().eval(), Net(**candidates).eval()


def on_both(reference: nn.Module, candidate: nn.Module, **inputs: torch.Tensor) -> list[list[Row]]:
    """The rows of a comparison on the CPU, and of the same where both lie elsewhere."""
    rows = []
    for where in ("cpu", DEVICE):
        models = reference.to(where), candidate.to(where)
        given = {name: value.to(where) for name, value in inputs.items()}
        rows.append(list(tracer.compare(*models, given, confirm=False).rows))
    return rows


def check_equal(found: list[Row], expected: list[Row]) -> None:
    """All but the places, in which there are gaps, and the last digits of the statistics."""
    assert [(row.module, row.call, str(row.value)) for row in found] == [
        (row.module, row.call, str(row.value)) for row in expected
    ]
    orders = [row.order for row in found]
    assert orders == sorted(orders)
    for row, other in zip(found, expected, strict=True):
        same = ("agrees", "limit", "relation", "is_mask", "shape", "dtype", "candidate_module")
        assert [getattr(row, name) for name in same] == [getattr(other, name) for name in same]
        kinds = [[remark.kind for remark in each.remarks] for each in (row, other)]
        assert kinds[0] == kinds[1]
        for name in ("input_peir", "error"):
            values = [
                math.nan if v is None else v for v in (getattr(row, name), getattr(other, name))
            ]
            expected_value = pytest.approx(values[1], rel=1e-4, abs=1e-9, nan_ok=True)
            assert values[0] == expected_value, (row, name)
        assert (row.unpadded is None) == (other.unpadded is None)


def shifted(model: Net) -> Net:
    with torch.no_grad():
        model.layers[1].out.bias += 0.5
    return model


class TestTheSameRows:
    def test_of_models_that_agree(self) -> None:
        check_equal(*on_both(*pair(), input_ids=IDS)[::-1])

    def test_of_masks_that_mean_the_same(self) -> None:
        expected, found = on_both(*pair(fill=-1e4), input_ids=IDS)
        check_equal(found, expected)
        assert any(row.remarks for row in found)

    @pytest.mark.covers
    def test_of_masks_that_do_not(self) -> None:
        expected, found = on_both(*pair(fill=-1.0), input_ids=IDS)
        check_equal(found, expected)
        assert not all(row.agrees for row in found)

    def test_of_padded_positions(self) -> None:
        reference, candidate = pair()
        candidate.edits = lambda x: torch.where(PADDED.to(x.device)[..., None] == 0, x + 1.0, x)
        expected, found = on_both(reference, candidate, input_ids=IDS, attention_mask=PADDED)
        check_equal(found, expected)
        assert any(row.unpadded is not None for row in found)

    def test_of_a_mistake(self) -> None:
        reference, candidate = pair()
        expected, found = on_both(reference, shifted(candidate), input_ids=IDS)
        check_equal(found, expected)
        assert any(row.relation is not None for row in found)

    @pytest.mark.covers
    def test_of_values_that_are_edited_before_they_are_looked_at(self) -> None:
        """They are wrong, which is seen once they have changed: they are measured at once then."""
        reference, candidate = pair()
        reference.edits = candidate.edits = lambda x: x.mul_(2.0)
        expected, found = on_both(reference, shifted(candidate), input_ids=IDS)
        check_equal(found, expected)
        assert any(row.relation is not None for row in found)


def test_the_host_waits_once_in_a_hundred_pairs() -> None:
    reference, candidate = Net(depth=32).eval().to(DEVICE), Net(depth=32).eval().to(DEVICE)
    inputs = {"input_ids": IDS.to(DEVICE)}
    session = tracer.execution.session.Session(reference, candidate, inputs, None, "*")
    comparer = Comparer(Tolerance(working=(torch.float32,)))
    Elsewhere.waits = 0
    session.run(comparer, frozenset())
    waits = Elsewhere.waits
    models = 2 * 1  # each makes a mask, which it takes from the host
    compared = len(comparer.rows)
    assert all(row.agrees for row in comparer.rows)
    assert compared > 190
    assert waits - models <= compared / 100


class Asks(Intervention):
    """Looks at some of the rows."""

    def __init__(self, module: str) -> None:
        self.module, self.seen = module, []

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        if record.module == self.module:
            self.seen = [str(row.value) for row in (*record.arguments.values(), *record.outputs)]
        return None


def run(*values: tuple[torch.Tensor, torch.Tensor], **options: object) -> Comparer:
    """Compares pairs as the outputs of as many calls, and leaves them underway."""
    comparer = Comparer(Tolerance(), **options)
    for index, both in enumerate(values):
        called = Call("m", index, nn.Identity(), {}, (), None, None)
        calls = [replace(called) for _ in both]
        comparer.visit(*calls, Phase.START)
        for call, value in zip(calls, both, strict=True):
            call.output = value
        comparer.visit(*calls, Phase.END)
    return comparer


def elsewhere(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((2,), 1.0 + i).to(DEVICE), torch.ones(2).to(DEVICE)) for i in range(count)]


class TestWhoAsks:
    def test_nobody(self) -> None:
        values = elsewhere(3)
        Elsewhere.waits = 0
        comparer = run(*values)
        assert (Elsewhere.waits, comparer.compared_elements) == (0, 0)
        comparer.end()
        assert comparer.compared_elements == 6

    @pytest.mark.parametrize("asks", [
        lambda comparer: len(comparer.rows),
        lambda comparer: len(comparer.records["m", 0].outputs),
        lambda comparer: comparer.records["m", 0].row(ValuePath.parse("output")) is not None,
    ])  # fmt: skip
    def test_somebody(self, asks: Callable[[Comparer], object]) -> None:
        comparer = run(*elsewhere(3))
        assert asks(comparer)
        assert comparer.compared_elements == 6

    def test_who_knows_a_pair(self) -> None:
        values = elsewhere(2)
        comparer = run(*values)
        row = comparer.known(*values[1])
        assert row is not None
        assert (row.call, row.agrees) == (1, False)
        assert comparer.known(values[0][0], values[1][1]) is None

    def test_an_intervention(self) -> None:
        asks = Asks("layers.1.act")
        reference, candidate = (model.to(DEVICE) for model in pair())
        session = tracer.execution.session.Session(
            reference, candidate, {"input_ids": IDS.to(DEVICE)}, None, "*"
        )
        session.run(Comparer(Tolerance(), [asks]), frozenset())
        assert asks.seen == ["kwargs.input", "output"]


class TestWhenItIsSettled:
    def test_once_many_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_PAIRS", 4)
        assert run(*elsewhere(9)).compared_elements == 16

    def test_once_they_are_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_BYTES", 40)
        assert run(*elsewhere(2)).compared_elements == 0
        assert run(*elsewhere(3)).compared_elements == 6

    def test_at_once_where_it_must_be(self) -> None:
        values = elsewhere(3)
        comparer = run(*values, at_once=frozenset([("m", 1, Phase.END)]))
        assert comparer.compared_elements == 4

    def test_what_the_host_holds_is_entered_in_its_place(self) -> None:
        comparer = run(elsewhere(1)[0], (torch.ones(2), torch.ones(2)), elsewhere(1)[0])
        assert comparer.compared_elements == 0
        assert [row.call for row in comparer.rows] == [0, 1, 2]
        assert [row.order for row in comparer.rows] == sorted(row.order for row in comparer.rows)

    def test_kinds_that_cannot_wait(self) -> None:
        with torch.inference_mode():
            dead = Elsewhere(torch.ones(2))
        assert run((dead, dead)).compared_elements == 2


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor) -> list[float]:
        raise RuntimeError("device-side assert triggered\nCompile with ...")

    comparer = run(*elsewhere(2))
    monkeypatch.setattr(Elsewhere, "tolist", fail)
    with pytest.raises(tracer.ModelRunError, match=r"xla:0 failed .*: device-side assert trig"):
        comparer.end()


def test_values_that_lie_otherwise_do_not_make_the_host_wait() -> None:
    x = torch.linspace(-20.0, 20.0, 8192).reshape(2, 8, 16, 32).to(DEVICE)
    y = (x + 0.0).transpose(1, 2)
    kinds = [(x.transpose(1, 2), y), (x[:, ::2], x[:, 1::2]), (x[:1].expand(2, 8, 16, 32), x)]
    Elsewhere.waits = 0
    comparer = run(*kinds, *((r.long(), c.long()) for r, c in kinds))
    assert Elsewhere.waits == 0
    assert [row.agrees for row in comparer.rows] == [True, False, False] * 2
    assert Elsewhere.waits > 0


def test_what_was_edited_is_noted_where_its_values_count() -> None:
    values = elsewhere(3)
    comparer = run(*values)
    for r, _ in values:
        r.add_(1.0)
    comparer.end()
    assert comparer.edited == {("m", 1, Phase.END), ("m", 2, Phase.END)}  # the first one agrees
    assert comparer.rows[0].agrees
