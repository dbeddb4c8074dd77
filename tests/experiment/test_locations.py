from pathlib import Path

from unet_diffusion.experiment.locations import unique_name, with_cache


def test_only_missing_data_of_the_cache_have_a_new_root(tmp_path: Path):
    old = {"cache_dir": f"{tmp_path}/a/resized"}
    moved = with_cache(old | {"root": f"{tmp_path}/a/mnist"}, "/b")
    assert moved == {"root": "/b/mnist", "cache_dir": "/b/resized"}
    (tmp_path / "a" / "mnist").mkdir(parents=True)
    for root in (f"{tmp_path}/a/mnist", "/photos", None):
        assert with_cache(old | {"root": root}, "/b")["root"] == root


def test_unique_names_differ_and_are_valid_folder_names():
    names = {unique_name() for _ in range(20)}
    assert len(names) == 20
    assert all(name.replace("-", "").isalnum() for name in names)
