"""`zoo bench peers [size=micro] [lengths=1024] [key=value …]`: our models beside published packages.

    peers=      some of the packages' names, with commas between (default: all that are installed)
    size=       nano, micro (default), tiny, small, base; size.width=, size.depth=, size.heads= and
                size.segment_len= change what all have in common, task.vocab_size= the vocabulary
    lengths=    tokens per row and training step, multiples of the segment (default: the size's window)
    rounds=     how often each is measured (default 3)
    csv=        a file for every quantity's median and range; one that exists is replaced
    …           data.batch_size=2 trainer.precision=32-true, for ours and for the peers

    recurrent-memory-transformer-pytorch    rmt, with 16 memory tokens
    infini-transformer-pytorch              infini, rule=delta
    memorizing-transformers-pytorch         memorizing, 8,192 keys and 32 neighbours; its index is approximate
    x-transformers                          transformer
    x-transformers-xl                       transformer_xl; its positions are a bias by distance
    transformers-mamba2                     mamba2, heads of 64 and 64 states
    mambapy                                 mamba
    torch                                   transformer, beside nn.TransformerEncoderLayer

Width, depth, heads, vocabulary, segment, window and rows are the same, and the feed-forwards have as many
parameters. A training step is forward with what is carried, loss, backward, clipping, AdamW; mambapy and
transformers carry nothing from window to window. Every measurement is a separate process; ours and theirs
take turns in each round. Packages that aren't installed are named and left out, and so is
block-recurrent-transformer-pytorch, which has no counterpart here yet.

    parameters     all, with embeddings and the output projection, which some packages don't tie
    ours / peer    tokens per second of ours as a multiple of the peer's: the median of the rounds' ratios and
                   their range
"""

import json
import sys
from typing import NamedTuple

from zoo.errors import UserError, nearest
from zoo.train.commands.bench_arguments import REFUSED, ROUNDS, WITHOUT_EFFECT, check_case, print_failures
from zoo.train.commands.cli import distinct, integer, list_of, output_file, parse, refuse_without_effect
from zoo.train.evaluation import peer_table, throughput_report
from zoo.train.evaluation.peer_table import Peer
from zoo.train.evaluation.peer_throughput import Pair, measure_peer, shape_of, table
from zoo.train.evaluation.throughput import BenchCase, run_rounds
from zoo.train.plotting.terminal import print_table, table_console
from zoo.train.runs.config import compose
from zoo.train.runs.override_key import key_of

WORD = "peers"
WORKER_KEY = "peer="
"""First argument of one measurement: which peer; our model where nothing follows."""
OURS_ALONE = ("trainer.compile", "model.")
KEYS = {
    "peers": distinct,
    "lengths": list_of(integer(least=1)),
    "rounds": integer(least=1),
    "csv": output_file(".csv"),
}
NO_COUNTERPART = "left out: block-recurrent-transformer-pytorch, which has no counterpart here yet"


class Plan(NamedTuple):
    pairs: list[Pair]
    cases: dict[BenchCase, list[str]]


def run(args: list[str]) -> int:
    """Exit code 1 where a measurement failed."""
    refused = REFUSED | {"model": "peers= chooses the packages, and they their counterparts"}
    options, others = parse("bench peers", args, KEYS, pass_unknown=True, refused=refused)
    for override in others:
        key = key_of(override)
        if key.startswith(OURS_ALONE):
            raise UserError(f"bench peers: {key} can't be set here; it would change our models alone")
    refuse_without_effect("bench peers", others, WITHOUT_EFFECT, "what is measured")
    chosen, notes = installed(options.get("peers"))
    pairs, cases = plan(chosen, options.get("lengths", [None]), others)
    print("\n".join(notes), file=sys.stderr, end="\n" if notes else "")
    rounds = options.get("rounds", ROUNDS)
    results = run_rounds(cases, rounds)
    print_table(table_console(), table(pairs, results, rounds))
    if "csv" in options:
        throughput_report.write_csv(options["csv"], results, cases)
    return print_failures(results)


def installed(names: list[str] | None) -> tuple[list[Peer], list[str]]:
    """The peers of these names, of all for None, that are installed; and lines about those that are left out.
    Raises UserError where none is installed."""
    known = {peer.name: peer for peer in peer_table.PEERS}
    for name in names or []:
        if name not in known:
            message = f"bench peers: peers: expected some of {', '.join(known)}, found {name}"
            raise UserError(message + nearest(name, known))
    chosen = [known[name] for name in names or known]
    missing = {peer.name: f"pip install {peer.pip}" for peer in chosen if not peer_table.is_installed(peer)}
    if len(missing) == len(chosen):
        hints = "; ".join(f"{name}: {line}" for name, line in missing.items())
        raise UserError(f"bench peers: expected one of the packages, found none installed; {hints}")
    notes = [f"not installed: {name}   {line}" for name, line in missing.items()]
    left_out = [] if names else [NO_COUNTERPART]
    return [peer for peer in chosen if peer.name not in missing], [*notes, *left_out]


def plan(chosen: list[Peer], lengths: list[int | None], others: list[str]) -> Plan:
    """The arguments of every measurement, checked by building our models: ours beside each peer, and one of
    ours that two peers have in common once."""
    pairs: list[Pair] = []
    cases: dict[BenchCase, list[str]] = {}
    for length in lengths:
        for peer in chosen:
            overrides = [f"model={peer.model}", *others, *([f"data.seq_len={length}"] if length else [])]
            shape = shape_of(compose(overrides))
            overrides += peer.settings(shape)
            check_case(compose(overrides))
            pair = Pair(ours=(peer.model, shape.window), peer=(peer.name, shape.window))
            cases[pair.ours] = [WORKER_KEY, *overrides]
            cases[pair.peer] = [WORKER_KEY + peer.name, *overrides]
            pairs.append(pair)
    return Plan(pairs, cases)


def measure_case(args: list[str]) -> None:
    """What a process does that makes one measurement, of which the arguments begin with WORKER_KEY."""
    name = args[0].removeprefix(WORKER_KEY)
    peer = next((peer for peer in peer_table.PEERS if peer.name == name), None)
    print(json.dumps(measure_peer(peer, compose(args[1:]))))
