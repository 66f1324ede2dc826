"""What the process exits with, in one table."""

from tracer.cli.exit_codes import ExitCode, exit_codes


def test_the_table_in_one_sentence() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 130]
    said = exit_codes()
    assert said.startswith("exit codes: 0 the models agree, 1 they diverge, 2 wrong use")
    assert all(code.meaning in said for code in ExitCode)
