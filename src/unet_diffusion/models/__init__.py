"""Networks, called as `net(xt, t, label)`."""

from unet_diffusion.models.lesson_unet import LessonUNet

__all__ = ["LessonUNet"]
