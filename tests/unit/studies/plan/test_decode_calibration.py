"""The study of what a decode model is calibrated on: what it wants next, given what is known."""

import pytest

from wrappers.errors import StudyError
from wrappers.studies import DecodeCalibration
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH
from wrappers.studies.plan.settings import SOURCES


def test_all_sources_and_sizes_for_each_seed() -> None:
    made = DecodeCalibration(pairs=(("uint8", "uint8"),), seeds=(0, 1), sizes=(2, 4))
    trials = made.trials(("uint8", "uint8"), SOURCES[0], 4, SEARCH)
    assert [trial.seed for trial in trials] == [0, 1]
    assert trials[0].settings["calibration"] == 4
    assert trials[0].settings["source"] == SOURCES[0]
    assert FAITHFUL != SEARCH


def test_settings_that_cannot_be() -> None:
    with pytest.raises(StudyError):
        DecodeCalibration(pairs=(("uint8", "none"),))
