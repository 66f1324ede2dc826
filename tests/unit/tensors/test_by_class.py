import gc
import weakref

from tracer.tensors.by_class import ByClass


def test_what_was_noted_of_a_class() -> None:
    known: ByClass[str] = ByClass()
    assert known.get(int) is None
    assert known.note(int, "whole") == "whole"
    assert known.get(int) == "whole"
    assert known.get(bool) is None


def test_a_class_is_let_go_and_its_id_means_nothing() -> None:
    known: ByClass[int] = ByClass()
    for each in range(3):
        cls = type("Made", (), {})
        assert known.get(cls) is None
        known.note(cls, each)
        gone = weakref.ref(cls)
        del cls
        gc.collect()
        assert gone() is None
    assert known._found == {}
