"""export.py: the exported files give the outputs of the run."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import call
from safetensors.torch import load_file
from torch import Tensor

from unet_diffusion.commands.export import export_onnx
from unet_diffusion.diffusion import Denoiser, LinearSchedule, VelocityPrediction
from unet_diffusion.experiment.parts import construct
from unet_diffusion.models import UNet
from unet_diffusion.runs import Run
from unet_diffusion.samplers import AverageVelocitySampler


def random_inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n)
    return torch.randn(n, 1, 16, 16), torch.rand(n), torch.arange(n) % 11 - 1


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_exported_weights_in_a_new_network(generator_run: Path, tmp_path: Path, weights: str):
    run = shutil.copytree(generator_run, tmp_path / "run")
    file = call("export", run=str(run), weights=weights, checkpoint="last")
    assert file.parent == run.resolve() / "export" / f"last-{weights}"
    config = yaml.safe_load((file.parent / "config.yaml").read_text())
    assert config["class_names"][7] == "sneaker"
    net = construct(config["model"], "model").eval()
    net.load_state_dict(load_file(file))
    expected = Run.open(generator_run).load_denoiser("last", weights)  # type: ignore[arg-type]
    with torch.inference_mode():
        difference = net(*random_inputs(4)) - expected.net(*random_inputs(4))
    assert difference.abs().max() < 1e-6


def test_onnx_equals_pytorch_for_any_batch_size(short_run: Path, tmp_path: Path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    file = call("export", run=str(short_run), format="onnx", output=str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["checkpoint"], config["model"]["image_size"]) == ("best.ckpt", 16)
    assert config["image"] == {"channels": 1, "height": 16, "width": 16, "range": [-1, 1]}
    session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]
    assert names == ["xt", "t"]
    denoiser = Run.open(short_run).load_denoiser()
    for n in (1, 5):
        inputs = dict(zip(names, random_inputs(n), strict=False))
        arrays = {name: value.numpy() for name, value in inputs.items()}
        (x0_hat,) = session.run(["x0_hat"], arrays)
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(x0_hat), denoiser(*inputs.values()))


def test_onnx_of_average_velocities_generates_in_one_evaluation(tmp_path: Path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = UNet(channels=(16, 16), num_classes=3, interval_embedding=True)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(net, LinearSchedule(), VelocityPrediction()).eval()
    export_onnx(denoiser, tmp_path / "model.onnx", (1, 8, 8))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 5):
        eps, label = torch.randn(n, 1, 8, 8), torch.arange(n) % 4 - 1
        inputs = {"xt": eps, "t": torch.ones(n), "label": label, "s": torch.zeros(n)}
        arrays = {name: value.numpy() for name, value in inputs.items()}
        (average_velocity,) = session.run(["average_velocity"], arrays)
        expected = AverageVelocitySampler(1).sample(denoiser, eps, label).images
        x0_hat = eps - torch.from_numpy(average_velocity)
        torch.testing.assert_close(x0_hat, expected, rtol=1e-4, atol=1e-4)


def test_onnx_without_its_packages_raises(short_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="onnx"):
        call("export", run=str(short_run), format="onnx", output=str(tmp_path))
