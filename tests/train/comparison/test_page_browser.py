"""The page of a comparison in headless Chromium: rows, plots, sorting, no error, no sideways scroll."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.stored_runs import make_evaluation, make_run
from zoo.train.commands import compare
from zoo.train.comparison import reproduce

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
    None,
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

WATCH = """<script>
const errors = [];
const report = text => {
  errors.push(text);
  document.documentElement.dataset.errors = errors.join("; ");
};
addEventListener("error", event => report(event.message || "not loaded"), true);
addEventListener("securitypolicyviolation", event => report(event.blockedURI));
</script>"""
CLICK = """<script>
const heads = [...document.querySelectorAll("#comparison th button")];
const lines = () => [...document.querySelectorAll("#comparison tbody tr")];
const names = () => lines().map(row => row.cells[0].textContent);
const record = (name, value) => { document.documentElement.dataset[name] = value; };
record("before", names());
heads[2].click(); record("up", names());
heads[2].click(); record("down", names());
heads[3].click(); record("unknown", names());
record("sort", heads[2].parentElement.getAttribute("aria-sort"));
const plots = [...document.querySelectorAll("figure svg")];
const visible = plots.filter(plot => plot.getBoundingClientRect().height > 80);
record("plots", visible.length);
parent.postMessage({wide: document.documentElement.scrollWidth, plots: visible.length,
  least: Math.min(...visible.map(plot => plot.getBoundingClientRect().width)),
  ground: getComputedStyle(document.body).backgroundColor}, "*");
</script>"""
FRAME = """<!DOCTYPE html><body><script>addEventListener("message", event => {
  for (const [name, value] of Object.entries(event.data)) document.documentElement.dataset[name] = value; });
</script><iframe src="watched.html" width="400" height="900"></iframe></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three models, with scripts that report errors and click."""
    folder = tmp_path_factory.mktemp("page")
    for seed in (0, 1):
        for model, bits in (("rmt", 2.2), ("mamba", 2.0), ("transformer", 2.4)):
            run = make_run(folder / f"runs/{model}/{seed}", model, seed, bits + seed / 10)
            make_evaluation(run, 0.9 - 0.2 * seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["zoo compare", "runs"])
        patch.setattr(reproduce, "sweep_command", lambda group: f"zoo sweep model={group.label}")
        with pytest.raises(SystemExit) as ended:
            compare.main()
        assert not ended.value.code
    text = (folder / "runs/comparison/index.html").read_text()
    watched = text.replace("<title>", WATCH + "<title>").replace("</body>", CLICK + "</body>")
    (folder / "watched.html").write_text(watched)
    (folder / "frame.html").write_text(FRAME)
    return folder


def dom(page: Path, *options: str) -> tuple[dict[str, str], str]:
    """Data attributes of the root element, and the page's text."""
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    process = subprocess.run(
        [*words, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in process.stderr
    head = process.stdout[: process.stdout.index(">", process.stdout.index("<html")) + 1]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', head)), process.stdout


def test_rows_plots_and_no_error(page: Path) -> None:
    data, text = dom(page / "watched.html", "--window-size=1280,900")
    assert "errors" not in data
    assert int(data["plots"]) == 13  # seven plots, and a heat map of each of two measures for three models
    for name in ("mamba", "rmt", "transformer"):
        assert f'data-value="{name}">{name}</td>' in text
    assert text.count("<text") > 50  # text in plots is text


def test_a_click_sorts(page: Path) -> None:
    data, _ = dom(page / "watched.html")
    assert data["before"] == "mamba,rmt,transformer"
    assert data["up"] == "mamba,rmt,transformer"
    assert data["down"] == "transformer,rmt,mamba"
    assert data["unknown"] == "mamba,rmt,transformer"  # the baseline has no difference and is last
    assert data["sort"] == "none"


@pytest.mark.parametrize(("scheme", "ground"), [(0, "rgb(20, 24, 28)"), (1, "rgb(255, 255, 255)")])
def test_a_phone_in_either_scheme(page: Path, scheme: int, ground: str) -> None:
    data, _ = dom(page / "frame.html", f"--blink-settings=preferredColorScheme={scheme}")
    assert int(data["wide"]) <= 400
    assert int(data["plots"]) == 13
    assert float(data["least"]) > 250
    assert data["ground"] == ground
