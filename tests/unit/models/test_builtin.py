"""The built-in models: those of seeded weights, and the trained one."""

import math
from pathlib import Path

import pytest
import torch

from tracer.choices import BUILT_IN
from tracer.models.builtin import TINY
from tracer.models.loading import load
from tracer.models.locate import locate


class TestBuiltIn:
    def test_each_is_listed_and_built(self):
        trained = [name for name in BUILT_IN if isinstance(locate(name), Path)]
        assert (trained, list(BUILT_IN)) == (["tiny-llama"], [*trained, *TINY])

    @pytest.mark.parametrize("name", TINY)
    def test_a_seed_gives_the_same_model_and_inputs(self, name: str):
        one, again, other = load(name, seed=5), load(name, seed=5), load(name, seed=6)
        pairs = zip(one.model.parameters(), again.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(one.inputs[key], again.inputs[key]) for key in one.inputs)
        assert not torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        first, second = next(one.model.parameters()), next(other.model.parameters())
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_the_global_random_state_is_left_alone(self, name: str):
        state = torch.get_rng_state()
        load(name, batch=2)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("name", TINY)
    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_activations_are_lively(self, name: str, padding: str):
        loaded = load(name, batch=3, padding=padding)
        spread: dict[str, float] = {}

        def watch(name: str):
            def hook(module, args, output):
                if isinstance(output, torch.Tensor) and output.is_floating_point():
                    spread[name] = output.std().item()

            return hook

        for module_name, module in loaded.model.named_modules():
            module.register_forward_hook(watch(module_name))
        with torch.no_grad():
            loaded.model(**loaded.inputs)
        assert spread
        assert all(0.05 < value < 20 for value in spread.values()), spread

    def test_modes_attention_and_notes(self, llama, qwen):
        for loaded in (llama, qwen):
            assert not loaded.model.training
            assert loaded.model.config._attn_implementation == "eager"
        assert qwen.model.config.vision_config._attn_implementation == "eager"
        length = llama.inputs["input_ids"].shape[1]
        assert llama.notes == (f"inputs: {length} tokens of the default prompt",)
        random = load("random-llama")
        assert random.notes == ("inputs: 32 random tokens (seed 0)",)
        assert random.tokenizer is None


class TestTrained:
    """The built-in model that is a checkpoint in the package."""

    def test_it_is_small_and_of_the_shape_of_the_random_one(self, llama):
        files = [*locate("tiny-llama").iterdir()]
        assert sum(file.stat().st_size for file in files) < 2 * 2**20
        random = load("random-llama").model
        assert {name: tensor.shape for name, tensor in llama.model.state_dict().items()} == {
            name: tensor.shape for name, tensor in random.state_dict().items()
        }
        dtypes = {
            parameter.dtype for parameter in load("tiny-llama", dtype="auto").model.parameters()
        }
        assert dtypes == {torch.float32}

    def test_it_is_loaded_without_a_network_or_a_seed(self, monkeypatch, llama):
        def refuse(*args: object) -> None:
            raise AssertionError(f"wanted to reach {args}")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("socket.socket.connect", refuse)
        monkeypatch.setattr("socket.getaddrinfo", refuse)
        assert load("tiny-llama").tokenizer is not None
        other = load("tiny-llama", seed=6)
        pairs = zip(llama.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(llama.inputs["input_ids"], other.inputs["input_ids"])

    @pytest.mark.parametrize(
        "text", ["Once upon a time.", "naïve café, 日本!\n\tx == 1  ", "\u0000"]
    )
    def test_no_text_is_unknown_to_its_tokenizer(self, llama, text: str):
        ids = llama.tokenizer(text)["input_ids"]
        assert ids[0] == llama.tokenizer.bos_token_id == llama.model.config.bos_token_id
        assert llama.tokenizer.decode(ids[1:]) == text
        assert max(ids) < len(llama.tokenizer) == llama.model.config.vocab_size

    def test_it_has_learnt_how_stories_go(self, llama):
        story = (
            "Once upon a time there was a small boat. It wanted to see the sea. One day, a boy "
            'came to the boat and said, "Do you want to go with me?" The boat was very happy. '
            "They went to the sea and played all day."
        )
        ids = torch.tensor([llama.tokenizer(story)["input_ids"]])
        losses = {}
        for loaded in (llama, load("random-llama")):
            with torch.no_grad():
                logits = loaded.model(ids).logits[0, :-1].double()
            chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])
            losses[loaded.name] = -float(chosen.mean())
        assert losses["tiny-llama"] < math.log(15)
        assert losses["random-llama"] > math.log(400)
