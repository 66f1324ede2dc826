"""Documents of random tokens, and what they cost, computed one by one."""

import math

import torch

from tests.builders.llama import tokens

BOS = 1


def texts_of(*lengths, seed=3):
    """Documents of random tokens."""
    return [tokens(1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def loss_by_hand(model, context, token):
    """Of one token after a context, in nats, from the logits of that context alone."""
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1].double()
    exponentials = [math.exp(logit) for logit in (logits - logits.max()).tolist()]
    return math.log(math.fsum(exponentials)) - math.log(exponentials[token])
