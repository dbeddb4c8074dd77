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
        folder: where to; made when there is something to keep, but tried at once.
        board: folder of the TensorBoard run that it belongs to; None for none.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, board: Path | None) -> None:
        self.folder = folder
        self._board = board
        self._plots: dict[str, Figure] = {}
        self._pictures: dict[str, Tensor] = {}
        self._curves: dict[str, Mapping[float, float]] = {}
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise self._refusal(f"{above} is no folder that may be written to")

    def plot(self, name: str, figure: Figure) -> None:
        self._plots[name] = figure

    def picture(self, name: str, picture: Tensor) -> None:
        """A uint8 picture (3, H, W)."""
        self._pictures[name] = picture

    def curve(self, name: str, points: Mapping[float, float]) -> None:
        """For TensorBoard, which knows whole numbers alone as abscissae."""
        self._curves[name] = points

    def write(self, record: dict[str, Any]) -> None:
        """Writes everything, into TensorBoard last; says where.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, figure in self._plots.items():
                figure.savefig(self.folder / name, dpi=120)
            for name, picture in self._pictures.items():
                save_png(picture, self.folder / name)
            write_json(self.folder / "evaluation.json", record)
        except OSError as error:
            raise self._refusal(str(error)) from error
        print()
        for name in (*self._plots, *self._pictures, "evaluation.json"):
            print(f"{'Scores' if name.endswith('json') else 'Picture':<8}{os.path.relpath(self.folder / name)}")
        if self._board is not None and not os.access(self._board, os.W_OK):
            print(f"TensorBoard does not show it, as {self._board} may not be written to.")
        elif self._board is not None:
            self._write_board(self._board)

    def _write_board(self, folder: Path) -> None:
        with SummaryWriter(str(folder)) as board:
            for name in (*self._plots, *self._pictures):
                picture = np.asarray(Image.open(self.folder / name).convert("RGB"))
                board.add_image(f"evaluate/{Path(name).stem}", picture, dataformats="HWC")
            for name, points in self._curves.items():
                for at, value in points.items():
                    board.add_scalar(name, value, round(at))

    def _refusal(self, why: str) -> UserError:
        return UserError(f"{self.folder} cannot be written ({why}): name another folder by output=")
