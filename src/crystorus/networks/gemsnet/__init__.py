"""GemsNet, the network of the `paper` preset."""

from crystorus.networks.gemsnet.network import GemsNetDenoiser

__all__ = ["GemsNetDenoiser"]
