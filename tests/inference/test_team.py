import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script
from torch.distributed import HashStore

from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, image_noise
from unet_diffusion.inference.draw import draw
from unet_diffusion.inference.team import Team
from unet_diffusion.samplers import DDIM


class Tenth(torch.nn.Module):
    def forward(self, xt, t, label):
        return xt / 10 + label[:, None, None, None]


DENOISER = Denoiser(Tenth(), LinearSchedule(), X0Prediction())


@pytest.mark.parametrize(("size", "count"), [(2, 7), (3, 7), (3, 2)])
def test_a_team_draws_what_one_process_draws(size: int, count: int):
    eps, label = image_noise(3, range(count), (1, 4, 4)), torch.arange(count)
    store = HashStore()

    def of(team: Team | None):
        return [
            draw(DENOISER, DDIM(3, eta=1), eps, label, seed=seed, keep=True, batch_size=2, first=5, team=team)
            for seed in (1, 2)
        ]

    with ThreadPoolExecutor(size) as pool:
        everyones = list(pool.map(of, [Team(size, rank, store) for rank in range(size)]))
    for alone, *together in zip(of(None), *everyones, strict=True):
        for drawn in together:
            torch.testing.assert_close(drawn.images, alone.images)
            torch.testing.assert_close(drawn.trajectory, alone.trajectory)
            assert drawn.nfe == alone.nfe


def test_shares_are_even_and_leave_nothing_out():
    for size, count in ((1, 5), (4, 10), (4, 2)):
        shares = [Team(size, rank).share(count) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_two_processes_sample_what_one_does(generator: Path, tmp_path: Path, script: Callable[..., tuple[int, str, str]]):
    typed = ("sample", f"run={generator}", "num_images=21", "sampler=ancestral", "sampler.steps=2")
    said = run_script(*typed, "output=two", cwd=tmp_path, torchrun=2)
    assert said.count("Drew 21 images") == 1
    assert script(*typed, "output=one")[0] == 0
    with np.load(tmp_path / "one" / "samples.npz") as one, np.load(tmp_path / "two" / "samples.npz") as two:
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1  # a last bit can tip a rounding
        assert np.array_equal(one["arr_1"], two["arr_1"])


@pytest.mark.slow
def test_two_processes_score_what_one_does(generator: Path, tmp_path: Path, script: Callable[..., tuple[int, str, str]]):
    typed = ("evaluate", f"run={generator}", "num_images=200", "sampler=one_shot", "levels=[0.5]")
    run_script(*typed, "output=two", cwd=tmp_path, torchrun=2)
    assert script(*typed, "output=one")[0] == 0
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert two["levels"] == one["levels"]
    for name, figure in one["generation"]["closeness"].items():
        assert two["generation"]["closeness"][name] == pytest.approx(figure, rel=1e-3, abs=1e-3), name
    for name in ("images", "nfe", "seed", "sampler", "class_accuracy"):
        assert two["generation"][name] == one["generation"][name]
