"""Queries, keys and values, and the ways to attend over them."""

import pytest
import torch

from wrappers.attention.core import AttentionOptions, attend_batched, attend_by_head


def unchanged(x, point, *, may_overwrite=False):
    return x


def round_to_eighths(x, point, *, may_overwrite=False):
    return torch.round(x * 8) / 8


def example(batch=2, heads=4, kv_heads=2, query=5, key=7, head_dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch * 100 + heads * 10 + query)
    q = torch.randn(batch, heads, query, head_dim, generator=generator).to(dtype)
    k = torch.randn(batch, kv_heads, key, head_dim, generator=generator).to(dtype)
    v = torch.randn(batch, kv_heads, key, head_dim, generator=generator).to(dtype)
    hidden = torch.rand(batch, 1, query, key, generator=generator) < 0.3
    hidden[..., 0] = False
    return q, k, v, torch.where(hidden, -99.0, 0.0).to(dtype)


def options(mask, **changes):
    return AttentionOptions(
        **{"quantize": unchanged, "mask": mask, "keep_weights": True, **changes}
    )


def batched(q, k, v, mask, scaling, **changes):
    return attend_batched(q, k, v, options(mask, scaling=scaling, **changes))


def by_head(q, k, v, mask, scaling, **changes):
    return attend_by_head(
        q.unbind(1), (k * scaling).unbind(1), v.unbind(1), options(mask, **changes)
    )


def by_head_unfolded(q, k, v, mask, scaling, **changes):
    return attend_by_head(
        q.unbind(1), k.unbind(1), v.unbind(1), options(mask, scaling=scaling, **changes)
    )


FORMS = pytest.mark.parametrize("attend", [batched, by_head, by_head_unfolded])
