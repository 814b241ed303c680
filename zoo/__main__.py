"""`zoo COMMAND …` (also `python -m zoo`): one table of commands, each imported only when it is called."""

import importlib
import sys

COMMANDS = {
    "train": ("zoo.train.cli:main", "train one architecture: zoo train model=rmt size=tiny"),
    "evaluate": (
        "zoo.train.evaluate:main",
        "accuracy of a trained run by length: zoo evaluate run=runs/… lengths=64,128",
    ),
    "check": ("zoo.train.check:main", "hold a model to the laws: zoo check my_pkg.MyModel width=32 …"),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        room, _, function = COMMANDS[name][0].partition(":")
        sys.argv = [f"zoo {name}", *sys.argv[2:]]
        getattr(importlib.import_module(room), function)()
        return
    print("zoo COMMAND …\n")
    for command, (_, says) in COMMANDS.items():
        print(f"  {command:<10}{says}")
    if name not in ("-h", "--help", "help"):
        print(f"error: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
