"""Saved models: what is written, and how they are opened."""

from pathlib import Path

import pytest
import yaml

from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.runs.run import Run


def test_files_of_something_else_are_not_overwritten(short_run: Path, tmp_path: Path):
    pipeline = Pipeline.from_pretrained(short_run)
    for name in ("README.md", "config.yaml"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(
            ValueError, match=rf"{name}: is not that of a saved model\. Use another"
        ):
            pipeline.save_pretrained(folder)
        assert [file.read_text() for file in folder.iterdir()] == ["mine"]
    pipeline.save_pretrained(tmp_path / "saved")
    pipeline.save_pretrained(tmp_path / "saved")  # its own files are replaced


def test_config_has_the_number_of_classes(generator_run: Path, tmp_path: Path):
    Pipeline.from_pretrained(generator_run).save_pretrained(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["num_classes"] == 10


def test_saved_model_has_no_other_checkpoints():
    with pytest.raises(ValueError, match=r"^checkpoint=best2: .*safetensors is the only one"):
        Run.open("pretrained").checkpoint_path("best2")


@pytest.mark.parametrize(
    ("name", "suggestion"), [("pretraind", "pretrained"), ("pretrained:lesso", "pretrained:lesson")]
)
def test_misspelled_name_is_corrected(name: str, suggestion: str):
    with pytest.raises(
        ValueError, match=rf"^run={name}: no such .* mean {suggestion}\? .*one_step"
    ):
        Run.open(name)
