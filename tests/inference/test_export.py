import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import composed
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor

from unet_diffusion.inference import onnx_format
from unet_diffusion.inference.export import export
from unet_diffusion.runs import Run

CPU = torch.device("cpu")


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(count)
    return torch.randn(count, 1, 16, 16), torch.rand(count), torch.arange(count) % 11 - 1


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_exported_weights_in_a_fresh_network_answer_as_the_runs(generator: Path, tmp_path: Path, form: str, weights: str):
    typed = (f"run={generator}", f"format={form}", f"weights={weights}", "checkpoint=last", f"output={tmp_path / 'out'}")
    file = export(composed(*typed, config="export"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["weights"], config["checkpoint"], config["class_names"][7]) == (weights, "last.ckpt", "sneaker")
    assert config["image"] == {"channels": 1, "height": 16, "width": 16, "range": [-1, 1]}
    net = instantiate(config["model"], _convert_="all").eval()
    net.load_state_dict(load_file(file) if form == "safetensors" else torch.load(file, weights_only=True))
    expected = Run.open(generator).load_denoiser("last", CPU, weights)
    with torch.inference_mode():
        assert torch.allclose(net(*inputs(4)), expected.net(*inputs(4)), atol=1e-6)


def test_averaged_and_raw_weights_go_to_different_folders(generator: Path, script: Callable):
    for weights in ("ema", "raw"):
        status, out, err = script("export", f"run={generator}", f"weights={weights}")
        assert (status, err) == (0, "")
        assert f"best.ckpt, {weights} weights" in out
    ema, raw = (load_file(generator / "export" / f"best-{weights}" / "model.safetensors") for weights in ("ema", "raw"))
    assert any(not torch.equal(ema[name], raw[name]) for name in ema)


@pytest.mark.parametrize("which", ["short_run", "generator"])
def test_onnx_answers_as_pytorch_for_any_number_of_images(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    run = request.getfixturevalue(which)
    file = export(composed(f"run={run}", "format=onnx", f"output={tmp_path}", config="export"))
    assert "ONNX against PyTorch, 20 random images in batches of 1, 3, 16: a largest difference of" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file)
    names = [entry.name for entry in session.get_inputs()]
    assert names == (["xt", "t", "label"] if which == "generator" else ["xt", "t"])
    denoiser = Run.open(run).load_denoiser("best", CPU)
    for count in (1, 5):
        given = dict(zip(names, inputs(count), strict=False))
        (answer,) = session.run(["x0_hat"], {name: value.numpy() for name, value in given.items()})
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(answer), denoiser(*given.values()), atol=1e-4)


def test_an_onnx_file_that_answers_otherwise_is_not_kept(
    short_run: Path, tmp_path: Path, script: Callable, monkeypatch: pytest.MonkeyPatch
):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    monkeypatch.setattr(onnx_format, "_MOST_DIFFERENCE", -1.0)
    status, _, err = script("export", f"run={short_run}", "format=onnx", "output=out")
    assert status == 2
    assert "so it was not kept" in err
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_is_refused(
    short_run: Path, tmp_path: Path, script: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, err = script("export", f"run={short_run}", "format=onnx", "output=out")
    assert status == 2
    assert err == "error: format=onnx needs the package onnx: pip install -e '.[export]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("format=tflite", "format=tflite must be one of safetensors, torch, onnx"),
        ("weights=ema", "weights=ema: run="),
        ("checkpoint=first", "has no checkpoint first"),
        ("output=file/x", "output=file/x cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(short_run: Path, script: Callable, tmp_path: Path, typed: str, said: str):
    (tmp_path / "file").write_text("here")
    status, _, err = script("export", f"run={short_run}", typed)
    assert status == 2
    (line,) = err.strip().splitlines()
    assert said in line
