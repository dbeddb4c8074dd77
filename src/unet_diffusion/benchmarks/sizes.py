"""Costs over size: speed, memory and parameters of networks, images, batches and precisions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.benchmarks.loops import bare_loop, training_flops
from unet_diffusion.benchmarks.memory import bare_training, peak_of
from unet_diffusion.benchmarks.stopwatch import seconds_of
from unet_diffusion.benchmarks.study import Study, bars, measured_device, table
from unet_diffusion.checks import whole_number
from unet_diffusion.parts import build_denoiser


@dataclass
class Sizes(Study):
    """A bare loop for each of several lists of overrides.

    Args:
        variants: overrides of train.py, several separated by a blank.
        steps: timed of each, 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    variants: list[str]
    steps: int

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, at_least=1)

    def run(self, cfg: DictConfig) -> dict[str, Any]:
        typed = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith("benchmark")]
        record: dict[str, dict[str, float]] = {}
        for variant in self.variants:
            chosen = compose("train", overrides=[*typed, *variant.split()])
            measured_device(chosen)
            record[variant] = self._measured(chosen)
            print(f"{variant}: {record[variant]['images_per_second']:,.0f} images a second")
        rows = [
            [
                name,
                f"{entry['images_per_second']:,.0f}",
                f"{entry['gflop_per_image']:.3f}",
                f"{entry['images_per_second'] * entry['gflop_per_image']:,.0f}",
                f"{entry['peak_mib']:,.0f}",
                f"{entry['parameters']:,.0f}",
            ]
            for name, entry in record.items()
        ]
        print("\n" + table(["", "images/s", "GFLOP an image", "GFLOP/s", "peak MiB", "parameters"], rows))
        return {"variants": record}

    def plot(self, record: dict[str, Any], path: Path) -> None:
        rates = {name: entry["images_per_second"] for name, entry in record["variants"].items()}
        bars(rates, "images a second").savefig(path, dpi=120)

    def _measured(self, cfg: DictConfig) -> dict[str, float]:
        size = cfg.data.batch_size
        device = measured_device(cfg)
        loop = bare_loop(cfg, device, channels_last=True)
        seconds_of(3, loop.step, device)
        seconds = min(seconds_of(self.steps, loop.step, device) for _ in range(3))
        config = OmegaConf.to_container(cfg, resolve=True)
        return {
            "images_per_second": self.steps * size / seconds,
            "gflop_per_image": training_flops(cfg, size) / size / 1e9,
            "peak_mib": peak_of(bare_training, config, 3),
            "parameters": sum(p.numel() for p in build_denoiser(cfg).parameters()),
        }
