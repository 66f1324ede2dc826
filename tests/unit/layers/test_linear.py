"""Linear layers: classes derived from them have wrappers of their own, or none."""

from torch import nn

from wrappers import PTQConfig, prepare


def test_a_class_derived_from_a_wrapped_one_stays_float():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert type(prepare(nn.Sequential(Doubled(4, 4), nn.ReLU()), PTQConfig())[0]) is Doubled
