"""`zoo COMMAND …`, also `python -m zoo`: a table of commands, each imported only when called."""

import importlib
import importlib.util
import os
import sys
from typing import NamedTuple

from zoo.errors import closed_pipe_exits, nearest, refuse_other_systems, tolerate_any_text
from zoo.terminal import output_width, reflow


class Command(NamedTuple):
    target: str  # module:function
    summary: str
    example: str


COMMANDS = {
    "train": Command(
        "zoo.train.commands.train:main",
        "train an architecture, or resume a run",
        "model=rmt size=tiny",
    ),
    "prepare": Command(
        "zoo.train.commands.prepare:main",
        "a text as the tokens of a tokenizer",
        "data.corpus=book.txt tokenizer=… to=tokens",
    ),
    "sweep": Command(
        "zoo.train.commands.sweep:main",
        "train a matrix of runs",
        "model=rmt,mamba size=micro seeds=0:5",
    ),
    "evaluate": Command(
        "zoo.train.commands.evaluate:main",
        "a trained run on other lengths and tasks",
        "run=runs/… lengths=64,128",
    ),
    "inspect": Command(
        "zoo.train.commands.inspect:main",
        "what a trained run's memory does with a text",
        'run=runs/… prompt="Once upon"',
    ),
    "compare": Command(
        "zoo.train.commands.compare:main",
        "finished runs side by side",
        "runs/lm baseline=transformer",
    ),
    "generate": Command(
        "zoo.train.commands.generate:main",
        "let a trained run continue a text",
        'run=runs/… prompt="Once upon"',
    ),
    "export": Command(
        "zoo.train.commands.export:main",
        "a run as safetensors and json",
        "run=runs/… to=my_model",
    ),
    "import": Command(
        "zoo.train.commands.import_weights:main",
        "a run from an export or published weights",
        "from=my_model run_dir=runs/mine",
    ),
    "bench": Command(
        "zoo.train.commands.bench:main",
        "speed and memory of models side by side",
        "model=rmt,mamba size=tiny",
    ),
    "check": Command(
        "zoo.train.commands.check:main",
        "check a model against the laws",
        "my_pkg.MyModel width=32",
    ),
    "new": Command(
        "zoo.train.commands.new:main",
        "write a package for a new model",
        "my_model",
    ),
    "list": Command(
        "zoo.train.commands.list:main",
        "available models, tasks and corpora",
        "size=tiny",
    ),
    "doctor": Command(
        "zoo.train.commands.doctor:main",
        "what works on this machine, and why not",
        "",
    ),
}
HYDRA_COMMANDS = ("train", "sweep", "check", "bench")  # Hydra completes their arguments
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    refuse_other_systems()
    tolerate_any_text()
    with closed_pipe_exits():
        dispatch()


def dispatch() -> None:
    """Calls what the command line names."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # for a user's classes, as under `python -m zoo`
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        call(name, arguments)
    elif name in COMPLETION:
        complete(arguments)
    elif name == "help" and arguments and arguments[0] in COMMANDS:
        call(arguments[0], ["--help"])
    elif name in ("-h", "--help", "help"):
        print(overview())
    else:
        print(overview())
        expected = f"expected one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {expected}{nearest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def call(name: str, arguments: list[str]) -> None:
    """Import a command and run it, with a command line of its arguments."""
    module, _, function = COMMANDS[name].target.partition(":")
    if any(argument in ("-h", "--help") for argument in arguments):
        print(importlib.import_module("zoo.train.commands.help").page(module, arguments))
        sys.exit(0)
    sys.argv = [f"zoo {name}", *arguments]
    if name == "train":  # a further rank restarts this process's main module, without the argument "train"
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("zoo.train.__main__")
    try:
        getattr(importlib.import_module(module), function)()
    except KeyboardInterrupt:  # in a command that has nothing to save
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def overview() -> str:
    """The help of `zoo` without a command; in a narrow terminal without examples."""
    rows = [
        f"  {name:<10}{command.summary:<46}{command.example}".rstrip() for name, command in COMMANDS.items()
    ]
    title = f"  {'zoo COMMAND …':<56}for example\n"
    width = output_width(max(map(len, rows)))
    if width < max(map(len, rows)):
        rows, title = [row[:58].rstrip() for row in rows], "  zoo COMMAND …\n"
    lines = [
        "Train, check and compare language models with a memory.\n",
        title,
        *rows,
        "",
        "First steps:       zoo train model=rmt           (minutes on a laptop, nothing to download)",
        "Help:              zoo COMMAND --help",
        'Shell completion:  eval "$(zoo -sc install=bash)"   or   zoo -sc install=fish | source',
        "In a checkout that isn't installed, `python -m zoo` replaces `zoo`.",
    ]
    return reflow("\n".join(lines), width)


def complete(arguments: list[str]) -> None:
    """Complete the name of a command, or leave its arguments to Hydra as if the command were the program."""
    typed = os.environ.get("COMP_LINE", "").split(" ")[1:]
    if any(argument.startswith("query=") for argument in arguments):
        if len(typed) < 2:
            print(" ".join(name for name in COMMANDS if name.startswith("".join(typed))))
            return
        if typed[0] not in HYDRA_COMMANDS:
            return
        os.environ["COMP_LINE"] = " ".join(["zoo", *typed[1:]])
    sys.argv = ["zoo", "-sc", *arguments]
    importlib.import_module("zoo.train.commands.train").main()


if __name__ == "__main__":
    main()
