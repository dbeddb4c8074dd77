from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import composed
from PIL import Image
from torch.utils.data import DataLoader

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.experiment.build import build_datamodule
from unet_diffusion.images import to_uint8


def build(*overrides: str) -> ImageDataModule:
    return build_datamodule(composed(*overrides))


def with_trainer(
    *overrides: str, world_size: int = 1, rank: int = 0, accumulate: int = 1, batch_idx: int = -1
) -> ImageDataModule:
    """A data module attached to a stand-in for the Trainer of one of several processes."""
    module = build(*overrides)
    module.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        num_training_batches=len(module.splits["train"]) // (world_size * module.batch_size),
        fit_loop=SimpleNamespace(batch_idx=batch_idx),
    )
    return module


def indices(loader: DataLoader, epoch: int = 0) -> torch.Tensor:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return torch.cat([batch.indices for batch in loader])


def test_splits_are_disjoint_and_depend_on_split_seed_alone(mini: ImageDataModule):
    train, val, test = (mini.splits[name] for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (4500, 500, 1000)
    assert sorted([*train.rows, *val.rows]) == list(range(5000))
    assert train.cached is val.cached
    assert test.cached is not train.cached
    assert np.array_equal(build("seed=5").splits["val"].rows, val.rows)
    assert not np.array_equal(build("data.split_seed=1").splits["val"].rows, val.rows)


def test_batch_has_the_images_with_their_labels_also_in_device_memory(mini: ImageDataModule):
    x0, label, index = next(iter(mini.test_dataloader()))
    cached = mini.splits["test"].cached
    assert torch.equal(index, torch.arange(128))
    assert np.array_equal(to_uint8(x0).permute(0, 2, 3, 1).numpy(), cached.images[:128])
    assert np.array_equal(label.numpy(), cached.labels[:128])
    assert mini.class_names[label[0]] == "ankle-boot"
    expected = mini.splits["train"].batch([5, 3, 4000])
    on_device = build().splits["train"]
    on_device.to_device(torch.device("cpu"))
    for a, b in zip(on_device.batch([5, 3, 4000]), expected, strict=True):
        assert torch.equal(a, b)


def test_training_order_depends_on_seed_and_epoch(mini: ImageDataModule):
    state = torch.get_rng_state()
    first = indices(mini.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used
    assert len(first) == 4500 // 128 * 128 == len(first.unique())
    assert torch.equal(first, indices(mini.train_dataloader()))
    assert not torch.equal(first, indices(mini.train_dataloader(), epoch=1))
    assert not torch.equal(first, indices(build("seed=1").train_dataloader()))
    assert torch.equal(indices(mini.test_dataloader()), torch.arange(1000))


@pytest.mark.parametrize(("world_size", "batch_size"), [(3, 37), (4, 200)])
def test_every_image_once_over_all_processes(world_size: int, batch_size: int):
    overrides = (f"data.batch_size={batch_size}", "data.val_fraction=0.0202")
    ranks = range(world_size)
    modules = [with_trainer(*overrides, world_size=world_size, rank=rank) for rank in ranks]
    assert len(modules[0].splits["val"]) == 101
    for loaders in ([m.val_dataloader() for m in modules], [m.test_dataloader() for m in modules]):
        assert len({len(loader) for loader in loaders}) == 1  # or one process waits for ever
        seen = torch.cat([indices(loader) for loader in loaders])
        assert torch.equal(seen.sort().values, torch.arange(len(seen)))
    training = torch.cat([indices(m.train_dataloader()) for m in modules])
    per_process = 4899 // world_size // batch_size * batch_size
    assert len(training) == len(training.unique()) == per_process * world_size
    last = with_trainer("data.val_fraction=0.002", world_size=11, rank=10)
    (batch,) = last.val_dataloader()  # there are 10 images
    assert batch.x0.shape == (0, 1, 16, 16)


def test_remainder_of_an_epoch_below_an_optimizer_step_is_dropped():
    module = with_trainer("data.batch_size=64", accumulate=8)
    assert len(module.train_dataloader()) == 4500 // (64 * 8) * 8
    with pytest.raises(ValueError, match=r"data\.batch_size=64: a step needs 5120 images, there"):
        with_trainer("data.batch_size=64", world_size=10, accumulate=8).train_dataloader()


def test_resumed_epoch_continues_at_the_saved_batch():
    whole = indices(with_trainer().train_dataloader(), epoch=3)
    state = with_trainer(batch_idx=3).state_dict()
    assert state == {"batches_done": 4}
    assert with_trainer(batch_idx=34).state_dict() == {"batches_done": 0}  # the last of 35
    resumed = with_trainer()
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    assert torch.equal(indices(loader, epoch=3), whole[4 * 128 :])
    assert torch.equal(indices(loader, epoch=3), whole)  # later epochs are complete


def test_flip_mirrors_half_of_the_training_images_only():
    def first_images(split: str, epoch: int, *overrides: str) -> torch.Tensor:
        module = build(*overrides)
        indices(module.train_dataloader(), epoch)
        return module.splits[split].batch(range(500)).x0

    def mirrored(epoch: int, *overrides: str) -> torch.Tensor:
        a, b = first_images("train", epoch, "data.flip=true", *overrides), first_images("train", 0)
        equal, mirrored = ((a == each).flatten(1).all(1) for each in (b, b.flip(-1)))
        assert (equal | mirrored).all()
        return mirrored

    assert 0.4 < mirrored(0).float().mean() < 0.6
    assert torch.equal(mirrored(3), mirrored(3))  # a function of seed and epoch
    assert not torch.equal(mirrored(3), mirrored(4))
    assert not torch.equal(mirrored(3), mirrored(3, "seed=1"))
    assert torch.equal(first_images("val", 0, "data.flip=true"), first_images("val", 0))


def test_folder_without_test_split_gets_one(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (6 * i, 0, 0)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    overrides = (f"data.root={tmp_path}", "data.batch_size=4", "data.image_size=[8,12]")
    module = build("data=image_folder", *overrides)
    assert all(len(module.splits[name]) >= 1 for name in ("val", "test"))
    rows = np.concatenate([split.rows for split in module.splits.values()])
    assert sorted(rows) == list(range(40))
    assert next(iter(module.train_dataloader())).x0.shape == (4, 3, 8, 12)
    assert module.class_names == ("0", "1")


def test_added_renamed_and_removed_files_move_no_other_image(tmp_path: Path):
    def splits() -> dict[str, set[int]]:
        module = build("data=image_folder", f"data.root={tmp_path}", "data.batch_size=4")
        found = module.splits.items()
        return {name: set(split.cached.keys[split.rows].tolist()) for name, split in found}

    def save(i: int, name: str) -> None:
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)

    for i in range(60):
        save(i, f"{i:02d}.png")
    before = splits()
    save(60, "0.png")
    (tmp_path / "01.png").rename(tmp_path / "zz.png")
    (tmp_path / "02.png").unlink()
    after = splits()
    for name, others in (("train", ("val", "test")), ("val", ("train", "test"))):
        assert not any(before[name] & after[other] for other in others)
    assert len(set().union(*before.values()) ^ set().union(*after.values())) == 2


INVALID = (
    "batch_size=0 channels=2 image_size=0 image_size=[16] image_size=4096 val_fraction=0.0 "
    "test_fraction=1 flip=2 split_seed=-1 seed=-1 batch_size=4501"
)


def test_invalid_arguments_raise():
    for override in INVALID.split():
        with pytest.raises(ValueError, match=f"^data.{override.partition('=')[0]}=.*: "):
            build(f"data.{override}")
