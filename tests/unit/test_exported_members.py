"""The public surface of the package, pinned."""

import wrappers


def test_exported_members():
    assert wrappers.__all__ == sorted(wrappers.__all__)
    assert set(wrappers.__all__) == {
        "DType", "KVCacheSpec", "Mode", "PTQConfig", "QScheme", "QuantModule", "QuantPoint",
        "QuantSpec", "Runtime", "Sampling", "Step", "affine", "calibrate", "calibrate_both",
        "calibrate_decode", "convert", "count_rounding", "decode_inputs", "export", "iter_points",
        "iter_wrappers", "load", "microscaling", "no_quantization", "overrides_for", "prepare",
        "register", "save", "summary",
    }  # fmt: skip
    for name in wrappers.__all__:
        assert hasattr(wrappers, name)
