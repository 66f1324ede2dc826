"""What a file quantises otherwise than the model, in words.

1 of 97 tensors of the candidate's file is quantised as no point there is:
  `linear_1` of `self_attn.k_proj`: int16, scale 5e-05, zero point 0; act_out of self_attn.k_proj:
  int16, scale 3.3e-05, zero point 0
"""

from collections.abc import Iterator

from tracer.diagnosis.structure import WrongStructure
from tracer.text import module_in_words

_MOST = 8


def lines(found: WrongStructure) -> list[str]:
    """How many tensors are wrong, and each of them."""
    return list(_lines(found))


def _lines(found: WrongStructure) -> Iterator[str]:
    count = len(found.tensors)
    yield (
        f"{count} of {found.compared} tensors of the {found.side}'s file "
        f"{'is' if count == 1 else 'are'} quantised as no point there is:"
    )
    for each in found.tensors[:_MOST]:
        nearest = f"; {each.nearest}" if each.nearest else ""
        yield f"  `{each.name}` of {module_in_words(each.module)}: {each.found}{nearest}"
    if count > _MOST:
        yield f"  and {count - _MOST} more"
