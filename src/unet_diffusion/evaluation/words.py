"""Scores for people: tables for the terminal, plots for the run folder."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from unet_diffusion.evaluation.denoising import LevelScore
from unet_diffusion.evaluation.records import FIGURES
from unet_diffusion.evaluation.scoring import GenerationScore
from unet_diffusion.images import grid

_NAMES = {"rescaled": "noisy, rescaled", "noisy": "noisy input itself"}


def denoising_table(scores: Sequence[LevelScore], own: float | None) -> str:
    """The scores as text, a row a level; the level that the run was trained at is marked.

    Of the network all figures; of the other answers PSNR, which says the same as MSE, so that the table fits a terminal.
    """
    others = [name for name in scores[0].answers if name not in ("network", "noisy")]
    figures = {"mse": ("MSE", ".4f"), "ssim": ("SSIM", ".3f"), "psnr": ("PSNR dB", ".2f")}
    figures = {name: words for name, words in figures.items() if name in scores[0].answers["network"]}
    widths = [max(7, len(_title(name))) for name in others]
    heads = "".join(f"   {_title(name):>{width}}" for name, width in zip(others, widths, strict=True))
    lines = [f"{'':9}{'network':>{10 * len(figures)}}   PSNR dB of"]
    lines.append("noise t  " + "".join(f"{title:>10}" for title, _ in figures.values()) + heads)
    for score in scores:
        mark = "*" if score.percent == own else " "
        cells = "".join(f"{score.answers['network'][name]:>10{form}}" for name, (_, form) in figures.items())
        cells += "".join(f"   {score.answers[name]['psnr']:>{width}.2f}" for name, width in zip(others, widths, strict=True))
        lines.append(f"{score.percent:7.2f} {mark}{cells}")
    return "\n".join(lines) + ("\n(* the level it was trained at)" if own is not None else "")


def denoising_plot(scores: Sequence[LevelScore], own: float | None) -> Figure:
    """PSNR over the noise level, a curve for every answer."""
    percents = [score.percent for score in scores]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for answer in sorted(scores[0].answers, key=lambda name: name != "network"):
        style = "o-" if answer == "network" else ".--"
        axes.plot(percents, [score.answers[answer]["psnr"] for score in scores], style, label=_title(answer))
    if own is not None:
        axes.axvline(own, color="grey", linewidth=0.8, linestyle=":", label="trained at")
    axes.set(xlabel="noise level t", ylabel="PSNR in dB (test images)", title="Denoising, level by level")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def rows_with_names(rows: Sequence[tuple[str, Tensor]]) -> Figure:
    """Images (N, C, H, W) in [-1, 1], a row for each name."""
    figure = Figure(figsize=(6, 0.62 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes.imshow(grid(images, len(images)).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_ylabel(_title(name), rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def in_words(score: GenerationScore) -> str:
    """A score of drawings with what it depends on, in a few lines."""
    facts = score.facts
    lines = [
        f"Drawing: {score.images} images of {facts['source']},",
        *([] if facts["sampler"] is None else [_how(score)]),
        f"         against the {score.reference}; features {score.feature_network}.",
        "",
        f"{'':18}{'drawn':>9}   {'as many real ones':>18}",
    ]
    for name, (title, form) in FIGURES.items():
        spread = "" if score.floor_spread is None else f" ± {getattr(score.floor_spread, name):{form}}"
        lines.append(f"{title:18}{getattr(score.closeness, name):>9{form}}   {getattr(score.floor, name):>9{form}}{spread}")
    if score.class_accuracy is not None:
        real = f"{score.real_class_accuracy:>9.1%}"
        lines.append(f"{'recognised':18}{score.class_accuracy:>9.1%}   {real}   as the class asked for; of the test images")
    nearness = [
        f"{near.ratio:.2f} times in {space} ({near.nearer:.1%} nearer than all but 1 % of real ones)"
        for space, near in score.memorisation.items()
    ]
    lines.append(f"\nDistance to the nearest training image against that of real test images: {'; '.join(nearness)}.")
    return "\n".join(lines)


def _how(score: GenerationScore) -> str:
    facts = score.facts
    return (
        f"         {facts['sampler']}, {facts['nfe']} NFE,\n"
        f"         label {facts['label']}, guidance {facts['guidance']:g}, seed {facts['seed']}, {facts['weights']} weights,"
    )


def _title(answer: str) -> str:
    return _NAMES.get(answer, answer.replace("_", " "))
