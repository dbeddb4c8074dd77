"""Networks, called as `net(xt, t, label)`. They are independent of schedules and samplers."""

from unet_diffusion.models.layers import Network as Network
from unet_diffusion.models.lesson_unet import LessonUNet as LessonUNet
from unet_diffusion.models.unet import UNet as UNet
