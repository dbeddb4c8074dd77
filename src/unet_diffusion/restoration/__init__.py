"""Restoration: measured images y = A x + noise, and algorithms that find x with a denoiser."""

from unet_diffusion.restoration.algorithms import dpir as dpir
from unet_diffusion.restoration.algorithms import pnp_flow as pnp_flow
from unet_diffusion.restoration.operators import Blur as Blur
from unet_diffusion.restoration.operators import Downsample as Downsample
from unet_diffusion.restoration.operators import Mask as Mask
from unet_diffusion.restoration.operators import Operator as Operator
from unet_diffusion.restoration.operators import bicubic_kernel as bicubic_kernel
from unet_diffusion.restoration.operators import gaussian_kernel as gaussian_kernel
