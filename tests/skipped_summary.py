"""The end of a run: one line for each reason why tests were skipped."""

from __future__ import annotations

from collections import Counter


def write_skipped(reporter) -> None:
    """Write how many tests were skipped for each reason."""
    reasons = Counter(_reason(report) for report in reporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        reporter.write_line(f"{count} skipped: {reason}")


def _reason(report) -> str:
    place = report.longrepr
    return place[2].removeprefix("Skipped: ") if isinstance(place, tuple) else str(place)
