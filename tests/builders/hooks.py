"""The hooks of models, to see that none is left behind."""

from torch import nn

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def hooks_of(*models: nn.Module) -> list[dict[str, dict[int, object]]]:
    """Those of all their modules, by kind."""
    return [{k: dict(getattr(m, k)) for k in HOOKS} for model in models for m in model.modules()]
