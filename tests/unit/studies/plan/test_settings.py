"""Settings of a trial: names and values that cannot be."""

import pytest

from wrappers.errors import StudyError
from wrappers.studies import DecodeCalibration
from wrappers.studies.plan.settings import check_settings


@pytest.mark.parametrize(("settings", "message"), [
    ({"activatoin": "uint8"}, "unknown setting 'activatoin'"),
    ({"activation": "uint99"}, "these settings make no PTQConfig"),
    ({"weight": {"dtyp": "int8"}}, "these settings make no PTQConfig"),
    ({"source": "half"}, "found the source 'half'"),
    ({"source": "both", "calibration": 1}, "takes at least 2 sequences"),
    ({"calibration": 0}, "found calibration 0"),
    ({"steps": 1.5, "source": "float"}, "found steps 1.5"),
    ({"leave_out": "a", "only": "b"}, "exclude each other"),
    ({"attention_mask_fill_value": 3.0}, "these settings make no PTQConfig"),
    ({"overrides": {"*": "uint1"}}, "these settings make no PTQConfig"),
    ({"overrides": "off"}, "found overrides 'off'; expected a table"),
    ({"model_args": 5}, "found model_args 5; expected a table"),
    ({"model_args": {"grid": object()}}, "these settings make no PTQConfig"),
    ({"calibration": True}, "found calibration True; expected a whole number"),
    ({"only": 5}, "found only 5; expected the name of a module"),
    ({"source": None}, "found the source None"),
    ({"variant": 5}, "these settings make no PTQConfig: variant must be a name"),
    ({"variant": "decode"}, "the variant is that of the prefill model"),
    ({"activation": {"dtype": "uint8", "options": 5}}, "found the options 5"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(StudyError, match=message):
        check_settings(settings)


def test_every_source_is_checked_before_a_study():
    with pytest.raises(StudyError, match="both sources takes at least 2 sequences"):
        DecodeCalibration(sizes=(1,))
