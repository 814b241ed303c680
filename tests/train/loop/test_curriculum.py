"""The curriculum: when its stages end, what counts as collapsed, and that a killed run resumes exactly."""

import re
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from tests.train.loop.test_resume import check_same
from zoo.errors import UserError
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.train.data.curriculum import Stage
from zoo.train.data.module import DataModule
from zoo.train.loop.curriculum import Curriculum
from zoo.train.loop.metrics import Metrics
from zoo.train.tasks.base import Dataset, Task
from zoo.train.tasks.recall import Recall

TARGETS = 10  # of every step
LOST = [(0.1, 0.0)]  # a step at chance


class OneInTen(Recall):
    """A task whose chance is one in ten; its least possible loss is known to those who ask."""

    def baselines(self, dataset: Dataset) -> dict[str, float]:
        return {"chance": 0.1}


class OneInTenWithBayes(OneInTen):
    uninformed_nats = 2.0


def curriculum(task: Task = OneInTen(length=16), **keys: Any) -> Curriculum:  # noqa: B008
    """Of three stages, in 60 steps."""
    loader = SimpleNamespace(stage=0)
    loader.advance = lambda: setattr(loader, "stage", loader.stage + 1)
    stages = [Stage(label, task, 1, 1) for label in (1, 2, 4)]
    data = Mock(spec=DataModule, task=task, stages=stages, curriculum=loader)
    defaults = {"every": 3, "accuracy": 0.9, "nats": 0.1, "patience": 100, "shares": None}
    cfg = OmegaConf.create({"steps": 60, "data": {"curriculum": defaults | keys}})
    return Curriculum(cfg, data, Mock(spec=Metrics, further_train={}, log_every=5))


BAYES = OneInTenWithBayes(length=16)


def trainer_at(step: int) -> Any:
    return Mock(spec=L.Trainer, global_step=step, world_size=1, max_steps=10**6)


def feed(rule: Curriculum, steps: list[tuple[float, float]]) -> list[int]:
    """Steps with these shares of hits, and nats per target above the least possible, 1; returns the steps at
    which stages ended."""
    model = Mock(spec=SequenceModule)
    is_target = torch.arange(TARGETS + 1)[None] < TARGETS
    for hits, nats in steps:
        bayes_nats = None if rule.data.task.uninformed_nats is None else is_target.float()
        targets = torch.where(is_target, 0, IGNORE)
        batch = Batch(targets, targets, torch.ones(1, dtype=torch.bool), bayes_nats=bayes_nats)
        outputs = {
            "hits": torch.arange(TARGETS + 1)[None] < round(hits * TARGETS),
            "nats": torch.where(is_target, 1 + nats, 0.0),
        }
        stages = len(rule.stages)
        model.train_state = "of the last step"
        rule.on_train_batch_end(trainer_at(rule._step + 1), model, outputs, batch, 0)
        assert (model.train_state is None) == (len(rule.stages) > stages), "a stage has other rows"
    assert rule.data.curriculum is not None
    assert rule.data.curriculum.stage == len(rule.stages) - 1
    return [step for _, step in rule.stages[1:]]


def test_the_gate_opens_by_the_mean_accuracy_since_it_measured_last() -> None:
    assert feed(curriculum(), [(0.9, 0)] * 6) == [3, 6]
    assert feed(curriculum(), [(0.7, 0), (1.0, 0), (1.0, 0)]) == [3]
    assert feed(curriculum(), [(0.6, 0), (1.0, 0), (1.0, 0)]) == []
    # of steps 3 to 5 all are right, but the gate measures 1 to 3 and 4 to 6
    assert feed(curriculum(), [(0, 0), (0, 0), (1, 0), (1, 0), (1, 0), (0.6, 0)]) == []
    assert feed(curriculum(), [(0, 0), (1, 0), (0.9, 0), (0.9, 0), (0.9, 0), (0.9, 0)]) == [6]


def test_where_the_least_loss_is_known_each_step_has_to_be_near_it() -> None:
    assert feed(curriculum(BAYES), [(0, 0.09)] * 6) == [3, 6]
    assert feed(curriculum(BAYES), [(1, 0.05), (1, 0.12), (1, 0.05)]) == []
    assert feed(curriculum(BAYES, nats=0.2), [(0, 0.05), (0, 0.12), (0, 0.05)]) == [3]


def test_a_stage_ends_after_its_patience() -> None:
    rule = curriculum(patience=4)
    assert feed(rule, [*LOST * 4, *[(0.95, 0)] * 4]) == [4, 7]
    assert rule.passed == [False, True]
    assert feed(curriculum(patience=None, every=100), LOST * 40) == [15, 30], "a quarter of 60 steps"


def test_shares_of_the_steps() -> None:
    rule = curriculum(shares=[0.1, 0.25, 0.65])
    assert feed(rule, [(1.0, 0)] * 30) == [6, 21]
    assert feed(curriculum(shares=[0.01, 0.3, 0.69]), LOST * 30) == [1, 19]


def test_a_run_collapses_that_was_above_chance_in_its_stage_or_passed_the_last() -> None:
    passed, above = [(0.9, 0)] * 3, [(0.5, 0)] * 3
    rule = curriculum(patience=6)
    for steps, collapsed in (
        (passed, False),
        (above, False),
        (LOST * 3, True),
        (LOST * 5, True),
        (above * 3, False),
    ):
        feed(rule, steps)
        assert rule.collapsed == collapsed
    at_once = curriculum(patience=6)
    feed(at_once, [*passed, *LOST * 3])
    assert at_once.collapsed
    never = curriculum(patience=6)
    feed(never, [*above, *above, *LOST * 3])
    assert never.passed == [False]
    assert not never.collapsed, "what was in view is not, now"
    last = curriculum(patience=3)
    feed(last, [*above, *above, *[(0.4, 0)] * 5, *LOST * 9])
    assert last.is_last
    assert last.collapsed, "measured at logging points"


def test_a_score_where_the_least_loss_is_known_is_the_share_of_what_there_is() -> None:
    rule = curriculum(BAYES, nats=0.0)
    feed(rule, [(0, 0.25)] * 3)
    assert rule.last == pytest.approx(0.75)


def test_steps_since_the_last_measurement_resume() -> None:
    whole, cut, resumed = curriculum(), curriculum(), curriculum()
    steps = [(0.8, 0), (1.0, 0), (0.9, 0), (0.9, 0)]
    feed(whole, steps)
    feed(cut, steps[:2])
    cut.on_save_checkpoint(trainer_at(2), Mock(spec=SequenceModule), {})
    resumed.load_state_dict(cut.state_dict())
    resumed._step = 2
    feed(resumed, steps[2:])
    for rule in (whole, resumed):
        rule._collect(trainer_at(4))
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.stages == [[1, 0], [2, 3]]


def test_shares_of_another_number_of_steps_are_refused() -> None:
    saved = curriculum(shares=[0.1, 0.25, 0.65]).state_dict()
    with pytest.raises(UserError, match=r"expected stages that end at \[6, 21, 60\], found None"):
        curriculum().load_state_dict(saved)


# -- runs

RECALL = (
    "task=recall",
    "task.length=64",
    "task.samples=60",
    "task.eval_samples=8",
    "data.batch_size=2",
    "data.seq_len=64",
)
STAGES = ("data.curriculum.segments=[1,2,4]", "data.curriculum.patience=2", "data.curriculum.every=2")
STOP = ("optim=wsd", "stop_when_solved.metric=beyond", "stop_when_solved.beyond=20", "steps=20")
SOLVED_AT_6 = (
    *RECALL,
    *STAGES,
    *STOP,
    "stop_when_solved.at_least=0",
    "model.dropout=0.1",
    "checkpoint_every=1",
)


def test_one_stage_is_no_curriculum(zoo: Any, same_checkpoints: Any) -> None:
    zoo.train_whole(*RECALL)
    assert zoo.run(*RECALL, "data.curriculum.segments=[4]", "run_dir=staged").code == 0
    whole, staged = zoo.checkpoint("whole"), zoo.checkpoint("staged")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "zoo"):
        assert same_checkpoints(whole[part], staged[part]) == []
    losses = [tag for tag in zoo.scalars("whole") if "loss" in tag]
    assert losses
    assert all(zoo.scalars("whole")[tag] == zoo.scalars("staged")[tag] for tag in losses)
    assert zoo.metrics("staged")["stages"] == [[4, 0]]
    assert "stages" not in zoo.metrics("whole")


KILLS = [
    ("on_train_batch_end", 2),  # a stage has just ended
    ("on_train_batch_start", 3),
    ("on_train_batch_end", 5),
    ("on_validation_batch_end", 6),  # that by which it is solved
    ("on_train_batch_start", 6),  # it has just been
    ("on_train_batch_end", 7),  # in the decay
    ("on_validation_end", 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "step"), KILLS)
def test_killed_between_stages_and_in_the_decay(
    zoo: Any, same_checkpoints: Any, hook: str, step: int
) -> None:
    zoo.train_whole(*SOLVED_AT_6)
    whole = zoo.metrics("whole")
    assert whole["stages"] == [[1, 0], [2, 2], [4, 4]]
    assert (whole["solved_at"], whole["steps_done"], whole["steps"]) == (6, 8, 20)
    assert [point["step"] for point in whole["curve"]] == [3, 6, 8]
    assert zoo.run(*SOLVED_AT_6, "run_dir=cut", callbacks=[zoo.kill_at(hook, step)]).code == "killed"
    ended = zoo.run("resume=cut")
    assert (ended.code, ended.err) == (0, "")
    check_same(zoo, same_checkpoints, "whole", "cut", best=hook != "on_validation_end")
    again = zoo.run("resume=cut")
    assert again.err == "error: resume: the run has done 8 of 8 steps; steps=… makes it longer\n"


def test_a_run_in_stages_stops_when_it_is_solved_and_resumes(zoo: Any, same_checkpoints: Any) -> None:
    """One of the kills above, in the decay; and no other number of steps then."""
    zoo.train_whole(*SOLVED_AT_6)
    kill = zoo.kill_at("on_train_batch_end", 7)
    assert zoo.run(*SOLVED_AT_6, "run_dir=cut", callbacks=[kill]).code == "killed"
    refused = zoo.run("resume=cut", "steps=30")
    assert refused.code == 2
    assert "steps=20 is fixed by the run, whose rate decays since step 6, found 30" in refused.err
    assert zoo.run("resume=cut").code == 0
    check_same(zoo, same_checkpoints, "whole", "cut")
    rates = [rate for _, rate in zoo.scalars("cut")["optimizer/learning rate"]]
    assert len(set(rates[1:7])) == 1
    assert rates[7] == pytest.approx(0.1 * rates[1])


def test_an_unsolved_run_decays_after_its_steps_and_may_be_made_longer_before(zoo: Any) -> None:
    words = (*RECALL, "optim=wsd", "steps=4", "val_every=2", "optim.warmup=1")
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 3)]).code == "killed"
    assert zoo.run("resume=cut", "steps=8").code == 0
    results = zoo.metrics("cut")
    assert (results["solved_at"], results["collapsed"], results["steps_done"]) == (None, False, 10)
    rates = [
        rate / zoo.scalars("cut")["optimizer/learning rate"][0][1]
        for _, rate in zoo.scalars("cut")["optimizer/learning rate"]
    ]
    assert rates == pytest.approx([1] * 9 + [0.1])
    refused = zoo.run("resume=cut", "steps=12")
    assert "steps=8 is fixed by the run, whose rate decays since step 8, found 12" in refused.err


def test_a_run_that_solves_its_task_in_the_decay_has_solved_it(zoo: Any) -> None:
    """The second of its two validations is the run's last."""
    rule = ("stop_when_solved.metric=accuracy", "stop_when_solved.at_least=0")
    assert zoo.run(*RECALL, *rule, "optim=wsd", "steps=8", "val_every=8", "run_dir=run").code == 0
    results = zoo.metrics("run")
    assert [point["step"] for point in results["curve"]] == [8, 10]
    assert (results["solved_at"], results["collapsed"], results["steps_done"]) == (10, False, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stop_when_solved.metric=beyond", "optim=wsd"), "beyond: expected positions for metric=beyond"),
        (("stop_when_solved.metric=accuracy",), "expected optim=wsd, .* found optim.schedule=cosine"),
        (("stop_when_solved.metric=best", "optim=wsd"), "metric: expected beyond or gain or .*, found best"),
        (("optim=wsd", "stop_when_solved.metric=gain", "stop_when_solved.beyond=1"), "recall doesn't know"),
        (
            ("optim=wsd", "stop_when_solved.metric=beyond", "stop_when_solved.beyond=64"),
            "at most .*, found 64",
        ),
        (("data.curriculum.segments=[1,4]", "data.curriculum.shares=[1.0]"), "one for each of 2 stages"),
        (("data.curriculum.segments=[4]", "data.curriculum.shares=[0.5]"), "shares above 0 that sum to 1"),
        (("data.curriculum.every=0",), "data.curriculum.every: expected at least 1, found 0"),
        (("optim=wsd", "stop_when_solved.beyond=20"), "beyond: 20 has no effect without a metric"),
        (("stop_when_solved.at_least=0.8",), "at_least: 0.8 has no effect without a metric"),
        (("data.curriculum.nats=0.5",), "nats: 0.5 has no effect without segments or lengths"),
        (
            ("data.curriculum.segments=[1,4]", "data.curriculum.shares=[0.5,0.5]", "data.curriculum.every=5"),
            "every: 5 has no effect without the gate, which shares replaces",
        ),
        (("optim.decay=0.5",), "optim.decay: 0.5 has no effect without optim=wsd"),
        (("data.val_samples=9",), "at most task.eval_samples=8, found 9"),
    ],
)
def test_impossible_recipes_are_one_line(zoo: Any, words: tuple[str, ...], message: str) -> None:
    ended = zoo.run(*RECALL, *words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert re.search(message, ended.err), ended.err


def test_a_text_has_no_samples(zoo: Any) -> None:
    ended = zoo.run("data.val_samples=4")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "data.val_samples: 4 has no effect on task lm" in ended.err
