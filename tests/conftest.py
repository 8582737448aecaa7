"""What every test shares: one thread a worker, no network, no silent skip of a parity test."""

from __future__ import annotations

import os
from collections.abc import Generator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Tests run side by side on few cores, on models too small to share out among threads.
torch.set_num_threads(1)

STRICT = bool(os.environ.get("CI"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever a test before has set: sums over several threads round otherwise."""
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In continuous integration a skipped parity test is a failed one."""
    report = yield
    if STRICT and report.skipped and item.get_closest_marker("parity"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is a parity test and must not be skipped ({reason})"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module skipped as a whole takes its parity tests along, so that fails as well."""
    report = yield
    if STRICT and report.skipped and "mark.parity" in collector.path.read_text(encoding="utf-8"):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} holds parity tests and must not be skipped whole"
    return report
