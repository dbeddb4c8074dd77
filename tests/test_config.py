from pathlib import Path

import pytest
import torch
import yaml
from helpers import composed
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from unet_diffusion.config import (
    build_datamodule,
    build_denoiser,
    check_settings,
    check_targets,
    instantiate,
    load_run_config,
    moved_root,
)

from unet_diffusion.data.sources import FashionMNISTMini
from unet_diffusion.diffusion import MinSNRWeighting
from unet_diffusion.models import UNet


def test_denoiser_has_the_parts_of_the_config():
    overrides = ("model=unet", "model.channels=[16]", "schedule=cosine", "prediction=velocity")
    denoiser = build_denoiser(composed(*overrides, "weighting=min_snr", "weighting.gamma=3"))
    assert isinstance(denoiser.net, UNet)
    names = [type(part).__name__ for part in (denoiser.schedule, denoiser.prediction)]
    assert names == ["CosineSchedule", "VelocityPrediction"]
    assert isinstance(denoiser.weighting, MinSNRWeighting)
    assert denoiser.weighting.gamma == 3
    assert build_denoiser(composed()).weighting is None


def test_nested_parts_and_partial_optimizers_are_instantiated():
    assert isinstance(build_datamodule(composed()).source, FashionMNISTMini)
    optimizer = instantiate(composed("optimizer.lr=0.5"), "optimizer")
    assert optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.5


def test_extra_arguments_are_passed_to_the_class(tmp_path: Path):
    checkpoint = instantiate(composed(), "callbacks.checkpoint", dirpath=tmp_path)
    assert isinstance(checkpoint, ModelCheckpoint)
    assert checkpoint.dirpath == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        ("noise.percent=50", "noise", r"noise\.percent=50: expected .*Did you mean 0\.5\?"),
        ("noise.percent=abc", "noise", r"noise\.percent=abc: should be a valid number\."),
        ("noise.percent=true", "noise", r"noise\.percent=True: should be a valid number\."),
        ("noise.percent=null", "noise", r"noise\.percent=None: should be a valid number\."),
        ("noise.percent=nan", "noise", r"noise\.percent=nan: should be a finite number\."),
        ("data.image_size=18", "model", r"data\.image_size=18: .*The next size is 20\."),
        ("model.image_size=18", "model", r"model\.image_size=18: .*The next size is 20\."),
        ("data.image_size=abc", "data", r"data\.image_size=abc: should be a valid integer"),
        ("model.channels=[16,a]", "model", r"model\.channels\.1=a: should be a valid integer"),
        ("+model.depth=3", "model", r"model\.depth: unknown key\. LessonUNet has channels, "),
        ("+data.source.x=3", "data", r"data\.source\.x: unknown key\. FashionMNISTMini has no"),
        ("optimizer.fused=maybe", "optimizer", r"optimizer\.fused=maybe: should be a valid bool"),
        ("model.dense_bottleneck=no", "model", r"model\.dense_bottleneck=no: should be a valid"),
        ("data.flip=2", "data", r"data\.flip=2: should be a valid boolean\."),
        ("seed=-1", "data", r"data\.seed=-1: should be greater than or equal to 0"),
        ("+optimizer.x=3", "optimizer", r"optimizer\.x: unknown key\. AdamW has params, lr"),
        ("data.source._target_=a.B", "data", r"data\.source\._target_=a\.B: no such class\."),
        ("model._target_=os", "model", r"model\._target_=os: no such class\."),
        ("lr_schedule.warmup=2", "lr_schedule", r"lr_schedule\.warmup=2: should be less than"),
        ("callbacks.previews.num_images=0", "callbacks.previews", r"callbacks.*num_images=0: "),
        (
            "callbacks.previews.guidance_scale=0.5",
            "callbacks.previews",
            r"callbacks.*guidance_scale=0\.5: ",
        ),
        ("optimizer=muon optimizer.lr=0", "optimizer", r"optimizer\.lr=0: should be greater"),
        ("optimizer=muon optimizer.betas=[0.9,1.0]", "optimizer", r"optimizer\.betas\.1=1\.0: "),
        ("model.image_channels=2", "model", r"model\.image_channels=2: should be 1 or 3\."),
        (
            "sampler=heun sampler.time_grid=log",
            "sampler",
            r"sampler\.time_grid=log: should be 'uni",
        ),
        ("sampler.clip=hard", "sampler", r"sampler\.clip=hard: should be 'none', 'static' or 'dyn"),
        ("ema=default ema.decay=1", "ema", r"ema\.decay=1: should be less than 1"),
        ("seed=0", "weighting", r"weighting=None: expected keys with a _target_"),
        ("seed=3", "seed", r"seed=3: expected keys with a _target_"),
    ],
)
def test_invalid_argument_is_named_by_its_full_key(overrides: str, key: str, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        instantiate(composed(*overrides.split()), key)


def test_parts_that_do_not_fit_together_raise():
    with pytest.raises(ValueError, match=r"^prediction=epsilon: .* Use schedule=ddpm"):
        build_denoiser(composed("prediction=epsilon"))


def test_default_settings_are_valid():
    check_settings(composed())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("seed=4294967296", "seed=4294967296: should be less than"),
        ("noise_seed=1.5", r"noise_seed=1\.5: should be a valid integer"),
        ("label_dropout=20", "label_dropout=20: should be less than or equal to 1"),
        ("guidance_scale=0.5", r"guidance_scale=0\.5: should be greater than or equal to 1"),
        ("name=../x", r"name=\.\./x: .* match pattern"),
        ("speed.compile=abc", r"speed\.compile=abc: should be 'auto' or a valid boolean"),
        ("+speed.x=true", r"speed\.x=x: should be 'channels_last', 'compile' or"),
        ("speed=5", "speed=5: expected keys"),
        ("trainer=null", "trainer=None: expected keys"),
        ("callbacks=null", "callbacks=None: expected keys"),
        ("trainer.max_steps=abc", r"trainer\.max_steps=abc: should be a valid integer"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0: should be greater than or equal to 1 or"),
        ("trainer.max_steps=-1", "trainer: set one of max_steps, max_epochs and max_time"),
        ("trainer.max_time=00:10:00", r"trainer\.max_time=00:10:00: should match pattern"),
        ("trainer.max_time=soon", r"trainer\.max_time=soon: "),
        ("trainer.val_check_interval=0", r"trainer\.val_check_interval=0: should be greater"),
        ("trainer.accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches=0: "),
        ("trainer.gradient_clip_val=0", r"trainer\.gradient_clip_val=0: should be greater than 0"),
        ("trainer.fast_dev_run=0.3", r"trainer\.fast_dev_run=0\.3: "),
        ("~trainer.log_every_n_steps", r"trainer\.log_every_n_steps: Field required"),
    ],
)
def test_invalid_settings_raise(override: str, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_settings(composed(override))


@pytest.fixture(scope="module")
def config_text() -> str:
    """The config of a run."""
    return OmegaConf.to_yaml(composed("experiment=04_flow"), resolve=True)


@pytest.fixture
def saved(config_text: str, tmp_path: Path) -> Path:
    """The config file of a run."""
    file = tmp_path / "config.yaml"
    file.write_text(config_text)
    return file


def change(file: Path, path: str, value: object) -> None:
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    OmegaConf.update(config, path, value, force_add=True)
    file.write_text(yaml.safe_dump(OmegaConf.to_container(config)))


def test_run_config_equals_the_saved_config(saved: Path):
    assert load_run_config(saved) == OmegaConf.load(saved)
    build_denoiser(load_run_config(saved))


FOREIGN = (
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.hub.load",
    "torch.load",
    "pathlib.Path",
    "functools.partial",
    "hydra.utils.call",
    "unet_diffusion.runs.load_checkpoint",
    "unet_diffusion.models.unet.torch.hub.load",  # reached through an import
    "unet_diffusion.models.layers.zero_init",  # not a class
    "unet_diffusion.models.Missing",
    "unet_diffusion.modelsx.UNet",
    "",
    3,
)


@pytest.mark.parametrize("target", FOREIGN)
def test_foreign_class_in_run_config_raises(saved: Path, target: object):
    change(saved, "model._target_", target)
    with pytest.raises(ValueError, match="is not an allowed class"):
        load_run_config(saved)


@pytest.mark.parametrize("path", ["data.source", "sampler", "model.channels"])
def test_foreign_class_of_any_part_raises(saved: Path, path: str):
    foreign = {"_target_": "os.system"}
    change(saved, path, [foreign] if path == "model.channels" else foreign)
    with pytest.raises(ValueError, match="is not an allowed class"):
        load_run_config(saved)


@pytest.mark.parametrize("path", ["optimizer", "callbacks.previews.sampler", "logger.csv", "other"])
def test_classes_of_training_are_checked_by_check_targets(saved: Path, path: str):
    change(saved, f"{path}._target_", "os.system")
    config = OmegaConf.to_container(load_run_config(saved))  # generation does not need this group
    with pytest.raises(ValueError, match=rf"{path}\._target_=os.system is not an allowed class"):
        check_targets(config, "config.yaml")
    trusted = OmegaConf.create({})
    OmegaConf.update(trusted, f"{path}._target_", "os.mkdir")
    with pytest.raises(ValueError, match=r"_target_=os.system is not an allowed class"):
        check_targets(config, "config.yaml", trusted)
    OmegaConf.update(trusted, f"{path}._target_", "os.system")
    check_targets(config, "config.yaml", trusted)


def test_class_of_another_group_raises(saved: Path):
    change(saved, "model._target_", "unet_diffusion.data.sources.FashionMNISTMini")
    with pytest.raises(ValueError, match=r"model\._target_=.* is not an allowed class"):
        load_run_config(saved)


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "__class__"])
def test_other_special_keys_raise(saved: Path, key: str):
    change(saved, f"model.{key}", ["x"])
    with pytest.raises(ValueError, match=f"model.{key} is not allowed"):
        load_run_config(saved)


@pytest.mark.parametrize(
    "line",
    [
        "other: ${oc.env:HOME}",
        'other: "\\x24{oc.env:HOME}"',
        'other: ["a ${model}"]',
        "${model}: 1",
        "other: &a {b: '${.c}'}",
    ],
)
def test_interpolation_in_run_config_raises(saved: Path, line: str):
    saved.write_text(f"{saved.read_text()}{line}\n")
    with pytest.raises(ValueError, match="contains an interpolation"):
        load_run_config(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "- a",
        "a: [",
        "\x00",
        "model: 3",
        "x: !!python/object/apply:os.getcwd []",
        "x: " + "[" * 1000,
        "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" if i else "a0: &a0 x\n" for i in range(99)),
    ],
)
def test_damaged_run_config_raises(saved: Path, text: str):
    saved.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_run_config(saved)


def test_only_missing_data_of_the_cache_have_a_new_root(tmp_path: Path):
    old = {"cache_dir": f"{tmp_path}/a/resized"}
    assert moved_root(old | {"root": f"{tmp_path}/a/mnist"}, "/b") == "/b/mnist"
    (tmp_path / "a" / "mnist").mkdir(parents=True)
    for root in (f"{tmp_path}/a/mnist", "/photos", None):
        assert moved_root(old | {"root": root}, "/b") == root
