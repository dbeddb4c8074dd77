"""What an evaluation leaves behind: a record, plots, pictures, and the same in the run's TensorBoard."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from unet_diffusion.errors import UserError
from unet_diffusion.images import save_png
from unet_diffusion.runs import write_json


class Pages:
    """Collects what is to be kept, and writes it at the end, so that an evaluation that fails leaves nothing.

    Args:
        folder: where to; made at once, to find out early whether it can be.
        board: folder of the TensorBoard run that it belongs to; None for none.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, board: Path | None) -> None:
        self.folder = folder
        self._board = board
        self._plots: dict[str, Figure] = {}
        self._pictures: dict[str, Tensor] = {}
        self._curves: dict[str, Mapping[float, float]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("no permission to write")
        except OSError as error:
            raise self._refusal(error) from error

    def plot(self, name: str, figure: Figure) -> None:
        self._plots[name] = figure

    def picture(self, name: str, picture: Tensor) -> None:
        """A uint8 picture (3, H, W)."""
        self._pictures[name] = picture

    def curve(self, name: str, points: Mapping[float, float]) -> None:
        """For TensorBoard, which knows whole numbers alone as abscissae."""
        self._curves[name] = points

    def write(self, record: dict[str, Any]) -> None:
        """Writes everything, `evaluation.json` last; says where.

        Raises:
            UserError: it cannot be written.
        """
        try:
            for name, figure in self._plots.items():
                figure.savefig(self.folder / name, dpi=120)
            for name, picture in self._pictures.items():
                save_png(picture, self.folder / name)
            if self._board is not None:
                self._write_board(self._board)
            write_json(self.folder / "evaluation.json", record)
        except OSError as error:
            raise self._refusal(error) from error
        print()
        for name in (*self._plots, *self._pictures, "evaluation.json"):
            print(f"{'Scores' if name.endswith('json') else 'Picture':<8}{os.path.relpath(self.folder / name)}")

    def _write_board(self, folder: Path) -> None:
        with SummaryWriter(str(folder)) as board:
            for name in (*self._plots, *self._pictures):
                picture = np.asarray(Image.open(self.folder / name).convert("RGB"))
                board.add_image(f"evaluate/{Path(name).stem}", picture, dataformats="HWC")
            for name, points in self._curves.items():
                for at, value in points.items():
                    board.add_scalar(name, value, round(at))

    def _refusal(self, error: OSError) -> UserError:
        return UserError(f"{self.folder} cannot be written ({error}): name another folder by output=")
