import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import composed
from omegaconf import OmegaConf
from PIL import Image, ImageSequence

from unet_diffusion.diffusion import image_noise
from unet_diffusion.images import to_uint8
from unet_diffusion.inference.asked import run_sampler
from unet_diffusion.inference.draw import draw
from unet_diffusion.inference.sample import sample
from unet_diffusion.runs import Run
from unet_diffusion.samplers import DDIM, Heun, OneShot

CPU = torch.device("cpu")


@pytest.fixture
def sampled(tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray]]:
    """Draws with these arguments; the folder and the images."""

    def run(*typed: str) -> tuple[Path, np.ndarray]:
        folder = sample(composed(*typed, f"output={tmp_path / 'out'}", config="sample"))
        with np.load(folder / "samples.npz") as arrays:
            return folder, arrays["arr_0"].astype(int)

    return run


def test_npz_and_grid_hold_the_same_images(short_run: Path, sampled: Callable):
    folder, images = sampled(f"run={short_run}", "num_images=10", "columns=2", "seed=5", "++sampler.noise_scale=0.5")
    assert images.shape == (10, 16, 16, 1)
    run = Run.open(short_run)
    eps = image_noise(5, range(10), run.image_shape)
    expected = draw(run.load_denoiser("best", CPU), OneShot(0.5), eps).images
    assert np.abs(images - to_uint8(expected).permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    picture = np.asarray(Image.open(folder / "grid.png"))
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)  # two rows of two; the other six images are only in the .npz
    assert np.array_equal(picture[2:66:4, 68:132:4, 0], images[1, :, :, 0])


def test_a_samplers_keys_come_from_the_run_unless_given(short_run: Path):
    run = Run.open(short_run)
    run.config.sampler.noise_scale = 0.7
    assert run_sampler(run, OmegaConf.create({})).noise_scale == 0.7
    assert run_sampler(run, OmegaConf.create({"noise_scale": 2})).noise_scale == 2.0
    other = OmegaConf.create({"_target_": "unet_diffusion.samplers.one_shot.OneShot"})
    assert run_sampler(run, other).noise_scale == 1.0


@pytest.mark.parametrize("which", ["best", "last"])
def test_either_checkpoint_can_be_asked(short_run: Path, sampled: Callable, which: str):
    assert sampled(f"run={short_run}", "num_images=1", f"checkpoint={which}")[1].shape == (1, 16, 16, 1)


def test_another_sampler_draws_from_the_same_run(generator: Path, sampled: Callable):
    _, images = sampled(f"run={generator}", "num_images=3", "sampler=heun", "++sampler.steps=4", "label=none")
    run = Run.open(generator)
    denoiser = run.load_denoiser("best", CPU)
    eps = image_noise(0, range(3), run.image_shape)
    expected = to_uint8(draw(denoiser, Heun(4, clipping="static"), eps, torch.full((3,), -1)).images)
    assert np.abs(images - expected.permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1


def test_classes_by_name_with_guidance(generator: Path, sampled: Callable, capsys: pytest.CaptureFixture[str]):
    drawn = {
        typed: sampled(f"run={generator}", "num_images=4", *typed.split())[1]
        for typed in ("label=sneaker", "label=7", "label=bag", "label=sneaker guidance=2")
    }
    assert np.array_equal(drawn["label=sneaker"], drawn["label=7"])
    assert (drawn["label=bag"] != drawn["label=7"]).any()
    assert (drawn["label=sneaker guidance=2"] != drawn["label=7"]).any()
    said = capsys.readouterr().out
    assert "4 network evaluations each" in said  # four steps
    assert "8 network evaluations each" in said  # guided: twice as many
    assert "guidance 2." in said


def test_the_grid_has_a_row_a_class(generator: Path, sampled: Callable):
    folder, images = sampled(f"run={generator}", "num_images=25", "columns=3")
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [i % 10 for i in range(25)]
    picture = np.asarray(Image.open(folder / "grid.png"))[..., 0]
    assert picture.shape == (10 * 66 + 2, 2 * 66 + 2)  # 25 images: two of every class
    for row, column, image in ((0, 0, 0), (0, 1, 10), (4, 1, 14), (9, 0, 9)):
        tile = picture[66 * row + 2 : 66 * row + 66 : 4, 66 * column + 2 : 66 * column + 66 : 4]
        assert np.array_equal(tile, images[image, :, :, 0])


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_images_forming(generator: Path, sampled: Callable, ending: str):
    folder, images = sampled(f"run={generator}", "num_images=20", "columns=2", "trajectory=true", f"animation={ending}")
    strip = np.asarray(Image.open(folder / "trajectory.png"))[..., 0]
    assert strip.shape == (8 * 66 + 2, 5 * 66 + 2)  # a row an image (the first eight), a column a level of the four steps
    assert np.array_equal(strip[2:66:4, 4 * 66 + 2 : 5 * 66 : 4], images[0, :, :, 0])
    first = strip[2:66:4, 2:66:4].astype(int)
    noise = to_uint8(image_noise(0, range(1), (1, 16, 16)))[0, 0].numpy().astype(int)
    assert np.abs(first - noise).max() <= 1
    frames = list(ImageSequence.Iterator(Image.open(folder / f"forming.{ending}")))
    assert len(frames) == 5
    last, grid = (np.asarray(frame.convert("L")).astype(int) for frame in (frames[-1], Image.open(folder / "grid.png")))
    assert last.shape == grid.shape
    assert np.abs(last - grid).mean() < 4  # both formats lose a little


def test_between_two_seeds(generator: Path, sampled: Callable):
    _, between = sampled(f"run={generator}", "num_images=2", "to_seed=1", "columns=4", "label=none")
    _, start = sampled(f"run={generator}", "num_images=2", "label=none")
    _, end = sampled(f"run={generator}", "num_images=2", "seed=1", "label=none")
    assert between.shape[0] == 8
    for row in (0, 1):
        assert np.abs(between[4 * row] - start[row]).max() <= 1
        assert np.abs(between[4 * row + 3] - end[row]).max() <= 1
        assert (between[4 * row + 1] != between[4 * row + 2]).any()


def test_starting_from_a_photo_keeps_its_size_and_at_low_strength_its_content(
    generator: Path, sampled: Callable, tmp_path: Path
):
    photo = np.tile(np.linspace(0, 255, 21, dtype=np.uint8), (18, 1))
    Image.fromarray(photo).convert("RGB").save(tmp_path / "photo.png")
    off = {}
    for strength in (0.02, 1):
        typed = (f"run={generator}", "num_images=2", f"start={tmp_path / 'photo.png'}", f"strength={strength}", "label=none")
        images = sampled(*typed)[1]
        assert images.shape == (2, 18, 21, 1)
        off[strength] = np.abs(images[..., 0] - photo).mean()
    assert off[0.02] < 15
    assert off[1] > 2 * off[0.02]


def test_a_network_that_is_tied_to_its_size_gets_the_photo_in_it(short_run: Path, sampled: Callable, tmp_path: Path):
    Image.new("L", (30, 20), 128).save(tmp_path / "photo.png")
    assert sampled(f"run={short_run}", "num_images=1", f"start={tmp_path / 'photo.png'}")[1].shape == (1, 16, 16, 1)


def test_different_wishes_go_to_different_folders(generator: Path):
    wishes = (
        (),
        ("seed=1",),
        ("label=bag",),
        ("guidance=1",),
        ("++sampler.steps=2",),
        ("sampler=heun", "++sampler.steps=2"),
        ("weights=raw",),
        ("checkpoint=last",),
    )
    folders = {sample(composed(f"run={generator}", "num_images=1", *wish, config="sample")) for wish in wishes}
    assert len(folders) == len(wishes)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("label=shoe", "label=shoe is no class of this run: give a number from 0 to 9, one of t-shirt, trouser"),
        ("label=10", "label=10 is no class of this run"),
        ("guidance=-1", "guidance=-1 must be 0 or more"),
        ("sampler.steps=0", "sampler.steps=0 must be a whole number of 1 or more"),
        ("sampler.stepz=3", "sampler: .* it takes steps, eta, grid, clipping"),
        ("sampler.clipping=soft", "sampler.clipping=soft must be one of none, static, dynamic"),
        ("strength=0.5", "strength=0.5 needs an image to start from"),
        ("start=nowhere.png", "start=nowhere.png is no file"),
        ("start=PHOTO strength=0", "strength=0 would give the image back"),
        ("start=PHOTO strength=1.5", "strength=1.5 must be between 0 and 1"),
        ("start=PHOTO strength=60", "try strength=0.6"),
        ("weights=best", "weights=best must be ema, raw or auto"),
        ("animation=mp4", "animation=mp4 must be gif, webp or null"),
        ("to_seed=-1", "to_seed=-1 must be a whole number of 0 or more"),
        ("to_seed=1 columns=1", "columns=1 must be 2 or more"),
    ],
)
def test_bad_input_is_one_sentence(generator: Path, script: Callable, tmp_path: Path, typed: str, said: str):
    Image.new("L", (16, 16)).save(tmp_path / "photo.png")
    status, _, err = script("sample", f"run={generator}", *typed.replace("PHOTO", str(tmp_path / "photo.png")).split())
    assert status == 2
    (line,) = err.strip().splitlines()
    assert re.search(said, line), line


def test_a_run_without_classes_says_so(short_run: Path, script: Callable):
    for typed, said in (
        ("label=3", "label=3 cannot be drawn, as this run's network knows no classes"),
        ("guidance=1", "guidance=1 needs a network that knows classes"),
    ):
        status, _, err = script("sample", f"run={short_run}", typed)
        assert status == 2
        assert said in err


def test_a_run_that_never_saw_an_image_without_a_class_cannot_be_guided(generator: Path, script: Callable, tmp_path: Path):
    copy = shutil.copytree(generator, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("label_dropout: 0.1", "label_dropout: 0"))
    assert script("sample", f"run={copy}", "num_images=1")[0] == 0
    status, _, err = script("sample", f"run={copy}", "guidance=1")
    assert status == 2
    assert "guidance=1 needs the null class" in err


def test_a_photo_that_may_not_fit_into_memory_is_refused(generator: Path, script: Callable, tmp_path: Path):
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    status, _, err = script("sample", f"run={generator}", f"start={tmp_path / 'large.png'}")
    assert status == 2
    assert "has 2000 x 1000 pixels, and at most 1,048,576 in all are taken" in err


def test_the_samplers_of_the_configs_are_those_they_say():
    built = {name: composed(f"sampler={name}").sampler for name in ("ancestral", "ddim", "heun", "dpmpp", "one_shot")}
    assert (built["ancestral"]._target_, built["ancestral"].eta) == (built["ddim"]._target_, 1.0)
    assert isinstance(DDIM(**{k: v for k, v in built["ancestral"].items() if k != "_target_"}), DDIM)
