from pathlib import Path

import pytest
import torch
from helpers import composed
from PIL import Image

from unet_diffusion.data.clusters import cluster_labels
from unet_diffusion.experiment.build import build_datamodule


@pytest.mark.parametrize("num_clusters", [7, 64])
def test_clusters_have_equally_many_training_points(num_clusters: int):
    points = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    labels = cluster_labels(points, torch.arange(1000) < 800, num_clusters)
    counts = torch.bincount(labels[:800], minlength=num_clusters)
    assert len(counts) == num_clusters
    assert counts.max() - counts.min() <= 3
    alone = cluster_labels(points[:800], torch.ones(800, dtype=torch.bool), num_clusters)
    assert torch.equal(labels[:800], alone)  # the other points change nothing


def test_separate_groups_are_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [0.0, 9.0], [30.0, 0.0], [30.0, 9.0]])
    points = torch.cat([each + torch.randn(50, 2, generator=generator) for each in centers])
    labels = cluster_labels(points, torch.ones(200, dtype=torch.bool), 4).reshape(4, 50)
    assert (labels == labels[:, :1]).all()
    assert sorted(labels[:, 0].tolist()) == [0, 1, 2, 3]


def test_clusters_replace_the_classes_of_all_splits():
    datamodule = build_datamodule(composed("data.num_clusters=20"))
    assert datamodule.class_names == tuple(f"cluster-{i}" for i in range(20))
    for split in datamodule.splits.values():
        labels = split.batch(range(len(split))).label
        points = split.batch(range(len(split))).x0.flatten(1)
        within = torch.stack([points[labels == i].var(0).sum() for i in range(20)]).mean()
        assert within < 0.6 * points.var(0).sum()
    with pytest.raises(ValueError, match=r"data\.num_clusters=451: at most 450, a tenth"):
        build_datamodule(composed("data.num_clusters=451"))


def test_identical_images_are_divided_as_well(tmp_path: Path):
    for i in range(100):
        Image.new("L", (8, 8), max(0, i - 60)).save(tmp_path / f"{i}.png")  # 61 are equal
    source = ("data=image_folder", f"data.root={tmp_path}", "data.image_size=8", "data.channels=1")
    datamodule = build_datamodule(composed(*source, "data.batch_size=8", "data.num_clusters=4"))
    counts = torch.bincount(datamodule.splits["train"].labels, minlength=4)
    assert counts.max() - counts.min() <= 2
