"""`scripts/evaluate.py`: how a run denoises and how near its drawings come to real images, or those of anybody else."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from tqdm import tqdm

from unet_diffusion.checks import fraction, shortened, whole_number, whole_number_or_auto
from unet_diffusion.cli import is_sweep_job
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.levels import FixedLevel
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.classical import classical_denoisers
from unet_diffusion.evaluation.denoising import denoised_examples, score_levels
from unet_diffusion.evaluation.drawings import DrawingSource, FromFiles, FromRun
from unet_diffusion.evaluation.features import Judge, judge_for, knows
from unet_diffusion.evaluation.pages import Pages
from unet_diffusion.evaluation.scoring import check_count, score_drawings
from unet_diffusion.evaluation.words import denoising_plot, denoising_table, in_words, rows_with_names
from unet_diffusion.images import grid, to_float
from unet_diffusion.inference.asked import Generator
from unet_diffusion.inference.team import Team
from unet_diffusion.parts import build, build_datamodule
from unet_diffusion.paths import named_path
from unet_diffusion.runs import Run, named_runs, unique_name
from unet_diffusion.training.hardware import images_at_a_time

_COLUMNS = 5
_OF_RUNS = ("checkpoint", "weights", "sampler", "guidance", "label", "seed", "levels", "noise_seed")


@dataclass(frozen=True)
class _Asked:
    """The arguments, checked."""

    levels: list[float]
    noise_seed: int
    seed: int
    batch_size: int | None
    """Images at a time; None: what is fast on the device."""
    count: int | None
    """Images to score; 0: none; None: all that there are."""
    classical: bool

    @classmethod
    def checked(cls, cfg: DictConfig) -> "_Asked":
        try:
            if not isinstance(cfg.levels, ListConfig):
                raise ValueError(f"levels={shortened(cfg.levels)} must be a list of fractions, such as levels=[0.1,0.5,0.9]")
            levels = sorted({fraction("levels", level) for level in cfg.levels})
            if 0 in levels:
                raise ValueError("levels=0 has no noise to take out: give fractions above 0, such as levels=[0.1,0.5,0.9]")
            if not isinstance(cfg.classical, bool):
                raise ValueError(f"classical={shortened(cfg.classical)} must be true or false")
            return cls(
                levels=levels,
                noise_seed=whole_number("noise_seed", cfg.noise_seed, at_least=0),
                seed=whole_number("seed", cfg.seed, at_least=0),
                batch_size=whole_number_or_auto("batch_size", cfg.batch_size, at_least=1),
                count=None if cfg.num_images is None else whole_number("num_images", cfg.num_images, at_least=0),
                classical=cfg.classical,
            )
        except ValueError as error:
            raise UserError(first_line(error)) from error


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Scores what `conf/evaluate.yaml` names: a run, several, or a folder or archive of images.

    Of several processes (see `Team`) each draws its share of the images to be scored; all else is the first one's.

    Returns:
        What `evaluation.json` holds; for `runs=`, a list of these as `evaluations`. Nothing, in a process that helps to draw.

    Raises:
        UserError: the runs, the images or the data cannot be used, or an argument is out of its range.
    """
    asked = _Asked.checked(cfg)
    named = [key for key in ("run", "runs", "images") if not OmegaConf.is_missing(cfg, key) and cfg[key] is not None]
    if len(named) > 1:
        raise UserError(f"{'= and '.join(named)}= exclude each other: name one of them")
    if "images" in named:
        return _evaluate_images(cfg, asked)
    if asked.count == 0 and not asked.levels:
        raise UserError("num_images=0 levels=[] leaves nothing to score: give levels, or a number of images")
    if asked.classical and not asked.levels:
        raise UserError("classical=true levels=[] leaves classical denoisers nothing to do: give levels")
    if asked.count is None:
        raise UserError("num_images=null goes with images= alone: say how many the run is to draw")
    return _evaluate_run(cfg, asked, Run.named(cfg)) if "runs" not in named else _evaluate_runs(cfg, asked)


def _evaluate_runs(cfg: DictConfig, asked: _Asked) -> dict[str, Any]:
    if cfg.output is not None:
        raise UserError(f"output={cfg.output} goes with a single run: of runs= each keeps its own in its folder")
    runs = named_runs(cfg)
    for run in runs:
        Generator.load(cfg, run)  # one that cannot be used is said before minutes of drawing
    records = []
    for number, run in enumerate(runs, start=1):
        print(f"\n{number} of {len(runs)}: {run.config.name}, {run.path.name}")
        records.append(_evaluate_run(cfg, asked, run))
    return {"evaluations": records}


def _evaluate_run(cfg: DictConfig, asked: _Asked, run: Run) -> dict[str, Any]:
    assert asked.count is not None  # evaluate() has seen to that
    generator = Generator.load(cfg, run)
    trained = generator.trained
    team = Team.joined()
    source = FromRun(generator, cfg.label, asked.count, asked.seed, asked.batch_size, team)
    others = classical_denoisers() if asked.classical else {}
    datamodule = _data_of(cfg, run)
    datamodule.batch_size = asked.batch_size or images_at_a_time(trained.run.image_shape, trained.device)
    judged = asked.count > 0 and (cfg.features != "auto" or knows(datamodule.source.name))
    if not team.is_first:
        if judged:
            source.help()
        return {}
    judge = judge_for(cfg.features, datamodule.source.name) if judged else None
    if judge is not None:
        check_count(asked.count, datamodule, judge)
    own = _own_level(run)
    levels = sorted({*asked.levels, own}) if asked.levels and own else asked.levels
    record: dict[str, Any] = {
        "run": run.path.name,
        "checkpoint": run.checkpoint(cfg.checkpoint).name,
        "weights": trained.weights,
        "split": "test",
        "images": len(datamodule.splits["test"]),
        "noise_seed": asked.noise_seed,
        "data_range": "[-1, 1], not clipped",
        "trained_percent": own,
    }
    pages = Pages(_folder(cfg, run.path / "evaluations"), board=run.path)
    print(f"{record['checkpoint']}, {trained.weights} weights, against {record['images']} test images.")
    if levels:
        batches = tqdm(datamodule.test_dataloader(), "denoising", unit=" batches", delay=2, leave=False, disable=None)
        scores = score_levels(trained.denoiser, batches, levels, asked.noise_seed, trained.device, others)
        if not all(math.isfinite(score.answers["network"]["mse"]) for score in scores):
            raise UserError(f"run={run.path}: the network answers with numbers that are not finite: take another checkpoint")
        record["levels"] = [score.as_dict() for score in scores]
        print(f"\nDenoising, noise seed {asked.noise_seed}:\n\n{denoising_table(scores, own)}\n")
        pages.plot("denoising.png", denoising_plot(scores, own))
        batch = datamodule.splits["test"].__getitems__(range(min(8, len(datamodule.splits["test"]))))
        shown = [levels[i] for i in sorted({len(levels) * sixth // 6 for sixth in (1, 3, 5)})]
        rows = denoised_examples(trained.denoiser, batch, shown, asked.noise_seed, trained.device, others)
        pages.plot("denoised.png", rows_with_names(rows))
        for answer in scores[0].answers:  # over the level in percent, where other curves have the step
            psnr = {100 * score.percent: score.answers[answer]["psnr"] for score in scores}
            pages.curve(f"evaluate_psnr_by_percent/{answer}", psnr)
    if judge is not None:
        _score(record, source, datamodule, judge, pages)
    elif asked.count:
        print(
            f"No score for drawing: the feature network that comes along knows Fashion-MNIST alone, and this is "
            f"{datamodule.source.name}; features= names another one."
        )
    pages.write(record)
    return record


def _evaluate_images(cfg: DictConfig, asked: _Asked) -> dict[str, Any]:
    if "_target_" not in cfg.data:
        raise UserError("images= is compared with a dataset: add data=, such as data=fashion_mnist")
    if asked.count == 0:
        raise UserError("num_images=0 leaves nothing to score: say how many of the images, or num_images=null for all")
    if asked.classical:
        raise UserError("classical=true is about denoising, which needs a run: leave it out with images=")
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []
    idle = [word for word in words if word.partition("=")[0].partition(".")[0] in _OF_RUNS]
    if idle:
        raise UserError(f"{' '.join(idle)}: says what a run is to do, and images= names none: leave it out")
    if not Team.joined().is_first:
        return {}
    datamodule = _data_of(cfg, None)
    judge = judge_for(cfg.features, datamodule.source.name)
    path = named_path("images", cfg.images)
    source = FromFiles(path, (datamodule.channels, *datamodule.image_size), asked.count)
    check_count(source.count, datamodule, judge)
    record: dict[str, Any] = {"run": str(path)}
    pages = Pages(_folder(cfg, Path("evaluations")), board=None)
    _score(record, source, datamodule, judge, pages)
    pages.write(record)
    return record


def _folder(cfg: DictConfig, usual: Path) -> Path:
    if cfg.output is None:
        return usual / unique_name()
    output = named_path("output", cfg.output)
    return output / unique_name() if HydraConfig.initialized() and is_sweep_job() else output


def _score(record: dict[str, Any], source: DrawingSource, datamodule: ImageDataModule, judge: Judge, pages: Pages) -> None:
    scored = score_drawings(source, datamodule, judge)
    record["generation"] = scored.score.as_dict()
    print(in_words(scored.score))
    pages.picture("drawn.png", grid(to_float(scored.first), _COLUMNS))
    pages.picture("neighbours.png", grid(to_float(scored.closest), len(scored.closest) // 2))
    for name, value in asdict(scored.score.closeness).items():
        pages.curve(f"evaluate/{name}", {0: value})


def _data_of(cfg: DictConfig, run: Run | None) -> ImageDataModule:
    """The images to compare with: those of the run, with single keys changed by `data.`, or those that `data=` names.

    Raises:
        UserError: they cannot be used.
    """
    config = OmegaConf.create({"data": cfg.data, "cache_dir": cfg.cache_dir, "seed": 0})
    if run is not None:
        chosen = "_target_" in cfg.data
        config.data = OmegaConf.merge(config.data if chosen else run.config.data, {} if chosen else cfg.data)
        config.data.image_size, config.data.channels = run.config.data.image_size, run.config.data.channels
    config.data.cache_dir = f"{cfg.cache_dir}/resized"
    return build_datamodule(config)


def _own_level(run: Run) -> float | None:
    seen = build(run.config, "noise")
    return seen.percent if isinstance(seen, FixedLevel) else None
