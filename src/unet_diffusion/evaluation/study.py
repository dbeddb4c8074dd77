"""Quality over cost: after a sweep of evaluations, their distances over the network evaluations an image took, in one plot."""

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.evaluation.scoring import scale_of
from unet_diffusion.runs import Run, write_json

Point = tuple[int, float]
_APART = 1.15
_BESIDE = ("label", "guidance", "seed", "weights", "checkpoint")


class Study(Callback):
    """Hydra's callback of evaluate.py; it does nothing unless several ways of drawing are evaluated by `-m`."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, dict):
            self._records += job_return.return_value.get("evaluations", [job_return.return_value])  # a list, for several runs

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints a table, and writes `sampler_study.png` and `.json` into `output`, the run's folder, or here."""
        scored = [record for record in self._records if record.get("generation", {}).get("nfe")]
        lines = curves(scored)
        if sum(len(points) for points in lines.values()) < 2:
            return
        folder = _folder(config, scored)
        folder.mkdir(parents=True, exist_ok=True)
        first = scored[0]["generation"]
        print(f"\nFréchet distance of {first['images']} images over network evaluations an image:")
        for name, points in lines.items():
            print(f"  {name:<40} " + "   ".join(f"{nfe}: {distance:.2f}" for nfe, distance in points))
        study_plot(lines, first["floor"]["frechet_distance"]).savefig(folder / "sampler_study.png", dpi=120)
        write_json(folder / "sampler_study.json", {"evaluations": scored})
        print(f"Picture {os.path.relpath(folder / 'sampler_study.png')}")


def curves(records: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """(NFE, Fréchet distance) in the order of cost; one curve for all that differ in their steps alone.

    Evaluations at another number of images, or by another judge, than the first one's are left out: their distances do not
    compare.
    """
    comparable = [record for record in records if scale_of(record["generation"]) == scale_of(records[0]["generation"])]
    beside = [key for key in _BESIDE if len({str(_how(record, key)) for record in comparable}) > 1]
    several_runs = len({record["run"] for record in comparable}) > 1
    found: dict[str, list[Point]] = defaultdict(list)
    for record in comparable:
        score = record["generation"]
        words = [re.sub(r"steps=\d+(, )?", "", score["sampler"]), *(f"{key} {_how(record, key)}" for key in beside)]
        name = " ".join([record["run"], *words] if several_runs else words)
        found[name].append((score["nfe"], score["closeness"]["frechet_distance"]))
    return {name: sorted(points) for name, points in found.items()}


def study_plot(lines: dict[str, list[Point]], floor: float) -> Figure:
    """Distance over cost, both logarithmic, a curve a sampler; real images as a line below."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.axhline(floor, color="grey", linestyle=":", label="real images")
    axes.set(xlabel="network evaluations an image", ylabel="Fréchet distance", xscale="log", yscale="log")
    ticks: list[int] = []
    for nfe in sorted({nfe for points in lines.values() for nfe, _ in points}):
        ticks += [nfe] if not ticks or nfe > _APART * ticks[-1] else []  # words that stand upon each other cannot be read
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _how(record: dict[str, Any], key: str) -> Any:
    return record["generation"].get(key, record.get(key))


def _folder(config: DictConfig, scored: list[dict[str, Any]]) -> Path:
    if config.output is not None:
        return Path(str(config.output)).expanduser()
    one_run = not OmegaConf.is_missing(config, "run") and len({record["run"] for record in scored}) == 1
    return Run.named(config).path if one_run else Path.cwd()
