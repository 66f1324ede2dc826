"""What a call has changed in its arguments."""

import torch

from tracer.measurement.written import changes, marks


def test_edited_replaced_and_new_tensors() -> None:
    kept, edited = torch.ones(2), torch.ones(2)
    cache = {"kept": kept, "edited": edited, "replaced": torch.ones(2)}
    before = marks({"cache": cache, "scale": 2.0})
    assert changes(before, marks({"cache": cache})) == set()
    edited += 1
    cache |= {"replaced": torch.ones(2), "new": torch.ones(2)}
    assert {str(path) for path in changes(before, marks({"cache": cache}))} == {
        "written.cache.edited",
        "written.cache.replaced",
        "written.cache.new",
    }
