"""A trained run with its sampler: from seeds and labels to images."""

import difflib
import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from unet_diffusion.config import GENERATION_GROUPS, instantiate
from unet_diffusion.diffusion.denoiser import NULL_LABEL, CFGDenoiser, Denoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.hardware import DType, inference_batch_size, select_device, select_dtype
from unet_diffusion.runs import Run, Weights, read_json, write_atomically
from unet_diffusion.samplers import Sampler, SamplerOutput

TEMPLATES = Environment(
    loader=PackageLoader("unet_diffusion.generation"), trim_blocks=True, lstrip_blocks=True
)
SAVED_KEYS = (*GENERATION_GROUPS, "name", "ema", "guidance_scale", "label_dropout", "class_names")
"""Keys of the run's config that a saved model needs."""


@dataclass(frozen=True)
class Pipeline:
    """A trained denoiser with guidance and a sampler.

    Example::

        pipeline = Pipeline.from_pretrained("pretrained")
        images = pipeline(10, label="sneaker", seed=1).images   # (10, 1, 16, 16), about [-1, 1]
    """

    run: Run
    denoiser: Denoiser
    cfg_denoiser: CFGDenoiser
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype  # autocast dtype of the network in sampling
    weights: Weights  # ema or raw
    checkpoint: Path

    @classmethod
    def from_pretrained(
        cls,
        run: Run | str | Path,
        *,
        checkpoint: str = "best",
        weights: Weights = "auto",
        device: str = "auto",
        dtype: DType = "auto",
        sampler: dict[str, Any] | None = None,
        guidance_scale: float | None = None,
    ) -> "Pipeline":
        """Loads the weights of a run.

        Args:
            run: a run, anything that `Run.open` accepts, or `user/name` on the Hugging Face Hub.
            checkpoint: `best` or `last`.
            weights: `ema`, `raw`, or `auto`: the EMA if the run has one.
            device: `auto`, `cpu`, `cuda`, `mps`.
            dtype: autocast dtype in sampling; `auto`: bfloat16 if the device is fast at it.
            sampler: another sampler (with a `_target_`), or changed keys of the run's sampler.
            guidance_scale: at least 1 (off); None: that of the run.
        """
        if not isinstance(run, Run):
            is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(run)) and not Path(run).parent.exists()
            run = Run.open(f"hf://{run}" if is_hub_id else run)
        scale = run.config.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale
        config = run.config.copy()
        config.update(guidance_scale=scale, sampler=merge_sampler(run, sampler or {}))
        run = replace(run, config=config)
        selected_device = select_device(device)
        denoiser = run.load_denoiser(checkpoint, weights, selected_device)
        check_guidance(scale, denoiser.num_classes, run.config.get("label_dropout", 0))
        return cls(
            run=run,
            denoiser=denoiser,
            cfg_denoiser=CFGDenoiser(denoiser, scale),
            sampler=instantiate(run.config, "sampler"),
            device=selected_device,
            dtype=select_dtype(dtype, selected_device.type),
            weights=run.resolve_weights(weights),
            checkpoint=run.checkpoint_path(checkpoint),
        )

    def __call__(
        self,
        num_samples: int = 1,
        *,
        label: str | int | Tensor = "auto",
        guidance_scale: float | None = None,
        sampler: dict[str, Any] | None = None,
        steps: int | None = None,
        seed: int = 0,
        eps: Tensor | None = None,
        x0: Tensor | None = None,
        strength: float = 0.6,
        batch_size: int | None = None,
        return_trajectory: bool = False,
    ) -> SamplerOutput:
        """Generates images (num_samples, C, H, W) in about [-1, 1] on the CPU.

        Args:
            num_samples: at least 1; with `eps` or `x0`, their number of images.
            label: labels (num_samples,), or an argument of `class_labels`.
            guidance_scale: at least 1 (off); None: that of the pipeline.
            sampler: see `from_pretrained`; None: that of the pipeline.
            steps: of the sampler; None: as configured.
            seed: image i of a seed is always the same, with equal dtype up to rounding.
            eps: noise (num_samples, C, H, W) to start from instead of that of `seed`.
            x0: images (num_samples, C, H, W) to start from (Meng et al. 2022, "SDEdit").
            strength: with `x0`: noise level that it is noised to, in (0, 1]; 1 is pure noise.
            batch_size: images per batch; None: fast on the device. The images do not depend on it.
            return_trajectory: keep the images after each step.
        """
        cfg_denoiser, selected = self.cfg_denoiser, self.sampler
        num_samples = next((len(each) for each in (eps, x0) if each is not None), num_samples)
        if guidance_scale is not None:
            label_dropout = self.run.config.get("label_dropout", 0)
            check_guidance(guidance_scale, self.denoiser.num_classes, label_dropout)
            cfg_denoiser = CFGDenoiser(self.denoiser, guidance_scale)
        if sampler is not None or steps is not None:
            changed = {} if steps is None else {"steps": steps}
            merged = merge_sampler(self.run, {**(sampler or {}), **changed})
            selected = instantiate(OmegaConf.create({"sampler": merged}), "sampler")
        return sample_images(
            cfg_denoiser,
            selected,
            seeded_noise(seed, range(num_samples), self.run.image_shape) if eps is None else eps,
            label if isinstance(label, Tensor) else self.labels(label, num_samples),
            seed=seed,
            batch_size=batch_size,
            device=self.device,
            dtype=self.dtype,
            x0=x0,
            strength=strength,
            return_trajectory=return_trajectory,
        )

    @torch.inference_mode()
    def denoise(self, images: Tensor, t: float, label: str | int = "none") -> Tensor:
        """Predicts the clean images, on the CPU, for noisy ones (B, C, H, W) in about [-1, 1].

        `t` in [0, 1] is their noise level; `label` is an argument of `class_labels`.
        """
        xt = images.to(self.device)
        time = torch.full((len(xt),), t, device=self.device)
        labels = self.labels(label, len(xt))
        labels = None if labels is None else labels.to(xt.device)
        return self.denoiser(xt, time, labels).cpu()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Saves the weights, what sampling needs of the config, and a model card with the scores.

        The folder can be opened like a run directory. Returns model.safetensors in it.
        """
        folder = Path(folder).expanduser()
        if (folder / "checkpoints").exists():
            raise ValueError(f"{folder}: is a run directory. Use another folder.")
        resolved: dict[str, Any] = OmegaConf.to_container(self.run.config)  # type: ignore[assignment]
        config = {key: resolved[key] for key in SAVED_KEYS if key in resolved}
        config["ema"] = config.get("ema") if self.weights == "ema" else None
        config["data"] = _without_local_paths(config["data"], self.run.config.get("cache_dir"))
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config))
        state = {
            name: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
            for name, value in self.denoiser.net.state_dict().items()
        }
        write_atomically(folder / "model.safetensors", save(state, {"format": "pt"}))
        write_atomically(folder / "README.md", self.model_card())
        return folder / "model.safetensors"

    def model_card(self) -> str:
        """Markdown: the training, and the scores of these weights that evaluate.py has written.

        Evaluations that cannot be compared with the last one are left out.
        """
        if self.run.saved_model:
            return (self.run.path / "README.md").read_text(encoding="utf-8")
        files = sorted(self.run.path.glob("evaluations/*/evaluation.json"))
        records = [record for file in files if (record := read_json(file))]
        used = {"checkpoint": self.checkpoint.name, "weights": self.weights}
        scores = [each["generation"] for each in records if used.items() <= each.items()]
        labels = ("auto", "all") if self.denoiser.num_classes else ("none",)
        scores = [each for each in scores if each and each["settings"]["label"] in labels]
        keys = ("num_samples", "reference_hash", "feature_extractor")
        latest = {key: scores[-1][key] for key in keys} if scores else {}
        local_path = r"=['\"]?(~|\.*[/\\]|\w:\\)"
        overrides = [each for each in self.run.overrides if not re.search(local_path, each)]
        is_best = self.checkpoint.stem == "best" and self.weights == self.run.resolve_weights()
        return TEMPLATES.get_template("model_card.md.j2").render(
            run=self.run,
            weights=self.weights,
            num_parameters=sum(p.numel() for p in self.denoiser.parameters()),
            metrics=self.run.metrics if is_best else None,
            overrides=shlex.join(overrides),
            scores=[each for each in scores if latest.items() <= each.items()],
        )

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads the saved model to the Hugging Face Hub, and returns the address of the commit.

        A repository `user/name` that does not exist is created. token=None: of `hf auth login`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))

    @property
    def sampler_name(self) -> str:
        """Class and arguments of the sampler, such as `HeunSampler(steps=10, clip=static)`."""
        arguments = [f"{k}={v}" for k, v in vars(self.sampler).items() if not k.startswith("_")]
        return f"{type(self.sampler).__name__}({', '.join(arguments)})"

    def settings(self, nfe: int, seed: int, label: str | int) -> dict[str, Any]:
        """How images are generated, for records."""
        return {
            "run": self.run.path.name,
            "checkpoint": self.checkpoint.name,
            "weights": self.weights,
            "sampler": self.sampler_name,
            "nfe": nfe,
            "dtype": str(self.dtype).removeprefix("torch."),
            "guidance_scale": self.cfg_denoiser.guidance_scale,
            "seed": seed,
            "label": label if self.denoiser.num_classes else "none",
        }

    def labels(self, label: str | int, n: int) -> Tensor | None:
        """Class labels of `n` images, see `class_labels`."""
        return class_labels(label, n, self.denoiser.num_classes, self.run.class_names)


def merge_sampler(run: Run, sampler: dict[str, Any]) -> dict[str, Any]:
    """Another sampler (with a `_target_`), or the run's sampler with changed keys."""
    return sampler if "_target_" in sampler else {**run.config.sampler, **sampler}


def _without_local_paths(data: dict[str, Any], cache_dir: str | None) -> dict[str, Any]:
    """A data config with the default cache; `root` is null if it is not in the cache."""
    cache, default = Path(cache_dir or "~/.cache/unet_diffusion"), "~/.cache/unet_diffusion"
    root = Path(data.get("root") or "/")
    in_cache = root.is_relative_to(cache)
    new_root = f"{default}/{root.relative_to(cache).as_posix()}" if in_cache else None
    return data | {"root": new_root, "cache_dir": f"{default}/resized"}


@torch.inference_mode()
def sample_images(
    denoiser: Denoiser | CFGDenoiser,
    sampler: Sampler,
    eps: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x0: Tensor | None = None,
    strength: float = 1.0,
    return_trajectory: bool = False,
) -> SamplerOutput:
    """Generates images (N, C, H, W) in about [-1, 1] on the CPU, batch by batch.

    An image depends on its noise `eps`, and on the index and `seed` of the noise that stochastic
    samplers add, but not on the batch size. The denoiser is on `device` and in eval mode; `label`
    is as in `Sampler.sample`, the other arguments as in `Pipeline.__call__`.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength}: expected a value in (0, 1].")
    device = torch.device(device)
    batch_size = batch_size or inference_batch_size(eps.shape, device)
    if isinstance(denoiser, CFGDenoiser) and label is not None and bool((label < 0).all()):
        denoiser = denoiser.denoiser  # nothing to guide
    outputs = []
    for rows in torch.split(torch.arange(len(eps)), batch_size):
        xt = eps[rows].to(device)
        if x0 is not None and strength < 1:
            t = torch.full((len(rows),), strength, device=device)
            xt = denoiser.schedule.add_noise(x0[rows].to(device), xt, t)
        indices, steps = rows.tolist(), itertools.count(1)  # step 0 is the initial noise
        noise = (seeded_noise(seed, indices, eps.shape[1:], step).to(device) for step in steps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = sampler.sample(
                denoiser,
                xt,
                None if label is None else label[rows].to(device),
                start=1.0 if x0 is None else strength,
                noise=noise.__next__,
                return_trajectory=return_trajectory,
            )
        trajectory = [images.cpu() for images in output.trajectory]
        outputs.append(SamplerOutput(output.images.cpu(), output.nfe, trajectory))
    trajectories = zip(*(output.trajectory for output in outputs), strict=True)
    images = torch.cat([output.images for output in outputs])
    return SamplerOutput(images, outputs[0].nfe, [torch.cat(each) for each in trajectories])


def check_guidance(
    guidance_scale: float, num_classes: int, label_dropout: float, key: str = "guidance_scale"
) -> None:
    """Checks that the network has classes and a trained null class if guidance needs them."""
    if guidance_scale == 1:
        return
    if not num_classes:
        raise ValueError(
            f"{key}={guidance_scale}: the network has no classes. Use {key}=1, or train a network "
            f"with classes: model=unet model.num_classes='${{num_classes}}', and, for data without "
            f"classes, data.num_clusters."
        )
    if not label_dropout:
        raise ValueError(
            f"{key}={guidance_scale}: the null class is not trained with label_dropout=0. "
            f"Use {key}=1, or train with label_dropout=0.1."
        )


def class_labels(
    label: str | int, n: int, num_classes: int, class_names: Sequence[str]
) -> Tensor | None:
    """Class labels (n,) of `n` images; None for an unconditional network (`num_classes` 0).

    `label` is a class index or name; `all`: the classes in turn; `none`: the null class; `auto`:
    `all` for networks with classes.
    """
    if num_classes == 0:
        if label in ("auto", "none"):
            return None
        raise ValueError(f"label={label}: the network has no classes. Omit label.")
    if label in ("auto", "all"):
        return torch.arange(n) % num_classes
    if label == "none":
        return torch.full((n,), NULL_LABEL)
    names = [re.sub(r"\W", "", name.lower()) for name in class_names]  # tshirttop
    normalized = re.sub(r"\W", "", str(label).lower())
    if normalized in names:
        return torch.full((n,), names.index(normalized))
    if isinstance(label, int) and 0 <= label < num_classes:
        return torch.full((n,), label)
    close = difflib.get_close_matches(str(label), class_names, n=1)
    raise ValueError(
        f"label={label}: expected all, none, 0 to {num_classes - 1}, or one of "
        f"{', '.join(class_names[:10])}." + (f" Did you mean {close[0]}?" if close else "")
    )
