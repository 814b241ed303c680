"""`zoo generate`: what it writes, and what it refuses."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.train.conftest import Completed, Workspace
from zoo.generation import greedy
from zoo.train.commands import generate as command
from zoo.train.evaluation import batch_generation, text_generation
from zoo.train.evaluation.batch_generation import generate_rows
from zoo.train.evaluation.codec import run_codec
from zoo.train.runs.load import load_trained
from zoo.train.tasks.lm import END


def generate(zoo: Workspace, capsys: pytest.CaptureFixture[str], *words: str) -> Completed:
    code = 0
    with zoo.monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["zoo generate", *words])
        try:
            command.main()
        except SystemExit as left:
            code = left.code  # type: ignore[assignment]
    said = capsys.readouterr()
    return Completed(code, said.out, said.err)


@pytest.fixture
def run(zoo: Workspace) -> str:
    zoo.train_whole()
    return "run=whole"


@torch.no_grad()
def test_greedy_text_is_what_the_model_says_of_it(
    zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = generate(zoo, capsys, run, "prompt=the ké", "tokens=40", "temperature=0", "echo=false")
    assert ended.code == 0
    _, model, _ = load_trained(Path("whole"))
    tokens = [END, *"the ké".encode()]
    made: list[int] = []
    while len(made) < 40:
        token = int(greedy(model(torch.tensor([tokens + made]))[0][:, -1]))
        if token == END:
            break
        made.append(token)
    assert ended.out == bytes(made).decode("utf-8", "replace") + "\n"
    echoed = generate(zoo, capsys, run, "prompt=the ké", "tokens=40", "temperature=0")
    assert echoed.out == "the ké" + ended.out


def test_a_seed_says_what_is_drawn(zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = [
        generate(zoo, capsys, run, "tokens=30", f"seed={seed}", "temperature=1.3").out for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]
    sure = [generate(zoo, capsys, run, "tokens=30", f"seed={seed}", "top_p=0.000001").out for seed in (1, 2)]
    assert sure[0] == sure[1] == generate(zoo, capsys, run, "tokens=30", "temperature=0").out


def test_a_prompt_from_a_file_or_from_standard_input(
    zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "She counts. " * 20  # more than a segment
    words = ("tokens=5", "temperature=0")
    expected = generate(zoo, capsys, run, f"prompt={line}", *words).out
    assert expected.startswith(line)
    Path("line.txt").write_text(line)
    assert generate(zoo, capsys, run, "prompt_file=line.txt", *words).out == expected
    zoo.monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(line.encode())))
    assert generate(zoo, capsys, run, "prompt=-", *words).out == expected


def test_tasks_that_are_no_bytes_have_numbers(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        zoo.run("task=induction", "task.length=32", "data.seq_len=32", "run_dir=heads", "steps=2").code == 0
    )
    ended = generate(zoo, capsys, "run=heads", "prompt=3 1, 15", "tokens=20")
    assert ended.code == 0
    assert ended.out.startswith("3 1, 15 ")
    made = [int(word) for word in ended.out.replace(",", "").split()[3:]]
    assert len(made) == 20
    assert all(0 <= token < 16 for token in made)
    for prompt, found in (
        ("prompt=3 16", "'16'"),
        ("prompt=a", "'a'"),
        ("prompt=-1", "'-1'"),
        ("echo=true", ""),
    ):
        ended = generate(zoo, capsys, "run=heads", prompt)
        assert ended.code == 2
        assert "from 0 to 15, found" in ended.err
        assert found in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tokens=5",), "expected run="),
        (("run=nowhere",), "expected a run's folder with a config.yaml, found none in 'nowhere'"),
        (
            ("run=whole", "temprature=1"),
            "unknown key 'temprature'; expected one of run, .*did you mean temper",
        ),
        (("run=whole", "prompt"), "expected key=value, found 'prompt'$"),
        (("whole",), "expected key=value, found 'whole'; did you mean run=whole\\?$"),
        (("run=whole", "temperature=-1"), "temperature: expected a number of at least 0, found -1"),
        (("run=whole", "temperature=nan"), "temperature: expected a number of at least 0, found nan"),
        (("run=whole", "top_p=0"), "top_p: expected a number from 1e-06 to 1, found 0"),
        (("run=whole", "top_p=1.1"), "top_p: expected .*, found 1.1"),
        (("run=whole", "tokens=1.5"), "tokens: expected a whole number of at least 0, found 1.5"),
        (("run=whole", "seed=x"), "seed: expected a whole number .*, found x"),
        (("run=whole", "echo=maybe"), "echo: expected true . false, found maybe"),
        (("run=whole", "checkpoint=first"), "checkpoint: expected last . best, found first"),
        (("run=whole", "prompt=a", "prompt_file=b"), "can't use b|found both"),
        (("run=whole", "prompt_file=nothing.txt"), "can't use nothing.txt: No such file"),
    ],
)
def test_a_slip_is_one_line(
    zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    ended = generate(zoo, capsys, *words)
    assert ended.code == 2
    assert ended.out == ""
    assert re.match(rf"error: .*(?:{says})", ended.err)
    assert ended.err.count("\n") == 1


def test_weights_that_say_nothing(zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("whole/checkpoints/last.ckpt")
    kept = torch.load(path, weights_only=True)
    kept["state_dict"]["norm.weight"].fill_(float("nan"))
    torch.save(kept, path)
    ended = generate(zoo, capsys, run, "tokens=3")
    assert ended.code == 2
    assert "not finite" in ended.err


def spelled(tokens: list[int], of_bytes: bool = True) -> list[str]:
    codec = run_codec(
        OmegaConf.create({"task": {"vocab_size": 257 if of_bytes else 300}}), Path(), "generate"
    )
    return [piece for _, piece in codec.pieces(iter(tokens))]


def test_characters_are_written_when_they_are_whole() -> None:
    assert spelled([*"aé€".encode()]) == ["a", "", "é", "", "", "€", ""]
    assert "".join(spelled([0xC3, 0x28, 0xFF, 0x41])) == "�(�A"
    assert spelled([0xE2, 0x82])[-1] == "�"  # cut short
    assert spelled([0x61, END, 0x62]) == ["a", ""]
    assert spelled([3, 256, 7], of_bytes=False)[:3] == ["3 ", "256 ", "7 "]


def test_only_tokens_of_the_task() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    assert text_generation.restrict_vocab(2, greedy)(logits).item() == 1


def test_texts_of_several_prompts(zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is that of the command with its prompt alone; `out` has them as JSON."""
    Path("prompts.txt").write_text("the ké\n\nthe keeper of the zoo\n")
    words = (run, "tokens=20", "temperature=0", "echo=false")
    ended = generate(zoo, capsys, *words, "prompts=prompts.txt", "batch_size=2", "out=texts.jsonl")
    assert ended.code == 0, ended.err
    texts = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert [text["prompt"] for text in texts] == ["the ké", "", "the keeper of the zoo"]
    for text in texts:
        assert generate(zoo, capsys, *words, f"prompt={text['prompt']}").out == f"{text['text']}\n"
        assert (text["ended_by"], text["tokens"]) == ("tokens", 20)
    assert ended.out.startswith(f"--- 1 of 3, ended by tokens\n{texts[0]['text']}\n--- 2 of 3")


def test_an_interruption_keeps_the_texts_that_were_made(
    zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is in the file before the next is begun; an earlier file stays until the first text."""
    words = (run, "prompt=the", "tokens=5", "samples=3", "batch_size=1", "out=texts.jsonl")
    assert generate(zoo, capsys, *words).code == 0
    entire = Path("texts.jsonl").read_text().splitlines()
    seen = []

    def interrupted(*arguments: Any) -> None:
        seen.append(Path("texts.jsonl").read_text().splitlines())
        if len(seen) == 3:
            raise KeyboardInterrupt
        generate_rows(*arguments)

    with zoo.monkeypatch.context() as patch:
        patch.setattr(batch_generation, "generate_rows", interrupted)
        assert generate(zoo, capsys, *words).code == 130
    assert seen == [entire, entire[:1], entire[:2]]
    assert Path("texts.jsonl").read_text().splitlines() == entire[:2]


def test_samples_differ_and_stop(zoo: Workspace, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (run, "prompt=the", "tokens=40", "temperature=1.5", "samples=3")
    assert generate(zoo, capsys, *words, "out=all.jsonl").code == 0
    texts = [json.loads(line)["text"] for line in Path("all.jsonl").read_text().splitlines()]
    assert len(set(texts)) == 3
    stop = texts[0][10]
    assert generate(zoo, capsys, *words, f"stop={json.dumps([stop, 'xyz'])}", "out=cut.jsonl").code == 0
    for line, whole in zip(Path("cut.jsonl").read_text().splitlines(), texts, strict=True):
        made = json.loads(line)
        assert made["text"] == whole.partition(stop)[0]
        assert made["ended_by"] == ("stop" if stop in whole else "tokens")
    one = generate(zoo, capsys, *words[:-1], "echo=false")
    stop = one.out[len(one.out) // 2]
    cut = generate(zoo, capsys, *words[:-1], "echo=false", f"stop={stop}")
    assert cut.out == one.out.partition(stop)[0] + "\n"
    assert "came to a stop word" in cut.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("top_k=0",), "top_k: expected a whole number of at least 1, found 0"),
        (("stop=",), "stop: expected a text, or several such as"),
        (("stop=[1]",), "stop: expected a text, or several such as .*found .1.$"),
        (("batch_size=2",), "batch_size has no effect on one text"),
        (("samples=2", "temperature=0"), "samples: expected 1 with temperature=0"),
        (("temperature=0", "top_k=40", "top_p=0.5"), "top_k has no effect with temperature=0, which takes"),
        (("temperature=0.0", "top_p=0.5"), "top_p has no effect with temperature=0, which takes"),
        (("temperature=0", "samples=1", "seed=3"), "seed has no effect with temperature=0, which takes"),
        (("prompt=a", "prompts=README.md"), "can't use README.md|expected one of"),
        (("samples=2", "out=texts.txt"), "out: expected a file that ends with .jsonl"),
    ],
)
def test_a_slip_about_several_texts_is_one_line(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    ended = generate(zoo, capsys, "run=whole", *words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert re.match(rf"error: .*(?:{says})", ended.err)
