"""Training and sampling on a GPU; in bfloat16 also on the CPU."""

from pathlib import Path

import pytest
import torch
from helpers import FEW_BATCHES, SMALL, Script, Trained, built, run_script, scores, weights

from unet_diffusion.commands.train import build_module
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.runs.run import Run

RUN = (
    *("experiment=07_one_step", *SMALL, "model.channels=[16,32]", "logger=csv"),
    *("trainer.max_time=null", "trainer.max_steps=6", "trainer.val_check_interval=3"),
    *("objective.start=0.5", "trainer.log_every_n_steps=100", *FEW_BATCHES),
)


GPU = [pytest.param("gpu", each, marks=pytest.mark.gpu) for each in ("bf16", "fp16")]


@pytest.mark.parametrize(("accelerator", "precision"), [("cpu", "bf16"), *GPU])
def test_mixed_precision_run_loads_on_the_cpu(accelerator: str, precision: str, trained: Trained):
    run = trained(*RUN, f"accelerator={accelerator}", f"precision={precision}")
    assert all(value.isfinite().all() for value in weights(run).values())
    assert 0 < scores(run)["test/mse"] < 2
    images = Pipeline.from_pretrained(run, device="cpu", dtype="float32")(3).images
    assert images.isfinite().all()


@pytest.mark.gpu
def test_resumed_run_ends_at_the_new_limit(trained: Trained, script: Script):
    run = trained(*RUN, "accelerator=gpu")
    assert script("train", f"resume={run}", "trainer.max_steps=9")[0] == 0
    assert Run.open(run).metrics.steps == 9


@pytest.mark.gpu
def test_images_of_the_gpu_are_those_of_the_cpu(generator_run: Path):
    images, expected = (
        Pipeline.from_pretrained(generator_run, device=device, dtype="float32")(8).images
        for device in ("cuda", "cpu")
    )
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-2)


@pytest.mark.gpu
def test_training_step_does_not_wait_for_the_gpu():
    module = build_module(built("experiment=04_flow", *SMALL)).to("cuda")
    optimizer = module.optimizer(module.denoiser.parameters())
    images = torch.randn(32, 1, 16, 16, device="cuda")
    label = torch.full((32,), -1, device="cuda")

    def step() -> None:
        t = module.time_distribution.sample(len(images), device=images.device)
        module.denoiser.loss(images, torch.randn_like(images), t, label).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first one sets up the optimizer
    torch.cuda.set_sync_debug_mode("error")  # raises where the CPU waits for the GPU
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_ddp_with_a_single_process_trains(tmp_path: Path):
    overrides = ("accelerator=ddp", "trainer.accelerator=gpu", "trainer.devices=1")
    run_script("train", *RUN, *overrides, "run_dir=run", cwd=tmp_path)
    assert scores(tmp_path / "run")["test/mse"] > 0
