"""`zoo COMMAND …` (also `python -m zoo`): one table of commands, each imported only when it is called."""

import importlib
import importlib.util
import os
import sys

from zoo.errors import nearest

COMMANDS = {  # command: (where it is, what it does, an example)
    "train": (
        "zoo.train.commands.train:main",
        "train one architecture, or go on with a run",
        "model=rmt size=tiny",
    ),
    "sweep": (
        "zoo.train.commands.sweep:main",
        "train a matrix of runs",
        "model=rmt,mamba size=micro seeds=0:5",
    ),
    "evaluate": (
        "zoo.train.commands.evaluate:main",
        "a trained run on other lengths and tasks",
        "run=runs/… lengths=64,128",
    ),
    "compare": (
        "zoo.train.commands.compare:main",
        "finished runs side by side",
        "runs/lm baseline=transformer",
    ),
    "generate": (
        "zoo.train.commands.generate:main",
        "let a trained run write on",
        'run=runs/… prompt="Once upon"',
    ),
    "export": ("zoo.train.commands.export:main", "a run as safetensors and json", "run=runs/… to=my_model"),
    "import": (
        "zoo.train.commands.import_weights:main",
        "a run from an export or published weights",
        "from=my_model run_dir=runs/mine",
    ),
    "bench": (
        "zoo.train.commands.bench:main",
        "speed and memory of models side by side",
        "model=rmt,mamba size=tiny",
    ),
    "check": ("zoo.train.commands.check:main", "hold a model to the laws", "my_pkg.MyModel width=32"),
    "new": ("zoo.train.commands.new:main", "write a package with a model of your own", "my_model"),
    "list": ("zoo.train.commands.list:main", "models, tasks and corpora that are there", "size=tiny"),
    "doctor": ("zoo.train.commands.doctor:main", "what works on this machine, and why not", ""),
}
COMPOSED = ("train", "sweep", "check", "bench")  # whose words Hydra can complete
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own classes are, as under `python -m zoo`
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        call(name, sys.argv[2:])
    elif name in COMPLETION:
        complete(sys.argv[2:])
    elif name in ("-h", "--help", "help"):
        asked = sys.argv[2] if name == "help" and len(sys.argv) > 2 else ""
        if asked in COMMANDS:
            call(asked, ["--help"])
        else:
            print(overview())
    else:
        print(overview())
        print(
            f"error: unknown command {name!r}; expected one of {', '.join(COMMANDS)}"
            f"{nearest(name, COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)


def call(name: str, words: list[str]) -> None:
    room, _, function = COMMANDS[name][0].partition(":")
    sys.argv = [f"zoo {name}", *words]
    if name == "train":  # a rank of several devices is started as this process's main module: without "train"
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("zoo.train.__main__")
    try:
        getattr(importlib.import_module(room), function)()
    except KeyboardInterrupt:  # in a command that has nothing to save
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def overview() -> str:
    """For someone who sees it for the first time."""
    lines = [f"  {name:<10}{says:<46}{example}".rstrip() for name, (_, says, example) in COMMANDS.items()]
    return "\n".join(
        [
            "Train, check and compare language models with a memory.\n",
            f"  {'zoo COMMAND …':<56}for example\n",
            *lines,
            "",
            "Begin with:        zoo train model=rmt           (minutes on a laptop, nothing to download)",
            "All about one:     zoo COMMAND --help",
            'Shell completion:  eval "$(zoo -sc install=bash)"   or   zoo -sc install=fish | source',
            "From a checkout that isn't installed, say `python -m zoo` for `zoo`.",
        ]
    )


def complete(words: list[str]) -> None:
    """Completion: of commands by ourselves, of what stands behind one by Hydra, as if it were the program."""
    line = os.environ.get("COMP_LINE", "")
    typed = line.split(" ")[1:]
    if any(word.startswith("query=") for word in words):
        if len(typed) < 2:
            print(" ".join(name for name in COMMANDS if name.startswith("".join(typed))))
            return
        if typed[0] not in COMPOSED:
            return
        os.environ["COMP_LINE"] = " ".join(["zoo", *typed[1:]])
    sys.argv = ["zoo", "-sc", *words]
    importlib.import_module("zoo.train.commands.train").main()


if __name__ == "__main__":
    main()
