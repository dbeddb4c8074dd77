"""Arguments that several commands share."""

from typing import Any

from unet_diffusion.experiment.build import build_sampler
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import DType
from unet_diffusion.runs.run import Run, Weights


class PipelineArguments(Schema):
    """A run, and how it is loaded for sampling."""

    run: PathStr | None
    checkpoint: str
    weights: Weights
    device: str
    dtype: DType
    guidance_scale: float | None
    sampler: dict[str, Any] | None = None  # another sampler, or changed keys of the run's

    def open_run(self) -> Run:
        """The run."""
        return Run.open(str(self.run))

    def load(self, run: Run) -> Pipeline:
        """The pipeline of a run."""
        return Pipeline.from_pretrained(
            run,
            checkpoint=self.checkpoint,
            weights=self.weights,
            device=self.device,
            dtype=self.dtype,
            sampler=build_sampler(run.config, self.sampler),
            guidance_scale=self.guidance_scale,
        )
