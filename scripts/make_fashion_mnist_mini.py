"""Makes the excerpt of Fashion-MNIST in the package: `python scripts/make_fashion_mnist_mini.py FOLDER`.

FOLDER holds the four IDX files, gzipped, as Zalando Research publishes them (Debian and Ubuntu:
/usr/share/datasets/fashion-mnist). The same files give the same bytes.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from unet_diffusion.data.idx import read_idx

SPLITS = {"train": ("train", 5000), "test": ("t10k", 1000)}
TARGET = Path(__file__).parents[1] / "src" / "unet_diffusion" / "data" / "fashion_mnist_mini.npz"


def main(folder: Path) -> None:
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_LZMA) as archive:
        for split, (prefix, count) in SPLITS.items():
            for kind, dimensions in (("images", 3), ("labels", 1)):
                array = read_idx(folder / f"{prefix}-{kind}-idx{dimensions}-ubyte.gz")[:count]
                stream = io.BytesIO()
                np.save(stream, array)
                # a fixed date, so that the same images give the same file
                archive.writestr(zipfile.ZipInfo(f"{split}_{kind}.npy"), stream.getvalue(), zipfile.ZIP_LZMA)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
