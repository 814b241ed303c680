"""Architectures, one file each; `published/` reads the weights of the published code.

The names below are public, for authors of models (docs/api.md); `__init__.pyi` declares them for static
checkers.  An architecture's class is in the module of its name.
"""

from zoo.lazy import lazy_names as _lazy_names

_MODULES = {
    "Block": "zoo.models.blocks",
    "Decoder": "zoo.models.decoder",
    "DecoderOptions": "zoo.models.decoder",
    "FeedForward": "zoo.models.blocks",
    "Hybrid": "zoo.models.hybrid",
    "Stack": "zoo.models.blocks",
    "attention_options": "zoo.models.decoder",
    "init_weights": "zoo.models.blocks",
    "make_norm": "zoo.models.blocks",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = _lazy_names(__name__, _MODULES)
