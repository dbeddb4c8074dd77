import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def test_runs_side_by_side(short_run: Path, generator: Path, script: Callable, tmp_path: Path):
    for name, run in (("a", short_run), ("b", generator)):
        shutil.copytree(run, tmp_path / "runs" / name)
    status, out, _ = script("compare", f"runs={tmp_path / 'runs'}", "num_images=200", "output=both.png")
    assert status == 0
    assert out.index("06_classes") < out.index("lesson")  # in the order of their names
    assert out.count("200 images of run") == 2
    picture = np.asarray(Image.open(tmp_path / "both.png").convert("L")).astype(float)
    left, right = np.array_split(picture[50:-80], 2, axis=1)
    assert min(left.std(), right.std()) > 25  # images, not only words on white


def test_a_folder_without_runs_is_refused(script: Callable, tmp_path: Path):
    status, _, err = script("compare")
    assert status == 2
    assert "runs= is needed" in err
    for where in (tmp_path, tmp_path / "nowhere"):
        status, _, err = script("compare", f"runs={where}")
        assert status == 2
        assert "holds no runs" in err
