"""`zoo inspect`: its figures are those of a memory whose course is known."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from tests.train.conftest import Workspace
from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.train.commands import inspect as command
from zoo.train.evaluation.codec import Codec, run_codec
from zoo.train.evaluation.inspection import InspectOptions, Text, inspect, inspect_run
from zoo.train.evaluation.inspection_report import in_context, words

KEPT = 0.9  # of the state at every token
VOCAB, SEGMENT = 5, 4


class Leaky(SequenceModule):
    """Counts of symbols that decay; they are the logits of whatever comes next."""

    learns_through_memory = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.scale = torch.nn.Parameter(torch.ones(()))

    def init_state(self, rows: int) -> Tensor:
        return self.scale.new_zeros(rows, VOCAB)

    def segment(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits = []
        for token in tokens.unbind(1):
            state = KEPT * state + F.one_hot(token, VOCAB)
            logits.append(state * self.scale)
        return torch.stack(logits, dim=1), state


def counts(tokens: list[int]) -> Tensor:
    """The state after these tokens."""
    total = torch.zeros(VOCAB)
    for age, token in enumerate(reversed(tokens)):
        total[token] += KEPT**age
    return total


def nats(tokens: list[int], target: int) -> float:
    return float(-counts(tokens).log_softmax(0)[target])


@pytest.fixture
def text() -> Text:
    tokens = torch.randint(VOCAB, (4 * SEGMENT + 2,), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([tokens[1:], torch.tensor([IGNORE])])
    return Text("a text", tokens, targets, codec_of(VOCAB), ask_last_segment=False)


def codec_of(vocab_size: int) -> Codec:
    return run_codec(OmegaConf.create({"task": {"vocab_size": vocab_size}}), Path(), "inspect")


def test_course_of_a_memory(text: Text) -> None:
    seen = inspect(Leaky().eval(), text)
    tokens = text.tokens.tolist()
    assert seen.question == list(range(SEGMENT, 4 * SEGMENT + 1))
    assert [segment.tokens for segment in seen.segments] == [SEGMENT] * 4 + [2]
    for index, segment in enumerate(seen.segments):
        start = index * SEGMENT
        places = range(start, min(start + SEGMENT, len(tokens) - 1))
        for value, first in ((segment.loss, 0), (segment.reset, start)):
            expected = sum(nats(tokens[first : t + 1], tokens[t + 1]) for t in places) / len(places)
            assert value == pytest.approx(expected, abs=1e-5)
        end = start + segment.tokens
        rms = float(counts(tokens[:end]).square().mean().sqrt())
        assert list(segment.norms.values()) == pytest.approx([rms], abs=1e-5)
        retention = None if index == 0 else pytest.approx(KEPT**segment.tokens, abs=1e-5)
        assert segment.retention == retention


def test_worth_is_what_is_lost_without_a_segment(text: Text) -> None:
    tokens = text.tokens.tolist()
    seen = inspect(Leaky().eval(), text._replace(ask_last_segment=True))
    assert seen.question == [4 * SEGMENT]
    place = seen.question[0]
    whole = nats(tokens[: place + 1], tokens[place + 1])
    for index, segment in enumerate(seen.segments):
        start = index * SEGMENT
        left = tokens[:start] + tokens[start + SEGMENT : place + 1]
        lost = None if index == 4 else pytest.approx(nats(left, tokens[place + 1]) - whole, abs=1e-5)
        assert segment.contribution == lost


def test_a_text_without_a_question_is_refused(text: Text) -> None:
    model = Leaky().eval()
    with pytest.raises(UserError, match="expected a text of 2 to 256 segments of 4 tokens, found 4 tokens"):
        inspect(model, text._replace(tokens=text.tokens[:4], targets=text.targets[:4]))
    nothing = torch.full_like(text.targets, IGNORE)
    with pytest.raises(UserError, match="no target stands after the first segment"):
        inspect(model, text._replace(targets=nothing))


def test_words_of_bytes_and_of_symbols(text: Text) -> None:
    assert words(text._replace(tokens=torch.tensor([3, 1, 4])), 0, 3) == "3 1 4"
    of_bytes = text._replace(tokens=torch.tensor([256, *b"ab\n\xff[d"]), codec=codec_of(257))
    assert words(of_bytes, 0, 7) == "ab·\ufffd[d"
    assert in_context(of_bytes, 2) == "a⟦b⟧·\ufffd[d"


def test_a_run_and_its_figures(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.train_whole()
    prompt = "what was said is said again, " * 3
    monkeypatch.setattr("sys.argv", ["zoo inspect", "run=whole", f"prompt={prompt}"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "rmt on a prompt: 88 tokens in 6 segments; 7 targets are asked for, from token 81 on" in said.out
    assert said.out.splitlines()[-1] == "figures: whole/inspection"
    assert Path("whole/inspection/course.png").stat().st_size > 10_000
    sample = inspect_run(InspectOptions(run=Path("whole"), split="val"))
    assert sample.text.title == "lm, sample 0 of the val split"
    assert not sample.reads
    assert all(math.isfinite(segment.loss or 0) for segment in sample.segments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=a"], "run="),
        (["run=whole", "prompt=a", "prompt_file=b"], "expected prompt= or prompt_file=, found both"),
        (["run=whole", "prompt=a", "sample=3"], "sample has no effect beside a prompt"),
        (["run=whole", "prompt=a", "task.length=3"], "task.length has no effect beside a prompt"),
        (["run=whole", "prompt=a"], "expected a text of 2 to 256 segments of 16 tokens, found 2 tokens"),
        (["run=whole", "split=val", "sample=99"], "sample: expected 0 to "),
        (["run=nowhere", "prompt=a"], "nowhere"),
    ],
)
def test_slips_are_answered_in_a_line(
    words: list[str],
    message: str,
    zoo: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zoo.train_whole()
    if "prompt_file=b" in words:
        Path("b").write_text("x")
    monkeypatch.setattr("sys.argv", ["zoo inspect", *words])
    with pytest.raises(SystemExit) as left:
        command.main()
    lines: Any = capsys.readouterr().err.splitlines()
    assert (left.value.code, len(lines)) == (2, 1)
    assert message in lines[0]
