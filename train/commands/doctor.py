"""`zoo doctor`: versions, devices, backends, plug-ins and data of this machine, and how to fix what fails.

Exit code 0 if everything that the zoo requires works; optional parts that are absent are listed with the
reason. Exit code 1 for a problem: a package older than required, faiss-cpu and faiss-gpu together, a plug-in
that can't be imported, a folder that can't be written.

Only Python's own modules are imported up here: doctor must run where other packages are broken.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import zoo
from zoo.errors import UserError, counted
from zoo.terminal import output_width, wrap
from zoo.train.commands.cli import command

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
KERNELS = ("mamba-ssm", "causal-conv1d")
ROOT = Path(zoo.__file__).parents[1]


class Finding(NamedTuple):
    name: str
    text: str
    problem: bool = False


@command
def main(args: Sequence[str] = ()) -> int:
    if args:
        raise UserError(f"doctor: expected no further arguments, found {args[0]!r}")
    problems = []
    for title, inspect in SECTIONS.items():
        print(title, flush=True)
        for finding in guarded(title, inspect):
            mark = "PROBLEM: " if finding.problem else ""
            print(entry(finding.name, f"{mark}{finding.text}"), flush=True)
            if finding.problem:
                problems.append(finding)
    if not problems:
        print("all that the zoo needs is here")
        return 0
    print(f"{counted(len(problems), 'problem')}:")
    for finding in problems:
        print(entry(f"{finding.name}:", finding.text))
    return 1


def entry(name: str, text: str) -> str:
    """A line of the report, or several where the terminal is narrow: they break at words."""
    return wrap(text, output_width(sys.maxsize), f"  {name:<17} ", " " * 20)


def guarded(title: str, inspect: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one section; an exception in it is a problem too."""
    try:
        yield from inspect()
    except Exception as error:  # a package that is missing or broken
        yield Finding(title, f"{type(error).__name__}: {error}".partition("\n")[0], problem=True)


# -- versions


def versions() -> Iterator[Finding]:
    yield Finding("zoo", f"{version('zoo') or 'not installed, a checkout'}{commit_suffix()}")
    yield Finding("python", f"{platform.python_version()} on {platform.machine()} {platform.system()}")
    for requirement in requirements():
        installed = version(requirement.name)
        if installed and requirement.specifier.contains(installed, prereleases=True):
            yield Finding(requirement.name, installed)
        else:
            text = f"expected {requirement.specifier}, found {installed or 'none'}"
            yield Finding(requirement.name, f"{text}: pip install '{requirement}'", problem=True)


def version(package: str) -> str:
    """An installed package's version, "" if it isn't installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit_suffix() -> str:
    try:
        from zoo.train.runs.checkout import commit
    except Exception:  # the package at fault is reported below
        return ""
    revision = commit()
    return f" at commit {revision[:12]}{revision[40:]}" if revision else ""


def requirements() -> "list[Requirement]":
    """Requirements of the checkout, or of the installed package, without extras."""
    from packaging.requirements import Requirement

    project = ROOT / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        lines = importlib.metadata.requires("zoo") or []
    parsed = [Requirement(line) for line in lines]
    return [entry for entry in parsed if entry.marker is None or entry.marker.evaluate({"extra": ""})]


# -- devices


def devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", f"{cores} cores for this process, torch uses {torch.get_num_threads()} threads")
    if torch.version.cuda is None and torch.version.hip is None:
        yield Finding("cuda", f"no: torch {torch.__version__} is built without it; {CUDA}")
    elif not torch.cuda.is_available():
        yield Finding("cuda", "no: torch finds no GPU or no driver for CUDA " + str(torch.version.cuda))
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Finding(
            f"cuda:{index}",
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
    yield fla()
    yield triton()
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), None)
    text = f"live, with {compiler}" if compiler else "no: it needs a C++ compiler, g++ or clang++"
    yield Finding("torch.compile", text)


def faiss() -> Finding:
    """For `backend: faiss` of the retrieval models."""
    installed = [f"{package} {version(package)}" for package in FAISS if version(package)]
    try:
        module = backend_check("zoo.memory.retrieval.faiss_package:load_faiss")()
    except UserError as error:
        return Finding("faiss", f"no: {reason(error)}", problem=bool(installed))
    gpus = getattr(module, "get_num_gpus", lambda: 0)()
    return Finding("faiss", f"live: {' and '.join(installed)}, {gpus} GPUs (backend: faiss)")


def kernel(package: str) -> Finding:
    """For `backend: mamba_ssm` of the state-space models."""
    require = backend_check("zoo.memory.kernel_packages:require")
    return live_on_cuda(package, lambda: require(package), "backend: mamba_ssm")


def fla() -> Finding:
    """For `backend: fla` of the linear recurrences."""
    kernels = importlib.import_module("zoo.memory.fast_weights.fla_kernels")
    return live_on_cuda(kernels.PACKAGE, kernels.load_fla, f"backend: fla, {kernels.STATUS}")


def live_on_cuda(package: str, load: Callable[[], object], use: str) -> Finding:
    """A broken package of CUDA kernels is a problem if there is a GPU."""
    import torch

    try:
        load()
    except UserError as error:
        broken = bool(version(package)) and torch.cuda.is_available()
        return Finding(package, f"no: {reason(error)}", problem=broken)
    if not torch.cuda.is_available():
        return Finding(package, f"no: {version(package)} is installed, but its kernels need a CUDA device")
    return Finding(package, f"live: {version(package)} ({use})")


def triton() -> Finding:
    """For `backend: triton` of Mamba, Samba and Jamba."""
    import torch

    try:
        backend_check("zoo.memory.kernel_packages:require")("triton")
    except UserError as error:
        return Finding("triton", f"no: {reason(error)}")
    if not torch.cuda.is_available():
        return Finding("triton", f"no: {version('triton')} is installed, but its kernels need a CUDA device")
    note = backend_check("zoo.memory.state_space.kernels:scan_note")("triton", torch.device("cuda"))
    return Finding("triton", f"live: {version('triton')}; {note}")


def reason(error: UserError) -> str:
    return str(error).removeprefix("backend: ")


def backend_check(name: str) -> Callable[..., object]:
    """The function with which a backend itself checks its package, "module:function"."""
    module, _, function = name.partition(":")
    check: Callable[..., object] = getattr(importlib.import_module(module), function)
    return check


# -- plug-ins and data


def extensions() -> Iterator[Finding]:
    from zoo import plugins

    for point in importlib.metadata.entry_points(group=plugins.ENTRY_POINTS):
        reason = plugins.import_problem(point)
        yield Finding(point.name, f"left out: {reason}" if reason else point.value, problem=bool(reason))
    if folder := plugins.local_configs():
        yield Finding("configs", f"of this folder: {len(list(folder.glob('*/*.yaml')))} yaml files")
    for group in plugins.CONFIG_GROUPS:
        first: dict[str, str] = {}
        for choice in plugins.choices(group):
            owner = first.setdefault(choice.name, choice.owner)
            if owner != choice.owner:
                yield Finding(
                    f"{group}={choice.name}",
                    f"{owner}'s counts, {choice.owner}'s comes after it: give that another name",
                    problem=True,
                )
            elif owner != "zoo" and (error := build_error(group, choice.name)):
                yield Finding(f"{group}={choice.name}", f"{owner}'s can't be used: {error}", problem=True)


def build_error(group: str, name: str) -> str:
    """Why a plug-in's yaml builds no model, task or configuration; "" if it builds one."""
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
    from zoo.train.corpora.cache import cache_folder
    from zoo.train.corpora.layouts import existing_corpora

    root = Path(os.environ.get("ZOO_DATA", "data"))
    names = existing_corpora(root)
    yield Finding("corpora", f"stdlib, and below {root}: {', '.join(names) or 'none'} (ZOO_DATA names it)")
    for name, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB free"
        if existing.is_dir() and os.access(existing, os.W_OK):
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
