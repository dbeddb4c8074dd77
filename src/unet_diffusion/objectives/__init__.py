"""Objectives: the loss of a training step."""

from unet_diffusion.objectives.average_velocity import (
    AverageVelocityObjective as AverageVelocityObjective,
)
from unet_diffusion.objectives.neighbor2neighbor import (
    Neighbor2NeighborObjective as Neighbor2NeighborObjective,
)
from unet_diffusion.objectives.objective import DenoisingObjective as DenoisingObjective
from unet_diffusion.objectives.objective import NoisyBatch as NoisyBatch
from unet_diffusion.objectives.objective import Objective as Objective
from unet_diffusion.objectives.objective import TrainingLoss as TrainingLoss
