from dassl.engine import TRAINER_REGISTRY

from .base.caches import StreamCacheMethod


@TRAINER_REGISTRY.register()
class TDA(StreamCacheMethod):
    """Two caches of test images that grow while they are tested (Karmanov et al., CVPR 2024)."""
