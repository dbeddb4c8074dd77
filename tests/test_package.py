"""The wheel: configs and pretrained weights are in it, and the command works without a clone."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import FEW_BATCHES, ROOT, Script

from unet_diffusion import cli

TINY = ("trainer.max_steps=2", "callbacks.previews=null", "logger=csv", *FEW_BATCHES)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`unet-diffusion` in a new environment with the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment)
    paths = {"base": str(environment), "platbase": str(environment)}
    scripts = Path(sysconfig.get_path("scripts", "venv", paths))
    python = scripts / "python"
    site_packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    names = zipfile.ZipFile(wheel).namelist()
    assert "unet_diffusion/pretrained/one_step/model.safetensors" in names
    return scripts / "unet-diffusion"


def run(command: Path, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_trains_its_pretrained_weights_in_an_empty_folder(installed: Path, tmp_path: Path):
    python = installed.with_name("python")
    location = run(
        python, "-c", "import unet_diffusion; print(unet_diffusion.__file__)", cwd=tmp_path
    )
    assert str(installed.parents[1]) in location
    frozen = ("init_from=pretrained:lesson", "optimizer.lr=1e-6", "run_dir=run")
    output = run(installed, "train", *TINY, *frozen, cwd=tmp_path)
    assert "new parameters: none" in output
    assert float(output.partition("MSE ")[2].split(",")[0]) < 0.05  # that of 1,000 steps
    assert "unet-diffusion sample run=run" in output


def test_images_of_the_pretrained_weights_are_saved_below_runs(script: Script, tmp_path: Path):
    status, output, errors = script("sample", "run=pretrained", "label=sneaker")
    assert (status, "Saved to runs/pretrained/one_step/samples" in output) == (0, True), errors
    (grid,) = (tmp_path / "runs" / "pretrained" / "one_step" / "samples").glob("*/grid.png")
    assert grid.stat().st_size > 1000


@pytest.mark.parametrize("arguments", [[], ["trian"], ["--help"]])
def test_command_without_a_known_name_lists_the_commands(arguments: list[str], monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unet-diffusion", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == (2 if arguments == ["trian"] else None)
    output, errors = capsys.readouterr()
    assert "one of train, sample, denoise, restore, evaluate, report" in output + errors


def test_every_script_is_a_command():
    scripts = {file.stem for file in (ROOT / "scripts").glob("*.py")}
    assert scripts - {"make_fashion_mnist_mini"} == set(cli.COMMANDS)


def test_own_configs_are_added_by_a_folder(script: Script, tmp_path: Path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nname: mine\ntrainer:\n  max_steps: 1\n"
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(text)
    arguments = ("--config-dir", "mine", "experiment=short", "model.channels=[8,16]")
    status, _, errors = script("train", *arguments, *TINY[1:], "callbacks.model_summary=null")
    assert status == 0, errors
    assert list((tmp_path / "runs" / "mine").glob("*/config.yaml"))
