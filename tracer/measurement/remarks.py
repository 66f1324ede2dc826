"""What the figures of a row do not say, as data; its text is a label of a few words.

>>> str(Remark(RemarkKind.SHAPES, "[1, 5, 8]", "[1, 1, 8]"))
'shape [1, 5, 8]; candidate [1, 1, 8]'
"""

from dataclasses import dataclass
from enum import StrEnum


class RemarkKind(StrEnum):
    """What a remark is about."""

    BY_MEANING = "by_meaning"  # masks whose values differ and whose meaning does not
    MASKS = "masks"  # masks that let different positions through
    SHAPES = "shapes"
    SCALARS = "scalars"
    RETURNED = "returned"  # forms of output that do not compare
    LEFT = "left"  # likewise, of what a call left in an argument
    NONFINITE = "nonfinite"  # how many elements are not finite
    RELATIVE_L2 = "relative_l2"  # it agrees by this, although its PEIR is beyond the limit
    PADDED = "padded"  # the PEIR with padded positions, which were left out
    UNREADABLE = "unreadable"  # a kind of tensor whose values cannot be had
    ESTIMATED = "estimated"  # one side has a fingerprint only
    FORM = "form"  # the candidate's was read in the reference's form
    RELATED = "related"  # the candidate's is the reference's in another layout of its channels


_TEXTS = {
    RemarkKind.BY_MEANING: "compared by what they let through",
    RemarkKind.MASKS: "{0.reference}; candidate {0.candidate}",
    RemarkKind.SHAPES: "shape {0.reference}; candidate {0.candidate}",
    RemarkKind.SCALARS: "{0.reference}; candidate {0.candidate}",
    RemarkKind.RETURNED: "returned {0.reference}; candidate {0.candidate}",
    RemarkKind.LEFT: "left {0.reference}; candidate {0.candidate}",
    RemarkKind.NONFINITE: "{0.reference} non-finite elements; candidate {0.candidate}",
    RemarkKind.RELATIVE_L2: "relative L2 {0.figure:.3g}",
    RemarkKind.PADDED: "at padded positions PEIR {0.figure:.3g}, left out",
    RemarkKind.UNREADABLE: "values that cannot be compared: {0.reference}",
    RemarkKind.ESTIMATED: "estimated from fingerprints",
    RemarkKind.FORM: "{0.candidate}",
    RemarkKind.RELATED: "{0.candidate}",
}


@dataclass(frozen=True)
class Remark:
    """One remark.

    Attributes:
        kind: what it is about.
        reference, candidate: what each side has: a shape, a value, a form, a count.
        figure: a PEIR or a relative L2 error.
    """

    kind: RemarkKind
    reference: str | int = ""
    candidate: str | int = ""
    figure: float | None = None

    def __str__(self) -> str:
        return _TEXTS[self.kind].format(self)
