"""The runtime: prefill and decode over a static cache, against transformers' generate."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.builders.agreement import IMPLEMENTATIONS, padding, peir
from tests.builders.llama import real_model, real_text, tiny, tokens, wrap
from wrappers.attention.cache import StepCache
from wrappers.deploy.runtime import Runtime, Slots
from wrappers.deploy.sampling import Sampling
from wrappers.errors import CacheFullError, ModelInputError

PAIRS = {
    "float": (None, None),
    "prefill": ("prefill", "decode"),
    "prefill_reference": ("prefill_reference", "decode"),
    "decode": ("decode", "decode"),
}
EACH_PAIR = pytest.mark.parametrize("pair", PAIRS)


def runtime(model, pair, capacity):
    """A runtime of a float model, or of wrapped copies of it, quantisation off."""
    prefill, decode = (model if name is None else wrap(model, name) for name in PAIRS[pair])
    return Runtime(prefill, decode, capacity=capacity)


def generated(model, input_ids, mask=None, **how):
    """The new tokens of transformers' own generate, [B, new tokens]."""
    how = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **how}
    mask = torch.ones_like(input_ids) if mask is None else mask
    output = model.generate(input_ids, attention_mask=mask, **how)
    return output[:, input_ids.shape[1] :]


def assert_as_alone(model, pair, capacity, ids, mask, count):
    """A runtime gives of each row what transformers gives of it alone, without its padding."""
    found = runtime(model, pair, capacity).generate(ids, mask, max_new_tokens=count)
    assert found.dtype == torch.int64
    rows = [row[visible.bool()][None] for row, visible in zip(ids, mask, strict=True)]
    assert torch.equal(found, torch.cat([generated(model, r, max_new_tokens=count) for r in rows]))


# Padding between tokens.
WITH_HOLES = torch.tensor([[1] * 8, [1, 1, 0, 0, 1, 1, 1, 1], [1, 0] * 4])


class RunObserver:
    """Keeps what each step of a decode model was given.

    Attributes:
        shapes: of each step, those of its tensors.
        addresses: of each step, where the past of each layer lies.
        past: of the last step, keys and values by layer: the runtime's own buffers.
    """

    def __init__(self, decode):
        self.shapes, self.addresses, self.past = [], [], {}
        decode.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, StepCache):
            return  # a prefill
        self.past = cache._past
        states = [states for pair in self.past.values() for states in pair]
        given = (*states, *(kwargs[n] for n in ("input_ids", "attention_mask", "position_ids")))
        self.shapes.append([tuple(tensor.shape) for tensor in given])
        self.addresses.append([tensor.data_ptr() for tensor in states])


class TestGreedy:
    @EACH_PAIR
    @IMPLEMENTATIONS
    @pytest.mark.parametrize("side", ["left", "right", None])
    def test_prompts_of_different_lengths_give_what_each_gives_alone(
        self, pair, implementation, side
    ):
        assert_as_alone(tiny(implementation), pair, 17, tokens(3, 8), padding(3, 8, side), 10)

    @EACH_PAIR
    def test_a_batch_padded_on_the_left_gives_what_generate_gives(self, pair):
        model, ids, mask = tiny(), tokens(3, 8), padding(3, 8, "left")
        found = runtime(model, pair, capacity=30).generate(ids, mask, max_new_tokens=10)
        assert torch.equal(found, generated(model, ids, mask, max_new_tokens=10))

    @pytest.mark.parametrize("mask", [
        *(padding(3, 8, side).to(kind) for side in ("left", "right")
          for kind in (torch.bool, torch.int32, torch.float32)),
        WITH_HOLES,
    ])  # fmt: skip
    def test_padding_of_any_dtype_and_between_tokens(self, mask):
        assert_as_alone(tiny(), "prefill", 12, tokens(3, 8), mask, 5)

    @pytest.mark.parametrize("visible", [slice(6, None), slice(4)])
    def test_padding_takes_no_room(self, visible):
        mask = torch.zeros(1, 10, dtype=torch.int64)
        mask[:, visible] = 1
        assert_as_alone(tiny(), "prefill", 6, tokens(1, 10), mask, 3)

    def test_padding_on_the_left_in_float64(self):
        # transformers' eager attention makes NaN of a query in float64 that may look at nothing.
        model, ids, mask = tiny("eager", dtype=torch.float64), tokens(3, 8), padding(3, 8, "left")
        with torch.no_grad():
            assert model(ids, attention_mask=mask).logits.isnan().any()
        assert_as_alone(model, "float", 12, ids, mask, 5)

    @pytest.mark.parametrize("changes", [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1},
        {"head_dim": 16, "attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ], ids=lambda changes: next(iter(changes)))  # fmt: skip
    def test_configurations(self, changes):
        assert_as_alone(tiny(**changes), "prefill", 16, tokens(2, 6), padding(2, 6, "right"), 10)

    def test_one_token_takes_no_step_and_none_needs_gradients(self):
        model = tiny()
        prefill, decode = wrap(model, "prefill"), wrap(model, "decode")
        watch = RunObserver(decode)
        found = Runtime(prefill, decode, capacity=6).generate(tokens(2, 6), max_new_tokens=1)
        assert torch.equal(found, generated(model, tokens(2, 6), max_new_tokens=1))
        assert not watch.shapes
        Runtime(model, decode, capacity=9).generate(tokens(2, 6), max_new_tokens=3)
        assert not any(states.requires_grad for pair in watch.past.values() for states in pair)
        assert torch.is_grad_enabled()


class TestEnds:
    def test_a_sequence_ends_with_its_last_token_and_is_padded(self):
        model, ids, mask = tiny(), tokens(3, 8), padding(3, 8, "left")
        eos = int(generated(model, ids, mask, max_new_tokens=12)[1, 3])
        expected = generated(model, ids, mask, max_new_tokens=12, eos_token_id=eos, pad_token_id=95)
        found = runtime(model, "prefill", capacity=30).generate(
            ids, mask, max_new_tokens=12, eos_token_id=eos, pad_token_id=95
        )
        assert torch.equal(found, expected)
        assert (found[1, 4:] == 95).all() and not (found[0] == 95).all()

    def test_stops_as_soon_as_all_have_ended(self):
        model, ids = tiny(), tokens(2, 6)
        free = generated(model, ids, max_new_tokens=8)
        eos = int(free[0, 2])
        found = runtime(model, "prefill", capacity=30).generate(
            ids[:1].expand(2, -1), max_new_tokens=8, eos_token_id=eos
        )
        first = free[0].tolist().index(eos) + 1
        assert torch.equal(found, free[:1, :first].expand(2, -1))

    def test_a_sequence_that_has_ended_takes_no_room(self):
        model, ids, mask = tiny(), tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
        mask[1, 4:] = 0
        free = [generated(model, row, max_new_tokens=9)[0] for row in (ids[:1], ids[1:, :4])]
        eos = int(free[0][1])
        assert eos not in free[1]
        found = runtime(model, "prefill", capacity=13).generate(
            ids, mask, max_new_tokens=9, eos_token_id=eos
        )
        assert torch.equal(found[1], free[1])


class TestConversation:
    @EACH_PAIR
    def test_turns_go_on_as_if_all_had_been_one_prompt(self, pair):
        model, chat = tiny(), runtime(tiny(), pair, capacity=50).conversation()
        turns = [
            (tokens(3, 8), padding(3, 8, "left")),
            (tokens(3, 5, seed=4), padding(3, 5, "right")),
            (tokens(3, 1, seed=5), torch.ones(3, 1)),
        ]
        texts = [torch.empty(0, dtype=torch.int64)] * 3
        for (ids, mask), count in zip(turns, (6, 1, 4), strict=True):
            found = chat.generate(ids, mask, max_new_tokens=count)
            for i, new in enumerate(found):
                texts[i] = torch.cat([texts[i], ids[i][mask[i].bool()]])
                expected = generated(model, texts[i][None], max_new_tokens=count)
                assert torch.equal(new, expected[0])
                texts[i] = torch.cat([texts[i], new])

    def test_an_end_of_text_is_read_before_the_next_turn(self):
        model, ids, more = tiny(), tokens(2, 6), tokens(2, 3, seed=8)
        free = [generated(model, row[None], max_new_tokens=6)[0] for row in ids]
        eos = int(free[0][2])
        assert eos not in free[1]
        chat = runtime(model, "prefill", capacity=40).conversation()
        first = chat.generate(ids, max_new_tokens=6, eos_token_id=eos)
        second = chat.generate(more, max_new_tokens=5)
        for row, text in enumerate((first[0, :3], first[1])):
            whole = torch.cat([ids[row], text, more[row]])[None]
            assert torch.equal(second[row], generated(model, whole, max_new_tokens=5)[0])

    def test_what_is_refused(self):
        chat = Runtime(tiny(), capacity=12).conversation()
        chat.generate(tokens(2, 4), max_new_tokens=3)
        with pytest.raises(ModelInputError, match="a turn of 1 sequences in a conversation of 2"):
            chat.generate(tokens(1, 2), max_new_tokens=1)
        said = "has 7 tokens after 6 positions, and the cache a capacity of 12"
        with pytest.raises(ModelInputError, match=said):
            chat.generate(tokens(2, 6), max_new_tokens=1)
        assert chat.generate(tokens(2, 5), max_new_tokens=1).shape == (2, 1)  # goes on all the same
        with pytest.raises(ModelInputError, match="found pixels; of images and videos, expected"):
            chat.generate(tokens(2, 1), max_new_tokens=1, pixels=torch.zeros(1))


class TestCapacity:
    @EACH_PAIR
    def test_exactly_enough_works_and_one_less_says_so(self, pair):
        model, ids = tiny(), tokens(2, 6)
        expected = generated(model, ids, max_new_tokens=8)
        # The last token is returned without a place in the cache.
        found = runtime(model, pair, capacity=13).generate(ids, max_new_tokens=8)
        assert torch.equal(found, expected)
        with pytest.raises(
            CacheFullError,
            match=r"12 positions and the capacity is 12, after 7 of 8 new tokens\. Give more",
        ) as caught:
            runtime(model, pair, capacity=12).generate(ids, max_new_tokens=8)
        assert torch.equal(caught.value.tokens, expected[:, :7])

    def test_a_prompt_that_fills_it_gives_one_token(self):
        model, ids = tiny(), tokens(2, 6)
        expected = generated(model, ids, max_new_tokens=1)
        assert torch.equal(Runtime(model, capacity=6).generate(ids, max_new_tokens=1), expected)
        with pytest.raises(CacheFullError) as caught:
            Runtime(model, capacity=6).generate(ids, max_new_tokens=2)
        assert torch.equal(caught.value.tokens, expected)

    def test_what_does_not_fit_is_refused(self):
        model, ids, mask = tiny(), tokens(3, 8), padding(3, 8, "right")
        with pytest.raises(CacheFullError, match=r"has 10 positions .* after 3 of 9 new tokens"):
            runtime(model, "prefill", capacity=10).generate(ids, mask, max_new_tokens=9)
        with pytest.raises(ModelInputError, match="has 7 tokens, and the cache a capacity of 6"):
            Runtime(model, capacity=6).generate(tokens(2, 7), max_new_tokens=1)
        for count in (0, -3):
            said = f"capacity of {count}; expected at least 1"
            with pytest.raises(ModelInputError, match=said):
                Runtime(model, capacity=count)
            said = f"max_new_tokens of {count}; expected at least 1"
            with pytest.raises(ModelInputError, match=said):
                Runtime(model, capacity=8).generate(tokens(1, 3), max_new_tokens=count)


class TestStaticShapes:
    @EACH_PAIR
    def test_every_step_has_the_same_shapes_and_buffers(self, pair):
        generator = runtime(tiny(), pair, capacity=20)
        watch = RunObserver(generator.decode)
        generator.generate(tokens(3, 8), padding(3, 8, "left"), max_new_tokens=10)
        assert len(watch.shapes) == 9
        assert all(shapes == watch.shapes[0] for shapes in watch.shapes)
        assert all(addresses == watch.addresses[0] for addresses in watch.addresses)
        assert watch.shapes[0] == [(3, 2, 20, 8)] * 4 + [(3, 1), (3, 1, 1, 21), (3, 1)]
        sizes = {
            states.untyped_storage().nbytes() for pair in watch.past.values() for states in pair
        }
        assert sizes == {3 * 2 * 20 * 8 * 4}

    @EACH_PAIR
    def test_the_cache_holds_what_the_float_model_has_of_all_tokens(self, pair):
        model, ids, mask = tiny(), tokens(3, 8), padding(3, 8, "left")
        generator = runtime(model, pair, capacity=20)
        watch = RunObserver(generator.decode)
        new = generator.generate(ids, mask, max_new_tokens=6)
        factor = 1.0 if pair == "float" else 8**-0.5
        for row in range(3):
            text = torch.cat((ids[row][mask[row].bool()], new[row, :5]))
            with torch.no_grad():
                layers = model(text[None], past_key_values=DynamicCache()).past_key_values.layers
            for (keys, values), layer in zip(watch.past.values(), layers, strict=True):
                assert peir(layer.keys[0] * factor, keys[row, :, : len(text)]) < 2e-6
                assert peir(layer.values[0], values[row, :, : len(text)]) < 2e-6
                assert not keys[row, :, len(text) :].any()
                assert not values[row, :, len(text) :].any()


class TestSampling:
    @EACH_PAIR
    @pytest.mark.parametrize("limits", [
        {}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
    ], ids=lambda limits: "-".join(limits) or "none")  # fmt: skip
    def test_draws_what_transformers_draws_from_the_same_seed(self, pair, limits):
        model, ids, mask = tiny(), tokens(3, 8), padding(3, 8, "left")
        torch.manual_seed(7)
        how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **limits}
        expected = generated(model, ids, mask, max_new_tokens=12, do_sample=True, **how)
        found = runtime(model, pair, capacity=30).generate(
            ids, mask, max_new_tokens=12, sampling=Sampling(seed=7, **limits)
        )
        assert torch.equal(found, expected)

    def test_the_seed_alone_decides(self):
        generator, ids = runtime(tiny(), "prefill", capacity=30), tokens(2, 6)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = generator.generate(ids, max_new_tokens=12, sampling=Sampling(seed=3))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        again = generator.generate(ids, max_new_tokens=12, sampling=Sampling(seed=3))
        other = generator.generate(ids, max_new_tokens=12, sampling=Sampling(seed=4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_draws_as_often_as_the_probabilities_say(self):
        probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
        drawn = Sampling().chooser(torch.device("cpu"))(probabilities.log().expand(20_000, 4))
        shares = torch.bincount(drawn, minlength=4) / 20_000
        assert (shares - probabilities).abs().max() < 0.015  # 4 standard deviations

    @pytest.mark.parametrize(("limits", "kept"), [
        ({"top_k": 2}, [0, 1]), ({"top_k": 9}, [0, 1, 2, 3]), ({"top_p": 0.81}, [0, 1, 2]),
        ({"top_p": 0.79}, [0, 1]), ({"top_p": 1e-6}, [0]), ({"temperature": 1e-3}, [0]),
        ({"temperature": 0.1, "top_p": 0.99}, [0]),
    ], ids=str)  # fmt: skip
    def test_limits_keep_the_likeliest(self, limits, kept):
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2_000, 4)
        assert Sampling(**limits).chooser(torch.device("cpu"))(logits).unique().tolist() == kept

    @pytest.mark.parametrize("limits", [
        {"temperature": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1},
    ], ids=str)  # fmt: skip
    def test_limits_out_of_range_are_refused(self, limits):
        with pytest.raises(ModelInputError, match="expected a temperature above 0"):
            Sampling(**limits)


class TestPrompts:
    @pytest.mark.parametrize(("ids", "mask", "message"), [
        (torch.zeros(2, 0, dtype=torch.int64), None, "a prompt holds no tokens"),
        (torch.zeros(0, 2, dtype=torch.int64), None, "a prompt holds no tokens"),
        (tokens(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), "a prompt holds no tokens"),
        (tokens(2, 3), torch.ones(2, 4), r"of shape \[2, 4\] for prompts of shape \[2, 3\]"),
        (tokens(2, 3), torch.ones(2, 1, 3, 3), r"of shape \[2, 1, 3, 3\]"),
        (tokens(1, 3)[0], None, r"input_ids of shape \[3\]; expected \[batch, sequence\]"),
    ])  # fmt: skip
    def test_that_cannot_be_run_are_refused(self, ids, mask, message):
        with pytest.raises(ModelInputError, match=message):
            Runtime(tiny(), capacity=8).generate(ids, mask, max_new_tokens=2)


class TestSlots:
    def slots(self, lengths, capacity):
        """Slots of one layer of one head, whose keys are 1, 2, 3 ... and values minus that."""
        longest = max(lengths)
        keys = torch.arange(1.0, longest + 1).expand(len(lengths), longest)[:, None, :, None]
        cache = DynamicCache()
        cache.update(keys, -keys, 0)
        return Slots.from_prefill(cache, torch.tensor(lengths), capacity, {0: 2.0})

    def contents(self, slots):
        ((keys, values),) = slots.layers
        assert torch.equal(values * -2, keys)  # the factor is on the keys alone
        return (keys / 2)[:, 0, :, 0].int().tolist()

    def test_hold_the_prompts_with_the_factor_of_their_layer(self):
        slots = self.slots([4, 2, 3], capacity=5)
        assert self.contents(slots) == [[1, 2, 3, 4, 0], [1, 2, 0, 0, 0], [1, 2, 3, 0, 0]]
        assert (slots.lengths.tolist(), slots.capacity) == ([4, 2, 3], 5)
        cache, ones = DynamicCache(), torch.ones(1, 1, 2, 1)
        for layer in range(3):
            cache.update(ones, ones, layer)
        slots = Slots.from_prefill(cache, torch.tensor([2]), 2, {0: 2.0, 2: 3.0})
        assert [keys.unique().item() for keys, _ in slots.layers] == [2, 1, 3]
        assert [values.unique().item() for _, values in slots.layers] == [1, 1, 1]

    def test_masks_and_earlier_positions(self):
        mask = self.slots([3, 1], capacity=4).mask(torch.float32)
        assert mask.shape == (2, 1, 1, 5)
        assert (mask[:, 0, 0] == 0).int().tolist() == [[1, 1, 1, 0, 1], [1, 0, 0, 0, 1]]
        assert mask.unique().tolist() == [torch.finfo(torch.float32).min, 0]
        slots = self.slots([4, 3], capacity=5)
        earlier = slots.without_last(2)
        assert self.contents(earlier) == [[1, 2, 0, 0, 0], [1, 0, 0, 0, 0]]
        assert earlier.lengths.tolist() == [2, 1]
        assert self.contents(slots) == [[1, 2, 3, 4, 0], [1, 2, 3, 0, 0]]

    def test_are_written_in_place_for_the_rows_that_go_on(self):
        slots = self.slots([3, 1, 2], capacity=3)
        keys = slots.layers[0][0]
        cache = slots.step()
        new = torch.tensor([7.0, 8.0, 9.0])[:, None, None, None]
        cache.update(new * 2, -new, 0)
        slots.write(cache, torch.tensor([False, True, True]))
        assert self.contents(slots) == [[1, 2, 3], [1, 8, 0], [1, 2, 9]]
        assert slots.lengths.tolist() == [3, 2, 3]
        assert slots.layers[0][0] is keys

    def test_take_several_positions_of_each(self):
        slots = self.slots([3, 1, 2], capacity=6)
        mask = slots.mask(torch.float32, tokens=2)
        assert mask.shape == (3, 1, 2, 8)
        assert (mask[1, 0] == 0).int().tolist() == [
            [1, 0, 0, 0, 0, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 1, 1],
        ]
        cache = slots.step()
        new = torch.tensor([[7.0, 8.0], [9.0, 10.0], [11.0, 12.0]])[:, None, :, None]
        cache.update(new * 2, -new, 0)
        slots.write(cache, torch.tensor([2, 0, 1]))
        assert self.contents(slots) == [[1, 2, 3, 7, 8, 0], [1, 0, 0, 0, 0, 0], [1, 2, 11, 0, 0, 0]]
        assert slots.lengths.tolist() == [5, 1, 3]
        assert self.contents(slots.up_to(torch.tensor([1, 0, 2]))) == [
            [1, 0, 0, 0, 0, 0], [0] * 6, [1, 2, 0, 0, 0, 0],
        ]  # fmt: skip


REAL = pytest.mark.parametrize(
    ("name", "prompt_length", "new_tokens"), [("stories260K", 5, 256), ("wikitext2-llama", 16, 240)]
)


@pytest.fixture(scope="module")
def real(shared_data):
    """By name, a real model and what it generates greedily, made once."""
    made = {}

    def get(name, prompt_length, new_tokens):
        if name not in made:
            model = real_model(shared_data, name, "sdpa")
            prompt = real_text(shared_data, name, prompt_length)
            made[name] = model, prompt, generated(model, prompt, max_new_tokens=new_tokens)
        return made[name]

    return get


@pytest.mark.slow
@pytest.mark.no_cover  # hundreds of steps through lines that the tests above cover
class TestRealModels:
    @REAL
    @pytest.mark.parametrize("pair", ["float", "prefill", "prefill_reference"])
    def test_generates_token_for_token_what_transformers_does(
        self, real, name, prompt_length, new_tokens, pair
    ):
        model, prompt, expected = real(name, prompt_length, new_tokens)
        assert expected.shape == (1, new_tokens)
        if pair != "float":  # the same steps again, and slower
            new_tokens = 64
            expected = expected[:, :new_tokens]
        found = runtime(model, pair, capacity=prompt_length + new_tokens - 1).generate(
            prompt, max_new_tokens=new_tokens
        )
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_prompts_of_different_lengths(self, shared_data, real, side):
        model, *_ = real(*REAL.args[1][0])
        ids, mask = real_text(shared_data, "stories260K", 96).view(4, 24), padding(4, 24, side)
        assert_as_alone(model, "prefill", 64, ids, mask, 40)

    @pytest.mark.parametrize("pair", ["float", "prefill", "prefill_reference"])
    def test_bfloat16(self, shared_data, pair):
        model = real_model(shared_data, "stories260K", "sdpa").to(torch.bfloat16)
        ids, mask = real_text(shared_data, "stories260K", 48).view(2, 24), padding(2, 24, "right")
        generator = runtime(model, pair, capacity=88)
        watch = RunObserver(generator.decode)
        found = generator.generate(ids, mask, max_new_tokens=64)
        assert {states.dtype for both in watch.past.values() for states in both} == {torch.bfloat16}
        # Two ways of computing take another token where two are as likely, up to rounding.
        exact_model = copy.deepcopy(model).float()
        for row, visible, new in zip(ids, mask.bool(), found, strict=True):
            text = torch.cat((row[visible], new))[None]
            with torch.no_grad():
                exact, rounded = (
                    each(text).logits[0, -len(new) - 1 : -1].float()
                    for each in (exact_model, model)
                )
            taken = exact.gather(1, new[:, None]).squeeze(1)
            noise = (exact - rounded).abs().max()
            assert ((exact.max(dim=1).values - taken) <= 2 * noise).all()
            assert noise < 0.5
