"""How a finished run of a protocol is evaluated on its task's test split."""

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.runs import build

SAMPLES = {"1x": 1_024, "4x": 128, "16x": 64}
"""At most, by the multiple of the training length."""
TEXT_BYTES = 1_000_000
"""Of whole documents."""


def evaluations(cfg: DictConfig) -> list[list[str]]:
    """Arguments of `zoo evaluate`, without run=, one list a call; lengths that the task can't have are left
    out."""
    task = build.task(cfg)
    if task.metric == "bits_per_byte":
        return [[f"tokens={TEXT_BYTES}"]]
    samples = int(cfg.task.get("eval_samples", SAMPLES["1x"]))
    if "length" not in task.axes or cfg.task.get("length") is None:
        return [[f"prompts={min(samples, SAMPLES['1x'])}"]]
    calls = []
    for multiple, most in SAMPLES.items():
        try:
            task.at(length=float(int(multiple[:-1]) * cfg.task.length))
        except UserError:
            continue
        calls.append([f"lengths={multiple}", "depths=none", f"prompts={min(samples, most)}"])
    return calls
