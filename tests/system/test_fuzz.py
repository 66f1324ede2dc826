"""Whatever is read is answered by an exit code that means what it says, and no traceback."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.builders.fuzz import KINDS, Fuzzer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    return Fuzzer.at(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_answered(kind: str, fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    monkeypatch.chdir(fuzzer.folder)

    @seed(0)
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def attack(number: int) -> None:
        code, said = fuzzer.run(kind, number)
        assert code in (0, 1, 2), said
        assert "Traceback" not in said

    attack()


def test_what_is_whole_is_read(fuzzer: Fuzzer, tmp_path: Path) -> None:
    assert fuzzer.trace.is_dir()
    assert fuzzer.baseline.is_file()
