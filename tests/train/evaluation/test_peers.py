"""`zoo bench peers`: a peer's training step, the order of measurements, what isn't installed."""

import csv
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.interpreted.packages import install
from zoo.train.commands import bench
from zoo.train.evaluation import peer_table, throughput
from zoo.train.evaluation.peer_table import PEERS, Peer, is_installed
from zoo.train.evaluation.peer_throughput import count_parameters, measure_peer, shape_of, train_step
from zoo.train.evaluation.peers import PeerState, Read, Shape, by_segments, segments_as_batch
from zoo.train.runs import build
from zoo.train.runs.config import compose

PACKAGES = (
    *(
        "recurrent-memory-transformer-pytorch",
        "infini-transformer-pytorch",
        "memorizing-transformers-pytorch",
    ),
    *("x-transformers", "mambapy", "rotary-embedding-torch", "hyper-connections", "torch-einops-utils"),
    *("einx", "frozendict", "loguru", "einops-exts", "joblib", "cloudpickle", "loky"),
)
SMALL = ("size=nano", "data.batch_size=2", "trainer.accelerator=cpu")
SHAPE = Shape(vocab_size=11, width=32, depth=2, heads=4, segment_len=4, window=12, rows=2)


class Recurrent(nn.Module):
    """Embeddings, of which the carried sum is added to every token of the next segment."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.width)

    def forward(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        total = x.sum(1, keepdim=True)
        if state is not None:
            x, total = x + state, total + state
        return x @ self.embed.weight.T, total


def build_fake(shape: Shape) -> tuple[nn.Module, Read]:
    model = Recurrent(shape)
    return model, by_segments(model, shape)


def no_settings(shape: Shape) -> list[str]:
    return [f"model.mlp_width={shape.width}"]


FAKES = (
    Peer("fake", "fake-package", ("math",), "transformer", no_settings, build_fake),
    Peer("fake-rmt", "fake-package", ("json",), "rmt", no_settings, build_fake),
    Peer("second", "second", ("json",), "transformer", no_settings, build_fake),
    Peer("absent", "--no-deps absent-package", ("no_such_module",), "mamba", no_settings, build_fake),
)


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoo bench", "peers", *words])
    monkeypatch.setattr(peer_table, "PEERS", FAKES)
    with pytest.raises(SystemExit) as exit_info:
        bench.main()
    return (exit_info.value.code, *capsys.readouterr())


def test_a_step_reads_segment_by_segment_carries_on_detached_and_updates_as_adamw() -> None:
    torch.manual_seed(0)
    model, read = build_fake(SHAPE)
    expected = Recurrent(SHAPE)
    expected.load_state_dict(model.state_dict())
    tokens, targets = torch.randint(11, (2, 2, 12)).unbind(0)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.1) for module in (model, expected)]
    step = train_step(model, read, tokens, targets, optimizers[0], 0.5, nullcontext)
    state = None
    for _ in range(2):
        step()
        logits = []
        for start in (0, 4, 8):
            output, state = expected(tokens[:, start : start + 4], state)
            logits.append(output)
        F.cross_entropy(torch.cat(logits, 1).transpose(1, 2), targets).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        optimizers[1].step()
        optimizers[1].zero_grad()
        assert state is not None
        state = state.detach()
    torch.testing.assert_close(model.state_dict(), expected.state_dict())


def test_segments_read_alone_keep_their_order() -> None:
    tokens = torch.arange(24).view(2, 12)
    read = segments_as_batch(lambda segments: F.one_hot(segments, 24) + segments[:, :1, None], SHAPE)
    logits, state = read(tokens, None)
    assert state is None
    torch.testing.assert_close(
        logits, F.one_hot(tokens, 24) + tokens[:, ::4].repeat_interleave(4, 1)[..., None]
    )


def test_ours_and_a_peer_are_measured_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MIN_REPEATS", 1)
    cfg = compose([*SMALL, "model=rmt", "data.seq_len=32"])
    ours, peer = measure_peer(None, cfg), measure_peer(FAKES[0], cfg)
    assert ours.keys() == peer.keys()
    assert ours["parameters"] == count_parameters(build.model(cfg))
    assert peer["parameters"] == 257 * 32
    assert peer["rows"] == 2
    assert peer["train"] > 0


def test_ours_and_theirs_take_turns_and_a_model_beside_two_peers_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    def measure_in_subprocess(words: list[str]) -> Any:
        calls.append(words)
        if words[0] == "peer=second":
            return "out of memory"
        peak = {"peak": 2.0**20 * len(calls), "parameters": 7.0}
        return {"train": float(len(calls))} | peak | {"rows": 2.0, "threads": 1.0, "cuda": 0.0}

    monkeypatch.setattr(throughput, "measure_in_subprocess", measure_in_subprocess)
    path = tmp_path / "peers.csv"
    code, out, err = run(monkeypatch, capsys, *SMALL, "lengths=32", "rounds=2", f"csv={path}")
    order = ["peer=", "peer=fake", "peer=", "peer=fake-rmt", "peer=second"]
    assert [words[0] for words in calls] == order * 2
    assert [words[1] for words in calls[:4]] == ["model=transformer"] * 2 + ["model=rmt"] * 2
    assert all(words[2:] == [*SMALL, "data.seq_len=32", "model.mlp_width=32"] for words in calls)
    rows = [" ".join(line.split()) for line in out.splitlines()]
    # ours in calls 1 and 6, the peer in 2 and 7: the ratio is the rounds', 1/2 and 6/7
    assert "fake transformer 32 7 7 4 4 0.68 (0.50 to 0.86) 4 4" in rows
    assert "second transformer 32 7 failed 4 failed 4 failed" in rows
    assert "not installed: absent pip install --no-deps absent-package" in " ".join(err.split())
    assert "left out: block-recurrent-transformer-pytorch" in err
    assert code == 1
    assert err.count("failed: second, 32 tokens: out of memory") == 1
    names = [row["model"] for row in csv.DictReader(path.read_text().splitlines())]
    assert names == ["transformer", "fake", "rmt", "fake-rmt", "second"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peers=fakes"], "peers: expected some of fake, fake-rmt, second, absent, found fakes"),
        (["peers=absent"], "found none installed; absent: pip install --no-deps absent-package"),
        (["model=rmt"], "model can't be set here; peers= chooses"),
        (["model.position=rope"], "model.position can't be set here; it would change our models alone"),
        (["trainer.compile=true"], "trainer.compile can't be set here; it would change our models alone"),
        (["trainer.accumulate=4"], "no effect on what is measured"),
        (["lengths=60"], "expected multiples of segment_len=16, found 60"),
        (["csv=peers.txt"], "csv: expected a file that ends with .csv, found peers.txt"),
        (["fake"], "expected key=value, found 'fake'"),
    ],
)
def test_a_user_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], message: str
) -> None:
    monkeypatch.setattr(
        throughput,
        "measure_in_subprocess",
        lambda words: pytest.fail("expected an error before any measurement"),
    )
    code, out, err = run(monkeypatch, capsys, *words, *SMALL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_help_has_every_peer(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    for peer in PEERS:
        assert f"    {peer.name} " in out
        assert peer.model in out


def test_our_settings_compose_to_models_of_the_peers_shape() -> None:
    for peer in PEERS:
        words = [*SMALL, f"model={peer.model}"]
        shape = shape_of(compose(words))
        model = build.model(compose([*words, *peer.settings(shape)]))
        assert model.segment_len == shape.segment_len


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all peers, and what they need that isn't installed here."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "peer-packages"
    return install(folder, PACKAGES)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_takes_a_step_and_has_about_as_many_parameters(
    peer: Peer, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    assert is_installed(peer)
    cfg = compose([*SMALL, f"model={peer.model}", "size.width=64"])
    shape = shape_of(cfg)
    module, read = peer.build(shape)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    tokens = torch.randint(shape.vocab_size, (shape.rows, shape.window))
    states: list[PeerState] = []

    def recorded(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits, state = read(tokens, state)
        states.append(state)
        assert logits.shape == (*tokens.shape, shape.vocab_size)
        assert logits.isfinite().all()
        return logits, state

    step = train_step(
        module, recorded, tokens, tokens, torch.optim.AdamW(module.parameters()), 1.0, nullcontext
    )
    step()
    step()
    changed = [name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])]
    assert len(changed) > 0.8 * len(before)
    assert len(states) == 2
    ours = build.model(compose([*SMALL, f"model={peer.model}", "size.width=64", *peer.settings(shape)]))
    tables = 2 * shape.vocab_size * shape.width  # tied or not
    assert abs(count_parameters(module) - count_parameters(ours)) < 0.2 * ours.count_parameters() + tables
