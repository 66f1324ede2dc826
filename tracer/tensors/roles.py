"""What arguments are to a model, as their names say: masks, padding, a decoder's inputs, caches.

>>> roles = tracer.Roles(masks=("*mask*", "attn_bias"))
>>> tracer.compare(reference, candidate, inputs, roles=roles)
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trace_model.annotations import checked
from tracer.errors import UsageError


@checked(UsageError)
@dataclass(frozen=True)
class Roles:
    """Globs of argument names by role, in lower case.

    A name matches in any letter case. Of a nested argument, such as "masks.full_attention", each
    part of the path may match.

    Attributes:
        masks: attention masks, which are compared by what they let through.
        padding: masks that are 1 where a sequence has a token, where they are [batch, sequence].
        decoder: inputs of the decoder of an encoder-decoder model, to which the padding does not
            apply.
        labels: what such a model makes the decoder's inputs from.
        caches: what a model makes in its first step, and is given in the next ones.
    """

    masks: tuple[str, ...] = ("*mask*",)
    padding: tuple[str, ...] = ("attention_mask",)
    decoder: tuple[str, ...] = ("*decoder_*",)
    labels: tuple[str, ...] = ("*labels*",)
    caches: tuple[str, ...] = ("past_key_values",)

    def is_mask(self, path: str | None) -> bool:
        """Whether an argument, or something in it, is an attention mask."""
        return path is not None and is_any(path, self.masks)


def is_any(path: str, globs: Sequence[str]) -> bool:
    """Whether a part of a path matches any of the globs."""
    return _matches(str(path), tuple(globs))


@functools.lru_cache(maxsize=65536)
def _matches(path: str, globs: tuple[str, ...]) -> bool:
    parts = path.lower().split(".")
    return any(fnmatchcase(part, glob) for glob in globs for part in parts)


DEFAULT_ROLES = Roles()
