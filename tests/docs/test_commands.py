"""Every command in README.md and docs/ works.

A command is a line of a shell block (indented, or fenced as sh or as nothing), or code inside a sentence,
that begins with one of PROGRAMS.  What is done with it:

    train           composed, checked and built as it stands, on the meta device; then trained, two steps at
                    size=nano on a text of a few hundred bytes.  There the numbers that belong to the size
                    asked for are left out (data.*, task.* and model.* that are whole numbers), and so is the
                    device.  A run that is the same after this is trained once.
    resume=, run=   a made run of two steps stands for the run that is named
    evaluate        its words are read as they stand; then run with short lengths and few samples
    generate        its words are read as they stand; then run for a few tokens
    compare, export run on made runs
    import          its words are read: the weights aren't here
    sweep, bench    every run of the matrix is composed, checked and built; tests/train runs them
    check           built; tests/contract holds all models to the laws
    list, doctor, new, --help   run
    tensorboard     its words are read by TensorBoard itself
    pip, venv, pytest, benchmarks   files, extras and options that they name are there

Where a command in a sentence is cut short by an ellipsis, its name alone is looked at.  Pages in ELSEWHERE
have a test of their own; here their commands are only looked at.  Code of the form key=value in the pages of
architectures and tasks is composed with that model or task; blocks of Python are run (quickstart.md, faq.md)
or compiled.
"""

import contextlib
import importlib
import io
import itertools
import logging
import re
import shlex
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from zoo.__main__ import COMMANDS, call
from zoo.errors import UserError
from zoo.train.runs import build
from zoo.train.runs import config as run_config
from zoo.train.runs.config import compose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"adding-a-model.md": "tests/train/test_plugins.py and test_new.py"}
PROGRAMS = ("python", "python3", "pip", "zoo", "tensorboard")
NEIGHBOURS = ("cd", "mkdir", "git", "export", "ls")  # may stand in a block marked as sh
SETTING = re.compile(r"[~+]*[a-z_]+(\.[\w.]+)?=.*")
NUMBER = re.compile(r"-?[\d_]+|null")
BACKENDS = ("model.backend=", "model.index=")

SMALL = (
    "size=nano",
    "steps=2",
    "val_every=2",
    "checkpoint_every=2",
    "data.corpus=text",
    "data.batch_size=8",
    "data.val_bytes=100",
    "trainer.accelerator=cpu",
)
SMALL_TASKS = {
    "babilong": ("task.length=64",),
    "induction": ("task.length=32",),
    "listops": ("task.min_length=5", "task.max_length=40", "task.max_depth=4", "task.samples=32"),
    "mqar": (),
    "needle": ("task.length=1024",),
    "passkey": (),
    "selective_copy": ("task.length=64", "task.remembered=4"),
}
STORIES = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"


class Found(NamedTuple):
    page: Path
    words: tuple[str, ...]
    inline: bool = False

    @property
    def program(self) -> str:
        return Path(self.words[0]).name


# -- what stands in the pages


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Blocks of code: the fence's word ("" for none, "indented" without a fence), and the lines."""
    fence, word, lines = "", "", list[str]()
    above = ""
    for line in [*text.splitlines(), ""]:
        if fence:
            if line.strip() == fence:
                yield word, lines
                fence, lines = "", []
            else:
                lines.append(line)
        elif opened := re.match(r"\s*(```+)\s*(\w*)", line):
            fence, word = opened.groups()
        elif line.startswith("    ") and (lines or not above.strip()):
            lines.append(line[4:])
        elif lines:
            yield "indented", lines
            lines = []
        above = line


def sentences(text: str) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^\s*```+.*?^\s*```+\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def inline(text: str) -> list[str]:
    """Code in sentences; one that is broken over two lines is whole again."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", sentences(text))]


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line, without prompts, comments and settings of the environment."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    for _, part in itertools.groupby(words, lambda word: word in ("&&", "|", ";", ">")):
        rest = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), part))
        if rest and rest[0] not in ("&&", "|", ";", ">"):
            yield tuple(rest)


def commands(page: Path) -> Iterator[Found]:
    text = page.read_text()
    for word, lines in blocks(text):
        if word not in ("", "indented", "sh", "bash", "console"):
            continue
        for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
            first = line.removeprefix("$ ").split(" ")[0]
            ours = first in PROGRAMS or first.startswith(".venv/bin/")
            if ours or word == "sh" or re.match(r"[A-Z_]+=\S* \S*python", line):
                for words in split(line):
                    if words[0] not in NEIGHBOURS:
                        yield Found(page, words)
    for code in inline(text):
        if re.match(r"(python -m zoo|zoo \w+ )", code) and "[" not in code and "COMMAND" not in code:
            yield Found(page, tuple(shlex.split(code)), inline=True)


def told(found: Found) -> tuple[str, list[str]]:
    """Which of our commands, and its words; "" for a command that isn't ours."""
    words = list(found.words)
    if found.program.startswith("python") and words[1:2] == ["-m"] and words[2].partition(".")[0] == "zoo":
        return (
            ("train", words[3:])
            if words[2] == "zoo.train"
            else (words[3] if words[3:] else "--help", words[4:])
        )
    if found.program == "zoo":
        return (words[1], words[2:]) if words[1:] else ("--help", [])
    return "", words


ALL = list(dict.fromkeys(found for page in PAGES for found in commands(page)))


def named(found: Found) -> str:
    return f"{found.page.relative_to(ROOT)}: {shlex.join(found.words)}"


def test_commands_are_found() -> None:
    assert len(ALL) > 50
    assert {told(found)[0] for found in ALL} > {"train", "sweep", "evaluate", "compare", "check", ""}


# -- composed as they stand


def checked(words: list[str]) -> DictConfig:
    """Composed, checked and built on the meta device; the free width, which takes seconds to solve, is 64."""
    cfg = compose([*words, "run_dir=."])
    cfg.data.corpus = "stdlib"
    run_config.validate_config(cfg)
    if cfg.model.get("free") and cfg.model.get(cfg.model.free) is None:
        cfg.model[cfg.model.free] = 64
    if "base" in cfg.model:
        cfg.model.base = None
    with torch.device("meta"), contextlib.suppress(NoBackendError):
        try:
            build.model(cfg)
        except UserError as error:
            if str(error).startswith("backend:"):
                raise NoBackendError from error
            raise
    return cfg


class NoBackendError(Exception):
    """The words are right, and the package isn't here."""


def combinations(words: list[str]) -> Iterator[list[str]]:
    """The runs of a sweep: model=a,b and so on; lists, interpolations and schedules are left whole."""
    several = [
        [f"{key}={one}" for one in value.split(",")] if not value.startswith(("[", "{", "$")) else [word]
        for word in words
        for key, _, value in [word.partition("=")]
    ]
    return map(list, itertools.product(*several))


# -- run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the made runs of this session."""
    return tmp_path_factory.mktemp("runs")


class House:
    """A folder with a little text, in which commands are run in this process."""

    def __init__(self, folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.runs, self.monkeypatch = folder, runs, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        monkeypatch.setenv("ZOO_DATA", str(folder / "data"))
        line = "The keeper of the zoo counts what she remembers, twice a day. She has a list. "
        for split_name in ("train", "val", "test"):
            (folder / "text" / split_name).mkdir(parents=True)
            for number in range(2):
                (folder / "text" / split_name / f"{number}.txt").write_text(f"{number}: {line * 10}")
        shutil.copytree(folder / "text", folder / "data" / "books")
        (folder / "data" / "babi").mkdir()
        for kind in ("train", "test"):
            told_stories = folder / "data" / "babi" / f"qa1_single-supporting-fact_{kind}.txt"
            told_stories.write_text(STORIES * 20)

    def call(self, name: str, words: list[str]) -> str:
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with (
            self.monkeypatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(sys, "argv", ["zoo"])
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes again, for one unused key
            try:
                call(name, words)
            except SystemExit as left:
                code = left.code
        assert not code, f"zoo {name} {shlex.join(words)}: exit code {code}\n{out.getvalue()}{err.getvalue()}"
        return out.getvalue()

    def run(self, model: str = "rmt", task: str = "lm") -> str:
        """A run of two steps, made once a session."""
        there = self.runs / f"{model}-{task}"
        if not (there / "metrics.json").is_file():
            self.call("train", shrunk([f"model={model}", *TASKS_OF_RUNS[task], f"run_dir={there}"]))
        mine = self.folder / "runs" / task / model / "made"
        if not mine.exists():
            shutil.copytree(there, mine)
        return str(mine.relative_to(self.folder))


TASKS_OF_RUNS = {"lm": ["task=lm"], "passkey": ["task=passkey", "task.form=compact"]}


@pytest.fixture
def house(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield House(tmp_path, runs, monkeypatch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in ("", "zoo.train.commands.train"):
        logger = logging.getLogger(name)
        for sink in [sink for sink in logger.handlers if type(sink).__module__ == "logging"]:
            logger.removeHandler(sink)
            sink.close()


def shrunk(words: list[str]) -> list[str]:
    """The run that stands for what is asked for (see above)."""
    task = next((word[5:] for word in words if word.startswith("task=")), "lm")
    if any("induction" in word for word in words if word.startswith("experiment=")):
        task = "induction"
    small = [*SMALL, *SMALL_TASKS.get(task, ()), *(["task.eval_samples=8"] if task != "lm" else [])]
    if task == "passkey" and "task.form=compact" in words:
        small.append("task.length=64")
    taken = {word.partition("=")[0] for word in small}
    kept = []
    for word in words:
        key, _, value = word.partition("=")
        number = key.startswith(("data.", "task.", "model.")) and NUMBER.fullmatch(value)
        if not (
            number or key in taken or key == "seed" or key.startswith("trainer.") or word.startswith(BACKENDS)
        ):
            kept.append(word)
    kept += [word for word in words if word.startswith("trainer.precision=")]
    return [*kept, *small]


trained: set[tuple[str, ...]] = set()


def train(house: House, words: list[str]) -> None:
    if {"--help", "--cfg"} & set(words):
        house.call("train", words)
        return
    if any(word.startswith("resume=") for word in words):
        kept = [word for word in words if not word.startswith(("resume=", "steps="))]
        house.call("train", [f"resume={house.run()}", "steps=3", *kept])
        return
    for one in combinations([word for word in words if word != "-m"]):
        paths = [word for word in one if not word.startswith(("run_dir=", "hydra."))]
        checked(paths)
        small = shrunk(paths)
        if tuple(sorted(small)) not in trained:
            trained.add(tuple(sorted(small)))
            house.call("train", [*small, f"run_dir=run-{len(trained)}"])


def evaluate(house: House, words: list[str]) -> None:
    from zoo.train.commands.evaluate import arguments

    arguments(["run=made", *(word for word in words if "…" not in word and not word.startswith("run="))])
    keys = {word.partition("=")[0]: word for word in words if not word.startswith("run=")}
    of_samples = {"lengths", "depths", "prompts"} & keys.keys() or any(
        key.startswith("task.") for key in keys
    )
    task = "passkey" if of_samples and "task" not in keys else "lm"
    if of_samples or "task" in keys:
        keys |= {"lengths": "lengths=1x,2x", "prompts": "prompts=2"}
        if "depths" in keys:
            keys["depths"] = "depths=0,100"
    keys.pop("tokens", None)
    if "data.corpus" in keys:
        keys["data.corpus"] = "data.corpus=text"
    model = "transformer" if "model" in keys else "rmt"
    house.call("evaluate", [f"run={house.run(model, task)}", *keys.values()])


def compare(house: House, words: list[str]) -> None:
    from zoo.train.commands.compare import arguments

    run = house.run()
    settings = [word for word in words if "=" in word and "…" not in word]
    arguments([run, *settings])
    house.call(
        "compare", [run, *(word for word in settings if not word.startswith(("out=", "loss=", "baseline=")))]
    )


def generate(house: House, words: list[str]) -> None:
    from zoo.train.commands.generate import arguments

    keys = {word.partition("=")[0]: word for word in words if "…" not in word}
    run = house.run()
    if "prompt_file" in keys:
        Path("prompt.txt").write_text("The keeper ")
        keys["prompt_file"] = "prompt_file=prompt.txt"
    house.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The keeper ")))
    arguments([*(word for key, word in keys.items() if key != "run"), f"run={run}"])
    house.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The keeper ")))
    house.call("generate", [*(keys | {"run": f"run={run}", "tokens": "tokens=4"}).values()])


def sweep(house: House, words: list[str]) -> None:
    from zoo.train.commands.sweep import KEYS, arguments
    from zoo.train.sweep.plan import AXES

    arguments(words)
    shared = [word for word in words if word.partition("=")[0] not in {*KEYS} - {*AXES}]
    for one in combinations(shared):
        checked(one)


def bench(house: House, words: list[str]) -> None:
    for one in combinations([word for word in words if not word.startswith(("lengths=", "rounds="))]):
        checked(one)


def check(house: House, words: list[str]) -> None:
    from zoo.train.commands.check import model_builder

    if "=" in words[0]:
        model_builder(words)()
    else:
        assert len(words[0].split(".")) > 1, f"expected package.module.Class, found {words[0]}"


def export(house: House, words: list[str]) -> None:
    keys = {word.partition("=")[0]: word for word in words}
    house.call("export", [*(keys | {"run": f"run={house.run()}"}).values()])


def look_at(house: House, words: list[str]) -> None:
    assert all(SETTING.fullmatch(word) for word in words), f"expected key=value, found {words}"


def listing(house: House, words: list[str]) -> None:
    house.call("list", [*(word for word in words if not word.startswith("size=")), "size=nano"])


RULES = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "generate": generate,
    "sweep": sweep,
    "bench": bench,
    "check": check,
    "export": export,
    "import": look_at,
    "list": listing,
}


@pytest.mark.parametrize("found", [found for found in ALL if told(found)[0]], ids=named)
def test_command_of_ours(found: Found, house: House) -> None:
    name, words = told(found)
    if name in ("--help", "-h"):
        return
    if any("…" in word for word in words) and found.inline:
        words = []
    assert name in COMMANDS, f"no command {name!r}"
    if found.page.name in ELSEWHERE:
        assert all(SETTING.fullmatch(word) or re.fullmatch(r"[\w./-]+", word) for word in words)
    elif words == ["--help"]:
        house.call(name, words)
    elif not words and name not in ("list", "doctor", "train"):
        assert found.inline, "a command without its words"
    elif name in RULES:
        RULES[name](house, words)
    else:
        house.call(name, words)


@pytest.mark.parametrize(
    "line",
    [
        "python -m zoo.train model=rmt modle.slots=3",
        "python -m zoo.train model=rmt model.memory_tokens=many",
        "python -m zoo.train model=rtm",
        "python -m zoo trian model=rmt",
        "python -m zoo sweep model=rmt,mamba model.memory_tokens=2 seeds=0:3",
        "python -m zoo evaluate run=runs/lm/rmt/made lenghts=64",
        "python -m zoo compare runs/lm basline=rmt",
        "zoo generate run=runs/lm/rmt/made token=4",
        "zoo list archs",
    ],
)
def test_a_wrong_command_fails(line: str, house: House) -> None:
    with pytest.raises((AssertionError, UserError, HydraException)):
        test_command_of_ours(Found(ROOT / "docs" / "page.md", tuple(shlex.split(line))), house)


def test_what_counts_as_a_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `python -m zoo\ncheck model=rmt` or `zoo compare`; `model.memory_tokens=2` is none.\n\n"
        "    A=1 python -m zoo.train model=rmt \\\n      size=tiny  # why\n\n"
        "```sh\npip install -e . && zoo list\n```\n```python\nzoo = 1\n```\n\n    zoo/  a folder\n"
    )
    assert [" ".join(found.words) for found in commands(page)] == [
        "python -m zoo.train model=rmt size=tiny",
        "pip install -e .",
        "zoo list",
        "python -m zoo check model=rmt",
    ]


@pytest.mark.parametrize("found", [found for found in ALL if not told(found)[0]], ids=named)
def test_command_of_others(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = list(found.words)
    if found.program.startswith("python") and words[1] == "-m":
        program, words = words[2], words[3:]
    elif found.program.startswith("python"):
        program, words = words[1], words[2:]
    else:
        program, words = found.program, words[1:]
    if program == "tensorboard":
        board = importlib.import_module("tensorboard.program")
        board.TensorBoard().configure(["tensorboard", *words])
    elif program == "pip":
        assert words[0] == "install"
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words:
            assert set((re.findall(r"^\.\[(.*)\]$", word) or [""])[0].split(",")) - {""} <= extras.keys()
            assert not word.startswith("constraints/") or (ROOT / word).is_file()
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if "/" in word and "=" not in word)
    elif program.endswith(".py"):
        script = (ROOT / program).read_text()
        assert all(f'"{word.partition("=")[0]}"' in script for word in words if word.startswith("--"))
    else:
        assert program == "venv", f"no rule for {program}"


# -- settings in sentences, and Python


def settings_in(page: Path) -> Iterator[tuple[str, ...]]:
    """Code that is nothing but settings of a model or a task, with what it is a setting of."""
    text = page.read_text()
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        title = part.splitlines()[0].strip("` ") if part.strip() else ""
        if page.parent.name == "architectures":
            owner = f"model={page.stem}"
        elif page.name == "tasks.md" and (ROOT / "configs" / "task" / f"{title}.yaml").is_file():
            owner = f"task={title}"
        else:
            continue
        for code in inline(part):
            words = shlex.split(code)
            if all(
                re.fullmatch(r"(model|task|size|data|optim|trainer)(\.[a-z_.]+)?=[^…<|]+", word)
                for word in words
            ):
                group = owner.partition("=")[0]
                own = [] if any(word.startswith(f"{group}=") for word in words) else [owner]
                yield (*own, *words)


SETTINGS = list(dict.fromkeys(words for page in PAGES for words in settings_in(page)))


@pytest.mark.parametrize("words", SETTINGS, ids=" ".join)
def test_settings_in_sentences(words: tuple[str, ...]) -> None:
    checked(list(words))


@cache
def snippets(page: Path) -> list[str]:
    return ["\n".join(lines) for word, lines in blocks(page.read_text()) if word == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_python(page: Path, house: House) -> None:
    if page.name not in ("quickstart.md", "faq.md"):
        for snippet in snippets(page):
            compile(snippet, str(page), "exec")
        return
    run, scope = house.run(), dict[str, Any]()
    for snippet in snippets(page):
        exec(compile(re.sub(r"runs/[\w/.-]+", run, snippet), str(page), "exec"), scope)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", sentences(page.read_text())):
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(link)
    assert not lost, f"{page.relative_to(ROOT)} points to what isn't there: {', '.join(lost)}"
