"""`zoo doctor`: versions, devices, backends, plug-ins and data of this machine, and how to mend what fails.

Exit code 0 where all that the zoo needs is there; what is optional and absent is said with its reason. Exit
code 1 for a problem: a package older than the zoo needs, faiss-cpu and faiss-gpu together, a plug-in that
can't be imported, a folder that can't be written.

Only Python's own modules are imported up here: it must run where others don't.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import zoo
from zoo.errors import UserError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
KERNELS = ("mamba-ssm", "causal-conv1d")
HOUSE = Path(zoo.__file__).parents[1]


class Finding(NamedTuple):
    name: str
    said: str
    problem: bool = False


def main() -> None:
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if words:
        print(f"error: doctor: expected no further words, found {words[0]!r}", file=sys.stderr)
        sys.exit(2)
    problems = []
    for title, look in SECTIONS.items():
        print(title, flush=True)
        for finding in guarded(title, look):
            mark = "PROBLEM: " if finding.problem else ""
            print(f"  {finding.name:<18}{mark}{finding.said}", flush=True)
            problems += [finding] * finding.problem
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)}:")
        for finding in problems:
            print(f"  {finding.name}: {finding.said}")
        sys.exit(1)
    print("all that the zoo needs is here")


def guarded(title: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What one section finds; that it can't even look is a problem, not the end."""
    try:
        yield from look()
    except Exception as error:  # a package that is missing, or broken in a way of its own
        yield Finding(title, f"{type(error).__name__}: {error}".partition("\n")[0], problem=True)


# -- versions


def versions() -> Iterator[Finding]:
    yield Finding("zoo", f"{version('zoo') or 'not installed, a checkout'}{where()}")
    yield Finding("python", f"{platform.python_version()} on {platform.machine()} {platform.system()}")
    for needed in requirements():
        found = version(needed.name)
        if found and needed.specifier.contains(found, prereleases=True):
            yield Finding(needed.name, found)
        else:
            yield Finding(
                needed.name,
                f"expected {needed.specifier}, found {found or 'none'}: pip install '{needed}'",
                problem=True,
            )


def version(package: str) -> str:
    """Of an installed package, "" if it isn't."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def where() -> str:
    try:
        from zoo.train.runs.provenance import commit
    except Exception:  # said below, of the package that is at fault
        return ""
    found = commit()
    return f" at commit {found[:12]}{found[40:]}" if found else ""


def requirements() -> "list[Requirement]":
    """What the zoo needs: of the checkout, or of the installed package; extras left out."""
    from packaging.requirements import Requirement

    project = HOUSE / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        lines = importlib.metadata.requires("zoo") or []
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


# -- devices


def devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", f"{cores} cores for this process, torch uses {torch.get_num_threads()} threads")
    if torch.version.cuda is None and torch.version.hip is None:
        yield Finding("cuda", f"no: torch {torch.__version__} is built without it; {CUDA}")
    elif not torch.cuda.is_available():
        yield Finding("cuda", "no: torch finds no GPU or no driver for CUDA " + str(torch.version.cuda))
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        yield Finding(
            f"cuda:{number}",
            f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}, "
            f"CUDA {torch.version.cuda}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
        )
    if platform.system() == "Darwin":
        yield Finding("mps", "live" if torch.backends.mps.is_available() else "no: not on this machine")


CUDA = 'with a GPU: pip install -c constraints/cuda.txt -e ".[cuda]"'


# -- backends


def backends() -> Iterator[Finding]:
    yield Finding("torch", "live: every model is complete with it")
    yield faiss()
    yield from (kernel(package) for package in KERNELS)
    compilers = [found for name in (os.environ.get("CXX", "g++"), "clang++") if (found := shutil.which(name))]
    said = f"live, with {compilers[0]}" if compilers else "no: it needs a C++ compiler, g++ or clang++"
    yield Finding("torch.compile", said)


def faiss() -> Finding:
    """For `backend: faiss` of the models that retrieve."""
    there = [f"{package} {version(package)}" for package in FAISS if version(package)]
    try:
        found = look_up("zoo.memory.retrieval.faiss_index:load_faiss")()
    except UserError as error:
        return Finding("faiss", f"no: {reason(error)}", problem=bool(there))
    gpus = getattr(found, "get_num_gpus", lambda: 0)()
    return Finding("faiss", f"live: {' and '.join(there)}, {gpus} GPUs (backend: faiss)")


def kernel(package: str) -> Finding:
    """For `backend: mamba_ssm` of the state-space models; broken, it is a problem where a GPU is."""
    import torch

    try:
        look_up("zoo.memory.state_space.kernels:require")(package)
    except UserError as error:
        broken = bool(version(package)) and torch.cuda.is_available()
        return Finding(package, f"no: {reason(error)}", problem=broken)
    if not torch.cuda.is_available():
        return Finding(package, f"no: {version(package)} is installed, but its kernels need a CUDA device")
    return Finding(package, f"live: {version(package)} (backend: mamba_ssm)")


def reason(error: UserError) -> str:
    return str(error).removeprefix("backend: ")


def look_up(name: str) -> Callable[..., object]:
    """A backend's own look at what is installed, found when it is called, as the commands are."""
    room, _, function = name.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(room), function)
    return found


# -- plug-ins and data


def extensions() -> Iterator[Finding]:
    from zoo import plugins

    for point in importlib.metadata.entry_points(group=plugins.GROUP):
        why = plugins.broken(point)
        yield Finding(point.name, f"left out: {why}" if why else f"{point.value}", problem=bool(why))
    if folder := plugins.own_folder():
        yield Finding("configs", f"of this folder: {len(list(folder.glob('*/*.yaml')))} yaml files")
    for group in plugins.CHOICES:
        first: dict[str, str] = {}
        for choice in plugins.choices(group):
            owner = first.setdefault(choice.name, choice.owner)
            if owner != choice.owner:
                yield Finding(
                    f"{group}={choice.name}",
                    f"{owner}'s counts, {choice.owner}'s stands behind it: give that another name",
                    problem=True,
                )
            elif owner != "zoo" and (why := unbuilt(group, choice.name)):
                yield Finding(f"{group}={choice.name}", f"{owner}'s can't be used: {why}", problem=True)


def unbuilt(group: str, name: str) -> str:
    """Why a yaml of someone else's makes no model, task or configuration; "" where it does."""
    import torch
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from zoo.errors import one_line
    from zoo.train.runs import build
    from zoo.train.runs.config import compose

    try:
        cfg = compose([f"{group}={name}", *(["size=nano"] if group != "size" else [])])
        with torch.device("meta"):
            if group == "task":
                build.task(cfg)
            elif group == "model":
                build.model(cfg)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return one_line(error)
    return ""


def data() -> Iterator[Finding]:
    from zoo.train.commands.list import lying
    from zoo.train.corpora.cache import cache_folder
    from zoo.train.corpora.catalog import LAYOUTS

    root = Path(os.environ.get("ZOO_DATA", "data"))
    found = [name for name in LAYOUTS if lying(name, root)]
    yield Finding("corpora", f"stdlib, and below {root}: {', '.join(found) or 'none'} (ZOO_DATA names it)")
    for name, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free"
        if os.access(there, os.W_OK):
            yield Finding(name, f"{folder}: {free}")
        else:
            yield Finding(name, f"{folder} can't be written", problem=True)


SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": versions,
    "devices": devices,
    "backends": backends,
    "plug-ins": extensions,
    "data": data,
}
