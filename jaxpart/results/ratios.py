"""Figures that follow from a bottleneck; None where they are not defined."""

from __future__ import annotations


def throughput_of(bottleneck_s: float) -> float | None:
    """1 / T, in inferences/s; None if T is 0."""
    return 1 / bottleneck_s if bottleneck_s > 0 else None


def improvement_of(bottleneck_s: float, baseline_s: float | None) -> float | None:
    """T of the baseline / T; None if there is no baseline or T is 0."""
    return None if baseline_s is None or bottleneck_s == 0 else baseline_s / bottleneck_s


def gap_of(bottleneck_s: float, lower_bound_s: float) -> float | None:
    """T / lower bound - 1; None if T or the lower bound is 0."""
    return None if bottleneck_s == 0 or lower_bound_s == 0 else bottleneck_s / lower_bound_s - 1
