"""Writes the excerpt of Fashion-MNIST in the package: `make_fashion_mnist_mini.py FOLDER`.

FOLDER holds the four IDX files, gzipped, as Zalando Research publishes them (Debian and Ubuntu:
/usr/share/datasets/fashion-mnist). The same files give the same bytes.
"""

import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from unet_diffusion.data.sources import SplitName, TorchvisionSource

SPLITS: dict[SplitName, int] = {"train": 5000, "test": 1000}
TARGET = Path(__file__).parents[1] / "src" / "unet_diffusion" / "data" / "fashion_mnist_mini.npz"


def main(folder: str) -> None:
    source = TorchvisionSource("FashionMNIST", folder)
    with tempfile.TemporaryDirectory() as root, zipfile.ZipFile(TARGET, "w") as archive:
        for split, count in SPLITS.items():
            raw = source.load(split, Path(root))
            arrays = {"images": np.asarray(raw.images), "labels": raw.labels.astype(np.uint8)}
            for kind, array in arrays.items():
                stream = io.BytesIO()
                np.save(stream, array[:count])
                # A fixed date: the same images give the same file.
                entry = zipfile.ZipInfo(f"{split}_{kind}.npy")
                archive.writestr(entry, stream.getvalue(), zipfile.ZIP_LZMA)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
