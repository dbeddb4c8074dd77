import time
from pathlib import Path

import pytest
import yaml
from helpers import composed

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_denoiser
from unet_diffusion.experiment.saved import config_text, read_config, validate_config
from unet_diffusion.experiment.schema import Recorded, RunConfig, TrainConfig


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The config file of a run."""
    file = tmp_path / "config.yaml"
    config = composed("experiment=04_flow", "data.image_size=[16,20]")
    file.write_text(config_text(config, Recorded(init_from="a b/é")))
    return file


def change(file: Path, path: str, value: object) -> None:
    config = node = yaml.safe_load(file.read_text())
    *parents, name = path.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    file.write_text(yaml.safe_dump(config))


def load(file: Path) -> RunConfig:
    return validate_config(RunConfig, read_config(file), file)


def load_for_training(file: Path) -> TrainConfig:
    return validate_config(TrainConfig, read_config(file), file)


def test_saved_config_is_read_back(saved: Path):
    config = composed("experiment=04_flow", "data.image_size=[16,20]")
    recorded = Recorded(init_from="a b/é")
    expected = config.model_copy(update={"recorded": recorded}).model_dump()
    assert load_for_training(saved).model_dump() == expected
    saved.write_text(f"{saved.read_text()}other: {'[' * 19}3, a, null{']' * 19}\n")
    build_denoiser(load(saved), num_classes=0)


FOREIGN = (
    "os.system",
    "builtins.eval",
    "torch.hub.load",
    "functools.partial",
    "unet_diffusion.runs.checkpoints.load_checkpoint",
    "unet_diffusion.models.unet.torch.hub.load",  # reached through an import
    "unet_diffusion.models.layers.zero_init",  # not a class
    "unet_diffusion.data.sources.FashionMNISTMini",  # of another group
    "unet_diffusion.models.Missing",
    "unet_diffusion.modelsx.UNet",
    "",
    3,
)


@pytest.mark.parametrize(
    ("path", "target"),
    [("model", each) for each in FOREIGN]
    + [(path, "os.system") for path in ("data.source", "sampler", "model.channels", "ema")],
)
def test_foreign_class_in_run_config_raises(saved: Path, path: str, target: object):
    foreign = {"_target_": target}
    change(saved, path, [foreign] if path == "model.channels" else foreign)
    with pytest.raises(UserError, match="is not an allowed class"):
        load(saved)


@pytest.mark.parametrize("path", ["optimizer", "lr_schedule", "objective", "objective.teacher"])
def test_classes_of_training_are_checked_when_it_resumes(saved: Path, path: str):
    change(saved, f"{path}._target_", "os.system")
    load(saved)  # generation does not need this group
    with pytest.raises(UserError, match=rf"{path}\._target_=os.system is not an allowed class.$"):
        load_for_training(saved)


def test_classes_of_a_package_are_allowed_if_the_user_trusts_it(saved: Path, monkeypatch):
    change(saved, "model._target_", "mylab.models.Net")
    with pytest.raises(UserError, match="If you trust mylab, set UNET_DIFFUSION_TRUST=mylab"):
        load(saved)
    monkeypatch.setenv("UNET_DIFFUSION_TRUST", "other,mylab")
    assert load(saved).model["_target_"] == "mylab.models.Net"
    change(saved, "model._target_", "mylabs.models.Net")
    with pytest.raises(UserError, match="is not an allowed class"):
        load(saved)


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "__class__"])
def test_other_special_keys_raise(saved: Path, key: str):
    change(saved, f"model.{key}", ["x"])
    with pytest.raises(UserError, match=f"model.{key} is not allowed"):
        read_config(saved)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("other: ${oc.env:HOME}", "other contains an interpolation"),
        ('other: "\\x24{oc.env:HOME}"', "other contains an interpolation"),
        ("${model}: 1", "contains an interpolation"),
        ("other: &a {b: '${.c}'}", "other.b contains an interpolation"),
        ("other: 2026-01-01", "other is not plain data"),
        ("2026-01-01: other", " is not plain data"),
        ("other: {[a, b]: c}", "unhashable key"),
        ("other: !!binary aGVsbG8=", "it contains a YAML tag"),
        ("other: !own {a: 1}", "it contains a YAML tag"),
        ("other: !!python/name:os.getcwd", "it contains a YAML tag"),
        ("other: &a [1]\nanother: *a", "it contains a YAML alias"),
        ("other: " + "[" * 21 + "]" * 21, "nested more than 20 levels deep"),
        ("other: " + "{a: " * 21 + "}" * 21, "nested more than 20 levels deep"),
        ("other: 1" + "0" * 5000, "4300 digits"),
        ("other: 1" + ":59" * 1000 + ".5", "int too large to convert to float"),
    ],
)  # fmt: skip
def test_other_than_plain_values_are_refused_on_one_line(saved: Path, line: str, message: str):
    saved.write_text(f"{saved.read_text()}{line}\n")
    with pytest.raises(UserError, match=message):
        load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [",
        "\x00",
        "model: 3",
        "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" if i else "a0: &a0 x\n" for i in range(99)),
        "[" * 200_000,
        "x: " + "[" * 100_000 + "]" * 100_000,
        "- " * 100_000,
        "a" * 1_000_001,
    ],
)  # fmt: skip
def test_damaged_run_config_raises_within_a_second(saved: Path, text: str):
    saved.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=r"config\.yaml"):
        load(saved)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("key", ["name", "data", "sampler", "label_dropout", "data.channels"])
def test_missing_key_is_named(saved: Path, key: str):
    values = yaml.safe_load(saved.read_text())
    parent = values["data"] if "." in key else values
    del parent[key.rpartition(".")[2]]
    saved.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"not the config of a run: {key}: Field required"):
        load(saved)
