"""Every command in README.md and docs/ works.

A command is a line of a shell block (indented, or fenced as sh or as nothing), or code inside a sentence,
that begins with one of PROGRAMS.  What is done with it:

    train           composed, checked and built as written, on the meta device; then trained, two steps at
                    size=nano on a text of a few hundred bytes.  There numbers of the requested size are left
                    out (integers of data.*, task.* and model.*), and so is the device.  A run
                    that is the same after this is trained once.
    resume=, run=   a run of two steps stands for the named one
    evaluate        its words are read as they stand; then run with short lengths and few samples
    generate        its words are read as they stand; then run for a few tokens
    inspect         its words are read as they stand, then run on a made run, samples on one of passkey
    compare, export run on made runs
    import, prepare  their words are read: the weights and tokenizers aren't here
    sweep, bench    every run of the matrix is composed, checked and built; tests/train runs them
    check           built; tests/contract holds all models to the laws
    list, doctor, new, --help   run
    tensorboard     its words are read by TensorBoard itself
    pip, venv, pytest, benchmarks   the files, extras and options that they name exist

Where a command in a sentence is cut short by an ellipsis, its name alone is looked at.  Pages in ELSEWHERE
have a separate test; here only the form of their commands is checked.  Code of the form key=value in the
pages of architectures and tasks is composed with that model or task; blocks of Python are run, those of a
page one after another.
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
ELSEWHERE = {
    "adding-a-model.md": "tests/train/runs/test_plugins.py and tests/train/commands/test_new.py",
    "scale.md": "tests/train/loop/test_scale.py",
}
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
    "algorithmic": ("task.length=6",),
    "chain": ("task.length=64",),
    "chomsky": ("task.length=12",),
    "induction": ("task.length=32",),
    "listops": ("task.min_length=5", "task.max_length=40", "task.max_depth=4", "task.samples=32"),
    "mqar": (),
    "needle": ("task.length=1024",),
    "pairs": (),
    "passkey": (),
    "recall": ("task.length=64",),
    "selective_copy": ("task.length=64", "task.remembered=4"),
}
TEXT_TASKS = ("lm", "needle", "babilong")  # those that read data.corpus
STORIES = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"


class Command(NamedTuple):
    page: Path
    words: tuple[str, ...]
    inline: bool = False

    @property
    def program(self) -> str:
        return Path(self.words[0]).name


# -- commands in the pages


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
    """Code in sentences; one that is broken over two lines is joined."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", sentences(text))]


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line, without prompts, comments and settings of the environment."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    for _, part in itertools.groupby(words, lambda word: word in ("&&", "|", ";", ">")):
        rest = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), part))
        if rest and rest[0] not in ("&&", "|", ";", ">"):
            yield tuple(rest)


def commands(page: Path) -> Iterator[Command]:
    text = page.read_text()
    for word, lines in blocks(text):
        if word not in ("", "indented", "sh", "bash", "console"):
            continue
        for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
            first = line.removeprefix("$ ").split(" ")[0]
            is_command = first in PROGRAMS or first.startswith(".venv/bin/")
            if is_command or word == "sh" or re.match(r"[A-Z_]+=\S* \S*python", line):
                for words in split(line):
                    if words[0] not in NEIGHBOURS:
                        yield Command(page, words)
    for code in inline(text):
        if re.match(r"(python -m zoo|zoo \w+ )", code) and "[" not in code and "COMMAND" not in code:
            yield Command(page, tuple(shlex.split(code)), inline=True)


def parse(command: Command) -> tuple[str, list[str]]:
    """The name of our command and its words; "" for a command of another program."""
    words = list(command.words)
    if command.program.startswith("python") and words[1:2] == ["-m"] and words[2].partition(".")[0] == "zoo":
        return (
            ("train", words[3:])
            if words[2] == "zoo.train"
            else (words[3] if words[3:] else "--help", words[4:])
        )
    if command.program == "zoo":
        return (words[1], words[2:]) if words[1:] else ("--help", [])
    return "", words


ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def command_id(command: Command) -> str:
    return f"{command.page.relative_to(ROOT)}: {shlex.join(command.words)}"


def test_commands_are_found() -> None:
    assert len(ALL) > 50
    assert {parse(command)[0] for command in ALL} > {"train", "sweep", "evaluate", "compare", "check", ""}


# -- composed as written


def compose_and_build(words: list[str]) -> DictConfig:
    """The checked configuration, its model built on the meta device; the free width, slow to solve, is 64."""
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
        [f"{key}={item}" for item in value.split(",")] if not value.startswith(("[", "{", "$")) else [word]
        for word in words
        for key, _, value in [word.partition("=")]
    ]
    return map(list, itertools.product(*several))


# -- run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of this session."""
    return tmp_path_factory.mktemp("runs")


class DocsFolder:
    """A folder with a little text, in which commands are run in this process."""

    def __init__(self, folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.runs, self.monkeypatch = folder, runs, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        monkeypatch.setenv("ZOO_DATA", str(folder / "data"))
        line = "The keeper of the zoo counts what she remembers, twice a day. She has a list. "
        for split_name in ("train", "val", "test"):
            (folder / "text" / split_name).mkdir(parents=True)
            for i in range(2):
                (folder / "text" / split_name / f"{i}.txt").write_text(f"{i}: {line * 10}")
        shutil.copytree(folder / "text", folder / "data" / "books")
        (folder / "data" / "babi").mkdir()
        for kind in ("train", "test"):
            stories = folder / "data" / "babi" / f"qa1_single-supporting-fact_{kind}.txt"
            stories.write_text(STORIES * 20)

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
        """The path of a run of two steps, trained once a session."""
        trained = self.runs / f"{model}-{task}"
        if not (trained / "metrics.json").is_file():
            self.call("train", at_size_nano([f"model={model}", *TASKS_OF_RUNS[task], f"run_dir={trained}"]))
        copy = self.folder / "runs" / task / model / "made"
        if not copy.exists():
            shutil.copytree(trained, copy)
        return str(copy.relative_to(self.folder))


TASKS_OF_RUNS = {"lm": ["task=lm"], "passkey": ["task=passkey", "task.form=compact"]}


@pytest.fixture
def docs_folder(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DocsFolder]:
    handlers = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    yield DocsFolder(tmp_path, runs, monkeypatch)
    for signal_number, handler in handlers.items():
        signal.signal(signal_number, handler)
    for name in ("", "zoo.train.commands.train"):
        logger = logging.getLogger(name)
        for sink in [sink for sink in logger.handlers if type(sink).__module__ == "logging"]:
            logger.removeHandler(sink)
            sink.close()


def at_size_nano(words: list[str]) -> list[str]:
    """The settings of the small run that stands for the requested one (see above)."""
    task = next((word[5:] for word in words if word.startswith("task=")), "lm")
    if any("induction" in word for word in words if word.startswith("experiment=")):
        task = "induction"
    small = [*SMALL, *SMALL_TASKS.get(task, ()), *(["task.eval_samples=8"] if task != "lm" else [])]
    if task not in TEXT_TASKS:
        small.remove("data.corpus=text")
    if task != "lm":
        small.remove("data.val_bytes=100")
    if task == "passkey" and "task.form=compact" in words:
        small.append("task.length=64")
    in_stages = any(
        word.startswith("data.curriculum.") for word in words
    )  # of which the last has this length
    small = [word for word in small if not (in_stages and word.startswith("task.length="))]
    taken = {word.partition("=")[0] for word in small}
    result = []
    for word in words:
        key, _, value = word.partition("=")
        is_number = key.startswith(("data.", "task.", "model.")) and NUMBER.fullmatch(value)
        is_number = is_number and not (in_stages and key == "task.length")
        if not (
            is_number
            or key in taken
            or key == "seed"
            or key.startswith("trainer.")
            or word.startswith(BACKENDS)
        ):
            result.append(word)
    result += [word for word in words if word.startswith("trainer.precision=")]
    return [*result, *small]


trained: set[tuple[str, ...]] = set()


def train(docs_folder: DocsFolder, words: list[str]) -> None:
    if {"--help", "--cfg"} & set(words):
        docs_folder.call("train", words)
        return
    if any(word.startswith("resume=") for word in words):
        rest = [word for word in words if not word.startswith(("resume=", "steps="))]
        docs_folder.call("train", [f"resume={docs_folder.run()}", "steps=3", *rest])
        return
    if any(word.startswith("model.base=") for word in words):
        rest = at_size_nano([word for word in words if not word.startswith(("model.base=", "data.corpus="))])
        docs_folder.call("train", [f"model.base={docs_folder.run()}", *rest, "run_dir=from-a-base"])
        return
    for run in combinations([word for word in words if word != "-m"]):
        paths = [word for word in run if not word.startswith(("run_dir=", "hydra."))]
        compose_and_build(paths)
        small = at_size_nano(paths)
        if tuple(sorted(small)) not in trained:
            trained.add(tuple(sorted(small)))
            docs_folder.call("train", [*small, f"run_dir=run-{len(trained)}"])


def evaluate(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.evaluate import parse_args

    made = f"run={docs_folder.run('rmt', 'lm')}"
    parse_args([made, *(word for word in words if "…" not in word and not word.startswith("run="))])
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
    docs_folder.call("evaluate", [f"run={docs_folder.run(model, task)}", *keys.values()])


def compare(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.compare import parse_args

    run = docs_folder.run()
    settings = [word for word in words if "=" in word and "…" not in word]
    parse_args([run, *settings])
    docs_folder.call(
        "compare", [run, *(word for word in settings if not word.startswith(("out=", "loss=", "baseline=")))]
    )


def generate(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.generate import parse_args

    keys = {word.partition("=")[0]: word for word in words if "…" not in word}
    run = docs_folder.run()
    if "prompt_file" in keys:
        Path("prompt.txt").write_text("The keeper ")
        keys["prompt_file"] = "prompt_file=prompt.txt"
    if "prompts" in keys:
        Path("prompts.txt").write_text("The keeper\nThe zoo\n")
    docs_folder.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The keeper ")))
    parse_args([*(word for key, word in keys.items() if key != "run"), f"run={run}"])
    docs_folder.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The keeper ")))
    docs_folder.call("generate", [*(keys | {"run": f"run={run}", "tokens": "tokens=4"}).values()])


def inspect(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.inspect import parse_args

    keys = {word.partition("=")[0]: word for word in words if "…" not in word}
    run = docs_folder.run("rmt", "passkey" if "sample" in keys else "lm")
    parse_args([*(keys | {"run": f"run={run}"}).values()])
    docs_folder.call("inspect", [*(keys | {"run": f"run={run}"}).values()])


def sweep(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.sweep import KEYS, parse_args
    from zoo.train.sweep.matrix import matrix_of_args
    from zoo.train.sweep.options import NAME_KEYS

    parse_args(words)
    shared = [word for word in words if word.partition("=")[0] not in {*KEYS} - {*NAME_KEYS}]
    base = [f"model.base={docs_folder.run()}" if w.startswith("model.base=") else w for w in shared]
    runs = parse_args(base)[1]
    if matrix_of_args(words):  # a slow test composes all of its runs
        runs = runs[:: max(1, len(runs) // 3)]
    for run in runs:
        compose_and_build(run)


def bench(docs_folder: DocsFolder, words: list[str]) -> None:
    if words[0].startswith("experiment="):
        from zoo.train.commands.bench import plan

        plan(words)
        return
    if words[0] == "peers":
        words = ["model=transformer", *words[1:]]
    for run in combinations(
        [word for word in words if not word.startswith(("lengths=", "rounds=", "csv=", "plot="))]
    ):
        compose_and_build(run)


def check(docs_folder: DocsFolder, words: list[str]) -> None:
    from zoo.train.commands.check import model_builder

    if "=" in words[0]:
        model_builder(words)()
    else:
        assert len(words[0].split(".")) > 1, f"expected package.module.Class, found {words[0]}"


def export(docs_folder: DocsFolder, words: list[str]) -> None:
    keys = {word.partition("=")[0]: word for word in words}
    docs_folder.call("export", [*(keys | {"run": f"run={docs_folder.run()}"}).values()])


def look_at(docs_folder: DocsFolder, words: list[str]) -> None:
    assert all(SETTING.fullmatch(word) for word in words), f"expected key=value, found {words}"


def listing(docs_folder: DocsFolder, words: list[str]) -> None:
    given = ["path=text" if word.startswith("path=") else word for word in words]
    docs_folder.call("list", [*(word for word in given if not word.startswith("size=")), "size=nano"])


RULES = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "generate": generate,
    "inspect": inspect,
    "sweep": sweep,
    "bench": bench,
    "check": check,
    "export": export,
    "import": look_at,
    "prepare": look_at,
    "list": listing,
}


@pytest.mark.parametrize("command", [command for command in ALL if parse(command)[0]], ids=command_id)
def test_command_of_ours(command: Command, docs_folder: DocsFolder) -> None:
    name, words = parse(command)
    if name in ("--help", "-h"):
        return
    if any("…" in word for word in words) and command.inline:
        words = []
    assert name in COMMANDS, f"no command {name!r}"
    if command.page.name in ELSEWHERE:
        assert all(SETTING.fullmatch(word) or re.fullmatch(r"[\w./-]+", word) for word in words)
    elif words == ["--help"]:
        docs_folder.call(name, words)
    elif not words and name not in ("list", "doctor", "train"):
        assert command.inline, "a command without its words"
    elif name in RULES:
        RULES[name](docs_folder, words)
    else:
        docs_folder.call(name, words)


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
def test_a_wrong_command_fails(line: str, docs_folder: DocsFolder) -> None:
    with pytest.raises((AssertionError, UserError, HydraException)):
        test_command_of_ours(Command(ROOT / "docs" / "page.md", tuple(shlex.split(line))), docs_folder)


def test_what_counts_as_a_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `python -m zoo\ncheck model=rmt` or `zoo compare`; `model.memory_tokens=2` is none.\n\n"
        "    A=1 python -m zoo.train model=rmt \\\n      size=tiny  # why\n\n"
        "```sh\npip install -e . && zoo list\n```\n```python\nzoo = 1\n```\n\n    zoo/  a folder\n"
    )
    assert [" ".join(command.words) for command in commands(page)] == [
        "python -m zoo.train model=rmt size=tiny",
        "pip install -e .",
        "zoo list",
        "python -m zoo check model=rmt",
    ]


@pytest.mark.parametrize("command", [command for command in ALL if not parse(command)[0]], ids=command_id)
def test_command_of_others(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = list(command.words)
    if command.program.startswith("python") and words[1] == "-m":
        program, words = words[2], words[3:]
    elif command.program.startswith("python"):
        program, words = words[1], words[2:]
    else:
        program, words = command.program, words[1:]
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
                group_choice = [] if any(word.startswith(f"{group}=") for word in words) else [owner]
                yield (*group_choice, *words)


SETTINGS = list(dict.fromkeys(words for page in PAGES for words in settings_in(page)))


@pytest.mark.parametrize("words", SETTINGS, ids=" ".join)
def test_settings_in_sentences(words: tuple[str, ...]) -> None:
    compose_and_build(list(words))


@cache
def snippets(page: Path) -> list[str]:
    return ["\n".join(lines) for word, lines in blocks(page.read_text()) if word == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_python(page: Path, docs_folder: DocsFolder) -> None:
    if page.name in ELSEWHERE:
        for snippet in snippets(page):
            compile(snippet, str(page), "exec")
        return
    run, scope = docs_folder.run(), {"__name__": "snippets"}
    if any('"exported/' in snippet for snippet in snippets(page)):
        docs_folder.call("export", [f"run={run}", "to=exported"])
    for snippet in snippets(page):
        exec(compile(re.sub(r"runs/lm/[\w/.-]+", run, snippet), str(page), "exec"), scope)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_have_targets(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", sentences(page.read_text())):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost, f"{page.relative_to(ROOT)} has dead links: {', '.join(lost)}"
