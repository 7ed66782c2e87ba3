"""The report of a comparison: one HTML file that opens without a network."""

from __future__ import annotations

from seqmix.compare.report.page import write_report

__all__ = ["write_report"]
