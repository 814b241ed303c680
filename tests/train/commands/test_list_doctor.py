"""What `zoo`, `zoo list` and `zoo doctor` say, and what they refuse."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from zoo import __main__ as command
from zoo import plugins
from zoo.memory.retrieval import faiss_package
from zoo.models.rmt import RMT
from zoo.train.commands import doctor
from zoo.train.commands import list as listing

ROOT = Path(__file__).parents[3]


class Ran:
    """A command in this process: its exit code and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *words: str) -> tuple[Any, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["zoo", *words])
        code: Any = 0
        try:
            command.main()
        except SystemExit as left:
            code = left.code or 0
        return (code, *self.capsys.readouterr())


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Ran(capsys, monkeypatch)


# -- zoo


def test_every_command_is_there_and_says_how_it_is_used(ran: Ran) -> None:
    code, out, err = ran("--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 110
    for name, (where, says, example) in command.COMMANDS.items():
        room, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(room), function))
        assert f"  {name:<10}{says}" in out
        assert example in out
        if name != "train":  # Hydra's, held in test_cli.py
            assert f"zoo {name}" in ran(name, "--help")[1]
            assert ran("help", name) == ran(name, "--help")


def test_help_among_other_words(ran: Ran) -> None:
    assert ran("evaluate", "run=nowhere", "--help") == ran("help", "evaluate")
    assert ran("bench", "model=rmt", "-h") == ran("bench", "--help")
    code, out, err = ran("bench", "peers", "size=nano", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("`zoo bench peers")


def test_an_unknown_command(ran: Ran) -> None:
    code, out, err = ran("doktor")
    assert (code, out) == (2, ran("--help")[1])
    assert err.startswith("error: unknown command 'doktor'; expected one of train")
    assert err.endswith("did you mean doctor?\n")


def test_help_imports_nothing_of_weight() -> None:
    asks = "import sys; sys.argv[1:] = ['--help']\nfrom zoo.__main__ import main\nmain(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "hydra", "numpy"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("zoo ", set(command.COMMANDS)),
        ("zoo s", {"sweep"}),
        ("zoo train model=rm", {"model=rmt", "model=rmt_xl"}),
        ("zoo bench size=mi", {"size=micro"}),
        ("zoo doctor ", set()),
    ],
)
def test_completion(ran: Ran, monkeypatch: pytest.MonkeyPatch, line: str, offers: set[str], zoo: Any) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    code, out, err = ran("-sc", "query=bash")
    assert (code, err) == (0, "")
    assert set(out.split()) == offers


def test_completion_is_installed_for_the_command(ran: Ran, zoo: Any) -> None:
    code, out, _ = ran("-sc", "install=bash")
    assert code == 0
    assert out.rstrip().endswith("-F hydra_bash_completion zoo")


def test_own_classes_are_found_behind_everything_else(ran: Ran, tmp_path: Path, monkeypatch: Any) -> None:
    """As under `python -m zoo`, but so that nothing is hidden by a folder's own modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    ran("--help")
    assert sys.path[-1] == str(tmp_path)


# -- zoo list


def test_all_that_is_there_is_listed(ran: Ran, zoo: Any) -> None:
    (zoo.folder / "data/wikitext-2").mkdir(parents=True)
    (zoo.folder / "data/wikitext-2/train.txt").write_text("text")
    code, out, err = ran("list", "size=nano")
    assert (code, err) == (0, "")
    assert "can't be" not in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for group in ("model", "task"):
        assert {path.stem for path in ROOT.glob(f"configs/{group}/*.yaml")} <= set(rows)
    said = "rmt 256 17,632 at segments ∞ Bulatov et al. 2022, 2207.06881 yes 2: cell, gpt2_model"
    assert " ".join(rows["rmt"].split()) == said
    assert " 0 " in rows["transformer"]
    assert " no memory " in rows["transformer"]
    assert " anywhere " in rows["mamba"]
    assert rows["transformer_xl"].split()[5] == "48"
    assert rows["lm"].split()[1:5] == ["bits", "per", "byte", "257"]
    assert "yes: wikitext-2/train.txt" in rows["wikitext-2"]
    assert "no: expected wikilong" in rows["wikilong"]


def test_a_section_alone(ran: Ran, zoo: Any) -> None:
    code, out, _ = ran("list", "corpora", "data.root=elsewhere")
    assert code == 0
    assert "below data.root=elsewhere" in out
    assert "models at" not in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["modles"], "list: expected models, tasks, corpora or key=value, found 'modles'"),
        (["size=huge"], "Could not find 'size/huge'"),
    ],
)
def test_a_slip_in_list(ran: Ran, zoo: Any, words: list[str], says: str) -> None:
    code, out, err = ran("list", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_folder_s_model_is_listed_and_one_that_fails_does_not_hide_others(zoo: Any) -> None:
    (zoo.folder / "configs/model").mkdir(parents=True)
    text = (ROOT / "configs/model/rmt.yaml").read_text()
    (zoo.folder / "configs/model/mine.yaml").write_text(text.replace("Bulatov et al. 2022", "Doe 2031"))
    (zoo.folder / "configs/model/lost.yaml").write_text("_target_: nowhere.Model\n")
    (zoo.folder / "configs/model/rmt.yaml").write_text("_target_: nowhere.Model\n")
    words = ["size=nano"]
    choices = {name: choice for choice, name in listing.choices_of("model", words)}
    assert {"mine (configs)", "lost (configs)", "rmt"} <= set(choices)
    assert "rmt (configs)" not in choices  # the zoo's counts
    mine, lost, ours = (
        listing.model_row(choices[name], words) for name in ("mine (configs)", "lost (configs)", "rmt")
    )
    assert (mine.paper, mine.parameters, mine.golden) == ("Doe 2031, 2207.06881", "17,632", "-")
    assert mine[:4] == ours[:4]
    assert lost.golden.startswith("can't be built: model: can't import nowhere.Model")


@pytest.mark.parametrize(
    ("text", "paper"),
    [
        ("# Gu & Dao 2023, arXiv:2312.00752. The channels", "Gu & Dao 2023, 2312.00752"),
        ("# The baseline: Xiao et al. 2024, arXiv:2309.17453.\nx: 1", "Xiao et al. 2024, 2309.17453"),
        ("# Vaswani et al. 2017, LLaMA-shaped.", "Vaswani et al. 2017"),
        ("# An idea of ours. More of it.", "An idea of ours"),
        ("x: 1", "-"),
    ],
)
def test_papers(text: str, paper: str) -> None:
    assert listing.paper_of(text) == paper


def test_every_golden_case_belongs_to_a_model() -> None:
    """Models of one family share theirs."""
    models = [choice for choice in plugins.choices("model") if choice.owner == "zoo"]
    patterns = {choice.name: listing.golden_pattern(choice) for choice in models}
    kinds = listing.golden_kinds()
    assert [kind for kind in kinds if not any(pattern.match(kind) for pattern in patterns.values())] == []
    counts = {choice.name: listing.golden(choice).partition(":")[0] for choice in models}
    for name, pattern in patterns.items():
        matching = sum(bool(pattern.match(kind)) for kind in kinds)
        assert counts[name] == (str(matching) if matching else "-"), name
    assert all(counts[choice.name] != "-" for choice in models if listing.GOLDEN.search(choice.text))


@pytest.mark.parametrize(
    ("promise", "says"), [(True, "yes"), (False, "no"), (("memory",), "memory"), (("a", "b"), "a, b")]
)
def test_traits_in_words(promise: Any, says: str) -> None:
    with torch.device("meta"):
        model = RMT(9, 8, depth=1, width=8, heads=2, mlp_width=8, memory_tokens=2)
    model.learns_through_memory = promise
    assert listing.gradient(model) == says
    model.mixes_rows_in_training = True
    assert listing.gradient(model) == f"{says}, rows mix"
    model.remembers = False
    assert listing.gradient(model) == "no memory"


# -- zoo doctor


def install(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch, version: str = "9.9") -> None:
    """What pip writes of a package, without its modules."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_machine_in_order(ran: Ran, zoo: Any) -> None:
    code, out, err = ran("doctor")
    assert (code, err) == (0, ""), out
    assert out.endswith("all that the zoo needs is here\n")
    for name in ("python", "torch", "lightning", "faiss", "mamba-ssm", "fla-core", "cpu", "cache"):
        assert f"\n  {name:<18}" in out
    assert f"  {'torch':<18}{torch.__version__}" in out


def test_both_packages_of_faiss(ran: Ran, zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("faiss-cpu", "faiss-gpu"):
        install(tmp_path / "site", package, monkeypatch)
    faiss_package.load_faiss.cache_clear()
    code, out, _ = ran("doctor")
    assert code == 1
    line = next(line for line in out.splitlines() if line.startswith("  faiss "))
    assert "PROBLEM: no: expected one package of faiss, found faiss-cpu and faiss-gpu" in line
    assert "pip uninstall -y faiss-cpu faiss-gpu, then pip install" in line
    assert "1 problem:" in out


def test_faiss_absent_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda package: "")
    monkeypatch.setattr(faiss_package, "_installed", lambda package: False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    faiss_package.load_faiss.cache_clear()
    finding = doctor.faiss()
    assert not finding.problem
    assert finding.text.startswith("no: expected the package faiss-cpu: pip install faiss-cpu")
    monkeypatch.setattr(doctor, "version", lambda package: "1.14" * (package == "faiss-cpu"))
    assert doctor.faiss().problem  # it is installed, and broken


@pytest.mark.parametrize(("gpu", "there"), [(True, False), (False, True), (True, True)])
def test_kernels_that_do_not_work(monkeypatch: pytest.MonkeyPatch, gpu: bool, there: bool) -> None:
    monkeypatch.setattr(doctor, "version", lambda package: "2.3.1" * there)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    finding = doctor.kernel("mamba-ssm")
    assert "expected the package mamba-ssm: pip install --no-build-isolation" in finding.text
    assert finding.problem == (gpu and there)


def test_kernels_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "mamba_ssm", sys)
    assert "need a CUDA device" in doctor.kernel("mamba-ssm").text


def test_flash_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU it is live, and said never to have run on one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "fla", None)
    assert doctor.fla().text.startswith("no: expected the package fla-core: pip install -c constraints/cuda")
    monkeypatch.setitem(sys.modules, "fla", sys)
    monkeypatch.setitem(sys.modules, "fla.ops", sys)
    assert doctor.fla().text.startswith("live: ")
    assert "never run on a GPU" in doctor.fla().text
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "need a CUDA device" in doctor.fla().text


def test_a_package_too_old_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1+cpu", "rich": ""}
    monkeypatch.setattr(doctor, "version", lambda package: versions.get(package, "99.0"))
    wanted = [Requirement("torch>=2.10"), Requirement("rich>=14"), Requirement("numpy>=2")]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    findings = {finding.name: finding for finding in doctor.versions()}
    assert findings["torch"].text == "expected >=2.10, found 2.9.1+cpu: pip install 'torch>=2.10'"
    assert "found none" in findings["rich"].text
    assert [name for name, finding in findings.items() if finding.problem] == ["torch", "rich"]


def test_a_section_that_cannot_look_is_a_problem(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("no libtorch\nand more")
        yield

    monkeypatch.setattr(doctor, "SECTIONS", {"devices": broken})
    code, out, _ = ran("doctor")
    assert code == 1
    assert "PROBLEM: ImportError: no libtorch\n" in out


def test_doctor_imports_only_what_python_has() -> None:
    """It is asked when other packages are broken."""
    asks = "import sys, zoo.train.commands.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "hydra", "numpy", "packaging"} & set(done.stdout.split())


def test_plug_ins_and_what_they_would_hide(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info = zoo.folder / "site/lost-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoo.configs]\nlost = lost.configs\n")
    monkeypatch.syspath_prepend(str(zoo.folder / "site"))
    (zoo.folder / "configs/model").mkdir(parents=True)
    for name in ("rmt", "mine"):
        (zoo.folder / f"configs/model/{name}.yaml").write_text("_target_: mine.Model\n")
    (zoo.folder / "configs/model/good.yaml").write_text((ROOT / "configs/model/rmt.yaml").read_text())
    findings = {finding.name: finding for finding in doctor.extensions()}
    assert set(findings) == {"lost", "configs", "model=rmt", "model=mine"}
    assert findings["model=mine"].text.startswith("configs's can't be used: model: can't import mine.Model: ")
    assert findings["lost"].text == "left out: ModuleNotFoundError: No module named 'lost'"
    assert findings["model=rmt"].text.startswith("zoo's counts, configs's comes after it")
    assert [name for name, finding in findings.items() if finding.problem] == [
        "lost",
        "model=mine",
        "model=rmt",
    ]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a file, where not even root can make a folder."""
    (tmp_path / "closed").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "closed/cache"))
    assert {finding.name for finding in doctor.data() if finding.problem} == {"cache"}


def test_doctor_takes_no_words(ran: Ran) -> None:
    code, out, err = ran("doctor", "now")
    assert (code, out) == (2, "")
    assert err == "error: doctor: expected no further arguments, found 'now'\n"


def test_triton_and_its_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU its scan is live, and said never to have run on one."""
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "expected the package triton: torch for CUDA brings it along" in doctor.triton().text
    monkeypatch.setitem(sys.modules, "triton", sys)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "need a CUDA device" in doctor.triton().text
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert doctor.triton().text.startswith("live: ")
    assert "never run on a GPU" in doctor.triton().text
