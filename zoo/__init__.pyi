"""The public names of zoo, as static checkers and editors see them."""

from zoo.contract import laws as laws
from zoo.generation import generate as generate
from zoo.memory.mixer import Mixer as Mixer
from zoo.module import Batch as Batch
from zoo.module import SequenceModule as SequenceModule
from zoo.state import State as State
from zoo.train.api.models import build_model as build_model
from zoo.train.api.models import list_models as list_models
from zoo.train.api.runs import evaluate_run as evaluate_run
from zoo.train.api.runs import load_run as load_run
from zoo.train.api.runs import train_run as train_run

__version__: str
