from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import composed
from PIL import Image

from unet_diffusion.data.datamodule import Batch, ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.images import to_uint8
from unet_diffusion.parts import build_datamodule


def made(*overrides: str) -> ImageDataModule:
    return build_datamodule(composed(*overrides))


def test_no_image_is_in_two_splits(mini: ImageDataModule):
    train, val, test = (mini.splits[name] for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (4500, 500, 1000)
    assert sorted([*train.rows, *val.rows]) == list(range(5000))
    assert train.cached is val.cached
    assert test.cached is not train.cached


def test_the_cut_depends_on_its_own_seed_alone(mini: ImageDataModule):
    assert np.array_equal(made("seed=5").splits["val"].rows, mini.splits["val"].rows)
    assert not np.array_equal(made("data.split_seed=1").splits["val"].rows, mini.splits["val"].rows)


def test_a_batch_is_the_images_and_their_labels(mini: ImageDataModule):
    x0, label, number = next(iter(mini.test_dataloader()))
    cached = mini.splits["test"].cached
    assert torch.equal(number, torch.arange(128))
    assert np.array_equal(to_uint8(x0).permute(0, 2, 3, 1).numpy(), cached.images[:128])
    assert x0.min() >= -1
    assert x0.max() <= 1
    assert np.array_equal(label.numpy(), cached.labels[:128])
    assert mini.class_names[label[0]] == "ankle-boot"


def test_an_epoch_shows_each_image_once_in_an_order_of_seed_and_epoch(mini: ImageDataModule):
    def order(loader, epoch: int) -> torch.Tensor:
        loader.sampler.set_epoch(epoch)
        return numbers(loader)

    first = order(mini.train_dataloader(), 0)
    assert len(first) == 4500 // 128 * 128 == len(first.unique())
    assert torch.equal(first, order(mini.train_dataloader(), 0))
    assert not torch.equal(first, order(mini.train_dataloader(), 1))
    assert not torch.equal(first, order(made("seed=1").train_dataloader(), 0))
    assert torch.equal(numbers(mini.test_dataloader()), torch.arange(1000))


def numbers(loader) -> torch.Tensor:
    return torch.cat([batch.number for batch in loader])


class OneOf:
    """Stands in for the Trainer of one of several processes."""

    def __init__(self, processes: int, rank: int) -> None:
        self.world_size, self.global_rank = processes, rank


def of_all(processes: int, *overrides: str) -> list[ImageDataModule]:
    modules = [made(*overrides) for _ in range(processes)]
    for rank, module in enumerate(modules):
        module.trainer = OneOf(processes, rank)
    return modules


def test_batches_of_several_processes_are_the_shares_of_one_large_batch():
    one, several = made("data.batch_size=60", "data.flip=true"), of_all(3, "data.batch_size=20", "data.flip=true")

    def epoch(module: ImageDataModule) -> list[Batch]:
        torch.manual_seed(0)  # all processes draw alike
        return list(module.train_dataloader())

    whole, shares = epoch(one), [epoch(module) for module in several]
    assert len(whole) == 4500 // 60
    for batch, *parts in zip(whole, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.number, batch.number[rank::3])
            assert torch.equal(part.x0, batch.x0[rank::3])  # mirrored likewise
    assert len(torch.cat([numbers(module.train_dataloader()) for module in several]).unique()) == 4500


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 50), (3, 37), (2, 1), (4, 200)])
def test_validation_and_test_show_each_image_once_over_all_processes(processes: int, batch_size: int):
    several = of_all(processes, f"data.batch_size={batch_size}", "data.val_fraction=0.0202")
    assert len(several[0].splits["val"]) == 101
    for loaders in ([m.val_dataloader() for m in several], [m.test_dataloader() for m in several]):
        assert len({len(loader) for loader in loaders}) == 1  # as many batches each, or one process would wait for ever
        seen = torch.cat([numbers(loader) for loader in loaders])
        assert torch.equal(seen.sort().values, torch.arange(len(seen)))


def test_processes_can_outnumber_the_images():
    (tenth,) = of_all(11, "data.val_fraction=0.002")[10:]
    assert len(tenth.splits["val"]) == 10
    (batch,) = tenth.val_dataloader()
    assert batch.x0.shape == (0, 1, 16, 16)


def test_flips_mirror_about_half_of_the_training_images_and_no_others():
    torch.manual_seed(0)
    flipping, plain = made("data.flip=true"), made()
    rows = range(1000)
    a, b = (module.splits["train"].__getitems__(rows).x0 for module in (flipping, plain))
    same = (a == b).flatten(1).all(1)
    mirrored = (a == b.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(flipping.splits["val"].__getitems__(rows[:500]).x0, plain.splits["val"].__getitems__(rows[:500]).x0)


def test_a_folder_without_a_test_split_gets_one_cut(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (6 * i, 0, 0)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    folder = made("data=image_folder", f"data.root={tmp_path}", "data.batch_size=4", "data.image_size=[8,12]")
    sizes = [len(folder.splits[name]) for name in ("train", "val", "test")]
    assert sizes == [32, 4, 4]
    assert sorted(np.concatenate([split.rows for split in folder.splits.values()])) == list(range(40))
    batch = next(iter(folder.train_dataloader()))
    assert batch.x0.shape == (4, 3, 8, 12)
    assert folder.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.batch_size=4501", r"data\.batch_size=4501 is larger than the 4500 training images"),
        ("data.batch_size=0", r"data\.batch_size=0 must be"),
        ("data.channels=2", r"data\.channels=2 must be 1"),
        ("data.val_fraction=0", r"data\.val_fraction=0 must lie between"),
        ("data.val_fraction=10", r"try data\.val_fraction=0\.1"),
        ("data.on_unreadable=maybe", r"data\.on_unreadable=maybe must be stop or skip"),
        ("data.flip=2", r"data\.flip=2 must be true or false"),
        ("data.split_seed=-1", r"data\.split_seed=-1 must be"),
    ],
)
def test_impossible_arguments_are_refused(override: str, said: str):
    with pytest.raises(UserError, match=said):
        made(override)
