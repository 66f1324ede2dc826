"""Reports of many commits, for a terminal."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from tracer.comparison.identity import Identity, SideIdentity
from tracer.regression.history import Entry, History, Worst
from tracer.reports.console import as_text
from tracer.reports.parts.history import in_a_line, section


def entry(name: str, peir: float | None, **fields: object) -> Entry:
    date = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    side = SideIdentity("Net", "float32", False)
    given: dict[str, object] = {
        "date": date, "commit": "0123456789-dirty", "commit_date": None, "exit_code": None,
        "command": None, "outcome": "agrees", "passes": None, "title": "a against b",
        "identity": Identity(side, side, {}),
        "figures": None if peir is None else Worst(peir, 20.0, 0.5),
    }  # fmt: skip
    return Entry(Path("reports") / name, **(given | fields))  # type: ignore[arg-type]


def shown(*entries: Entry, width: int = 100) -> list[str]:
    parts = section(History(entries, ()), Path("reports"), width, what="it", colour=False)
    return as_text(parts, width).splitlines()


def test_columns() -> None:
    lines = shown(entry("a.json", 0.1, passes=False, exit_code=1), entry("b.json", None))
    assert lines[3].split() == [
        *("2026-01-02", "03:04", "0123456+", "1", "agrees,", "gate", "fails", "1.00e-01"),
        *("20.0", "0.500000", "a.json"),
    ]
    assert lines[4].split() == [
        "2026-01-02", "03:04", "0123456+", "-", "agrees", "-", "-", "-", "b.json",
    ]  # fmt: skip


def test_the_date_of_a_commit_in_utc() -> None:
    made = datetime(2026, 1, 5, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert shown(entry("a.json", 0.1, commit_date=made))[3].startswith("  2026-01-04 23:00")


def test_no_line_is_wider_than_the_terminal() -> None:
    lines = shown(*(entry(f"{'x' * 60}{i}.json", 0.1 * i) for i in range(4)), width=80)
    assert max(map(len, lines)) <= 80


def test_a_table_for_each_pair_and_what_is_another_comparison() -> None:
    side = SideIdentity("Other", "float32", False)
    other = entry("b.json", 0.1, identity=Identity(side, side, {}))
    lines = shown(entry("a.json", 0.1), other, entry("c.json", 0.1, title="a against c"))
    assert [line for line in lines if " against " in line] == ["a against b", "a against c"]
    (said,) = (line for line in lines if "another comparison" in line)
    assert said.startswith(
        "  from b.json on it is another comparison: the reference is of class Net"
    )


def test_one_report_in_a_line() -> None:
    said = in_a_line(entry("a.json", 0.1, exit_code=2))
    assert said == "reports/a.json, commit 0123456+, 2026-01-02 03:04, exit code 2: a against b"
