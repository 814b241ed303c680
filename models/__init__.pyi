"""The public names of zoo.models, as static checkers and editors see them."""

from zoo.models.blocks import Block as Block
from zoo.models.blocks import FeedForward as FeedForward
from zoo.models.blocks import Stack as Stack
from zoo.models.blocks import init_weights as init_weights
from zoo.models.blocks import make_norm as make_norm
from zoo.models.decoder import Decoder as Decoder
from zoo.models.decoder import DecoderOptions as DecoderOptions
from zoo.models.decoder import attention_options as attention_options
from zoo.models.hybrid import Hybrid as Hybrid
