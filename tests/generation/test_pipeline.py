"""sample_images, class labels, and how a run and the arguments are combined."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, seeded_noise
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.feature_extractor import load_feature_extractor
from unet_diffusion.experiment.build import build_sampler, check_guidance
from unet_diffusion.generation.labels import class_labels
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.generation.sampling import sample_images
from unet_diffusion.images import to_uint8
from unet_diffusion.models import Network
from unet_diffusion.runs import Run
from unet_diffusion.samplers import DDIMSampler, HeunSampler, Sampler

NAMES = ("T-shirt/top", "trouser", "ankle-boot")
SIMILAR = ("A", "a", "+", "-", "c", "c++", "3", "C#", "d-")


class LabelNet(Network):
    """x0_hat = label + xt / 10."""

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return (0 if label is None else label[:, None, None, None].to(xt)) + xt / 10


DENOISER = Denoiser(LabelNet(), LinearSchedule(), X0Prediction())
EPS = seeded_noise(3, range(9), (1, 4, 4))


@pytest.mark.parametrize("sampler", [DDIMSampler(1), DDIMSampler(4, eta=1), HeunSampler(3)])
@pytest.mark.parametrize("from_image", [False, True])
def test_images_do_not_depend_on_the_batch_size(sampler: Sampler, from_image: bool):
    x0 = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 1, 4, 4) if from_image else None
    label = torch.arange(9)
    arguments = {"seed": 3, "x0": x0, "strength": 0.4}
    whole = sample_images(DENOISER, sampler, EPS, label, batch_size=9, **arguments)
    batched = sample_images(DENOISER, sampler, EPS, label, batch_size=4, **arguments)
    torch.testing.assert_close(batched.images, whole.images)
    assert whole.nfe == batched.nfe


def test_ancestral_noise_is_fresh_at_every_step_and_depends_on_seed_and_index():
    sampler = DDIMSampler(2, eta=1)
    output = sample_images(DENOISER, sampler, EPS, seed=3, return_trajectory=True)
    # At t = 1/2, x = x0_hat / 2 + noise / 2 with x0_hat = EPS / 10.
    noise = 2 * (output.trajectory[1] - 0.5 * EPS / 10)
    expected = seeded_noise(3, range(9), (1, 4, 4), step=1)
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)
    other_seed = sample_images(DENOISER, sampler, EPS, seed=4).images
    assert not torch.allclose(output.images, other_seed)
    part = sample_images(DENOISER, sampler, EPS[:4], seed=3).images
    torch.testing.assert_close(part, output.images[:4])


def test_sampling_from_an_image_starts_at_its_noise_level():
    x0 = torch.full((9, 1, 4, 4), 0.5)
    output = sample_images(
        DENOISER, DDIMSampler(2), EPS, x0=x0, strength=0.4, batch_size=4, return_trajectory=True
    )
    torch.testing.assert_close(output.trajectory[0], 0.6 * x0 + 0.4 * EPS)
    assert [len(images) for images in output.trajectory] == [9] * 3  # of all batches
    assert torch.equal(output.trajectory[-1], output.images)


def test_sampler_keys_of_the_run_are_used_unless_overridden(short_run: Path):
    run = Run.open(short_run)
    run.config.sampler["clip"] = "dynamic"
    assert Pipeline.from_pretrained(run).sampler == DDIMSampler(1, clip="dynamic")
    assert build_sampler(run.config, {"clip": "static"}) == DDIMSampler(1, clip="static")
    heun = {"_target_": "unet_diffusion.samplers.HeunSampler", "steps": 3}
    assert build_sampler(run.config, heun) == HeunSampler(3)
    pipeline = Pipeline.from_pretrained(run, sampler=HeunSampler(3))
    assert pipeline.sampler_name == "HeunSampler(steps=3, time_grid='uniform', clip='none')"
    pipeline = Pipeline.from_pretrained(short_run, sampler="heun")
    assert pipeline.sampler == HeunSampler(10, clip="static")
    with pytest.raises(ValueError, match=r"^sampler=dmp: expected one of ancestral, .*, heun, one"):
        pipeline(sampler="dmp")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, {2: 2, "Ankle Boot": 2, "tshirt/top": 0}),
        (SIMILAR, {"A": 0, "a": 1, "+": 2, "c++": 5, "3": 6, 3: 6, 2: 2, "2": 2, "C#": 7}),
    ],
)
def test_label_is_an_exact_name_an_index_or_a_similar_name(names: tuple[str, ...], expected: dict):
    found = {label: class_labels(label, 1, len(names), names) for label in expected}
    assert {label: int(found[label]) for label in found} == expected
    for label, several in (("auto", [0, 1, 2, 0]), ("all", [0, 1, 2, 0]), ("none", [-1] * 4)):
        assert class_labels(label, 4, 3, names).tolist() == several
    with pytest.raises(ValueError, match=r"^label=C: expected exactly one of c, c\+\+\."):
        class_labels("C", 1, 3, ["c", "c++", "d"])


def test_classes_and_guidance_that_the_network_does_not_have_raise():
    assert class_labels("auto", 5, 0, NAMES) is None
    with pytest.raises(ValueError, match=r"^label=3: expected all, none, 0 to 2, or one of T-sh"):
        class_labels(3, 5, 3, NAMES)
    with pytest.raises(ValueError, match=r"^label=1: the network has no classes"):
        class_labels(1, 5, 0, NAMES)
    with pytest.raises(ValueError, match=r"^guidance_scale=2: the network has no classes"):
        check_guidance(2, DENOISER, label_dropout=0.1)
    with_classes = Denoiser(LabelNet(), LinearSchedule(), X0Prediction())
    with_classes.net.num_classes = 3
    with pytest.raises(ValueError, match=r"^guidance_scale=2: the null class is not trained"):
        check_guidance(2, with_classes, label_dropout=0)


def test_saved_pipeline_generates_the_same_images(generator_run: Path, tmp_path: Path):
    pipeline = Pipeline.from_pretrained(generator_run)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = Pipeline.from_pretrained(tmp_path / "saved")
    assert (loaded.weights, loaded.checkpoint.name) == ("ema", "model.safetensors")
    expected = pipeline(4, label="sneaker", seed=1, guidance_scale=2).images
    assert torch.equal(loaded(4, label="sneaker", seed=1, guidance_scale=2).images, expected)
    with pytest.raises(ValueError, match=r"weights=raw: .* has the EMA only"):
        Pipeline.from_pretrained(tmp_path / "saved", weights="raw")


def test_sampler_and_guidance_of_the_pipeline_are_saved(generator_run: Path, tmp_path: Path):
    pipeline = Pipeline.from_pretrained(generator_run, sampler=HeunSampler(3), guidance_scale=3)
    pipeline.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert (loaded.sampler_name, loaded(1).nfe) == (pipeline.sampler_name, 10)
    assert torch.equal(loaded(2).images, pipeline(2).images)
    with pytest.raises(ValueError, match="is a run directory"):
        pipeline.save_pretrained(generator_run)


def test_noise_determines_the_number_of_images(generator_run: Path):
    pipeline, eps = Pipeline.from_pretrained(generator_run), torch.randn(3, 1, 16, 16)
    assert pipeline(eps=eps).images.shape == eps.shape
    assert pipeline(x0=eps, strength=0.5).images.shape == eps.shape
    with pytest.raises(ValueError, match=r"strength=2: expected a value in \(0, 1\]"):
        pipeline(eps=eps, x0=eps, strength=2)


def test_bfloat16_halves_the_file_and_changes_little(generator_run: Path, tmp_path: Path):
    pipeline = Pipeline.from_pretrained(generator_run)
    full = pipeline.save_pretrained(tmp_path / "full").stat().st_size
    half = pipeline.save_pretrained(tmp_path / "half", torch.bfloat16).stat().st_size
    assert 0.5 < half / full < 0.55
    difference = Pipeline.from_pretrained(tmp_path / "half")(4).images - pipeline(4).images
    assert 0 < difference.abs().max() < 0.1


def test_saved_pipeline_names_no_path_of_this_machine(generator_run: Path, tmp_path: Path):
    run = Run.open(shutil.copytree(generator_run, tmp_path / "run"))
    overrides = ["seed=0", "data.root=/home/me/photos"]
    (run.path / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    cache = run.value("cache_dir")
    for root in (f"{cache}/mnist", "/home/me/photos"):
        run.config.data["root"] = root
        Pipeline.from_pretrained(run).save_pretrained(tmp_path / "saved")
        content = (tmp_path / "saved" / "config.yaml").read_text()
        for text in (content, (tmp_path / "saved" / "README.md").read_text()):
            assert cache not in text
            assert "/home/me" not in text
        assert ("root: ~/.cache/unet_diffusion/mnist" in content) == root.endswith("mnist")


def test_steps_and_sampler_are_those_of_the_call(short_run: Path):
    pipeline = Pipeline.from_pretrained(short_run)
    assert (pipeline().nfe, pipeline(steps=4).nfe) == (1, 4)
    assert pipeline(sampler="ddim", steps=3).nfe == 3
    output = pipeline(sampler=HeunSampler(3), steps=2, return_trajectory=True)
    assert (output.nfe, output.trajectory[-1].shape[0]) == (3, 1)
    assert pipeline(sampler=HeunSampler(3)).nfe == 5
    with pytest.raises(ValueError, match=r"^steps=0: expected a number from 1 to 10000"):
        pipeline(steps=0)


def test_images_and_time_that_do_not_fit_raise(short_run: Path):
    pipeline = Pipeline.from_pretrained(short_run)
    for t in (1.5, float("nan")):
        with pytest.raises(UserError, match=rf"^t={t}: expected a value in \[0, 1\]"):
            pipeline.denoise(torch.zeros(1, 1, 16, 16), t)
    for shape in ((1, 16, 16), (2, 3, 16, 16)):
        with pytest.raises(UserError, match=r"^images of shape .*: expected \(B, 1, H, W\)"):
            pipeline.denoise(torch.zeros(shape), 0.5)
        with pytest.raises(UserError, match=r"^images of shape .*: expected \(B, 1, H, W\)"):
            pipeline(eps=torch.zeros(shape))


def test_pretrained_network_generates_the_selected_class():
    pipeline = Pipeline.from_pretrained("pretrained")
    output = pipeline(200, label="all", seed=1)
    assert output.nfe == 1
    extractor = load_feature_extractor("auto", "fashion_mnist_mini")
    features = extractor.features(to_uint8(output.images))
    assert extractor.accuracy(features, torch.arange(200) % 10) > 0.85


def test_hub_without_a_network_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^run=hf://someone/model: the download failed"):
        Pipeline.from_pretrained("someone/model")
    with pytest.raises(ValueError, match=r"^init_from=hf://a: the download failed"):
        Run.open("hf://a", key="init_from")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"^run=runs/typo: no such file or directory"):
        Pipeline.from_pretrained("runs/typo")  # not an id, because the folder exists


def test_uploaded_folder_is_the_saved_pipeline(generator_run: Path, tmp_path: Path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    created: list[str] = []
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda _, repo_id, **__: created.append(repo_id))

    def upload(_: object, repo_id: str, folder_path: str) -> str:
        shutil.copytree(folder_path, tmp_path / "hub")
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    address = Pipeline.from_pretrained(generator_run).push_to_hub("someone/model")
    assert (address, created) == ("https://huggingface.co/someone/model", ["someone/model"])
    assert len(Pipeline.from_pretrained(tmp_path / "hub")(2).images) == 2
