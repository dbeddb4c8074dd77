"""Timing in rounds, and tables of the rates."""

import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tabulate import tabulate

Cases = dict[str, Callable[[], float]]  # each measures once and returns images per second
Rates = dict[str, list[float]]  # images per second in each round, by case


def seconds_for(steps: int, step: Callable[[], object], device: torch.device) -> float:
    """Seconds that `steps` calls of `step` take."""
    start = now(device)
    for _ in range(steps):
        step()
    return now(device) - start


def now(device: torch.device) -> float:
    """The time in seconds after the work of a GPU, which computes asynchronously, is done."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()


def run_rounds(cases: Cases, rounds: int) -> Rates:
    """Calls the cases in turns: a slower machine hardly changes the ratios within a round."""
    rates: Rates = {name: [] for name in cases}
    for number in range(1, rounds + 1):
        for name, case in cases.items():
            rates[name].append(case())
        values = ", ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items())
        print(f"round {number} of {rounds}: {values}", file=sys.stderr)
    return rates


def rate_rows(rates: Rates, baselines: list[str]) -> dict[str, dict[str, str]]:
    """Table rows by case: images per second, and ratios to the baselines within each round."""
    rows = {}
    for name, each in rates.items():
        rows[name] = {"images/s": spread(each, ",.1f")}
        for baseline in baselines:
            ratios = [a / b for a, b in zip(each, rates[baseline], strict=True)]
            rows[name][f"/ {baseline}"] = spread(ratios, ".2f")
    return rows


def spread(values: list[float], format_spec: str) -> str:
    """Median (lowest to highest)."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:{format_spec}} ({low:{format_spec}} to {high:{format_spec}})"


def markdown_table(rows: Mapping[str, Mapping[str, str | float]]) -> str:
    """A row per key, with the key in the first column."""
    cells: list[dict[str, str | float]] = [{"": name, **row} for name, row in rows.items()]
    right = ["left", *["right"] * (len(cells[0]) - 1)]
    return tabulate(cells, headers="keys", tablefmt="pipe", floatfmt=".4g", colalign=right)


def processor_name(device: torch.device) -> str:
    """The GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return model[1] if model else platform.processor() or platform.machine()
