"""Every law catches a mutant, and no honest model."""

import inspect

import pytest

from tests.contract import mutants
from tests.contract.mutants import Honest, Recurrent
from zoo.contract import laws
from zoo.module import SequenceModule

HONEST = (
    Honest,
    Recurrent,
    mutants.MixesAndSaysSo,
    mutants.LearnsInPart,
    mutants.Forgetful,
    mutants.KeepsTheOddToken,
    mutants.Shelves,
)
NAMES = {name for name, _ in laws(Honest)}


def modes(*names: str) -> set[str]:
    """The laws named, in train mode too where they hold there."""
    return {*names, *(f"{name}-train" for name in names)} & NAMES


# Laws that see their mutant alone.
ALONE: dict[type[SequenceModule], set[str]] = {
    mutants.PadsTheVocabulary: modes("shapes"),
    mutants.StartsSmall: modes("shapes"),
    mutants.SpreadOfOne: modes("odd_lengths"),
    mutants.PeeksInTraining: {"causality-train"},
    mutants.ForgetsInLongCalls: modes("streaming"),
    mutants.NotesTheCall: modes("streaming"),
    mutants.InPlace: modes("purity"),
    mutants.CountsItsReads: modes("purity"),
    mutants.KeepsItsAnswers: modes("purity"),
    mutants.ForgetsOneLayer: modes("memory_is_alive"),
    mutants.NeverReads: modes("memory_is_alive"),
    mutants.OldState: modes("memory_is_alive"),
    mutants.RemembersAfterAll: modes("memory_is_alive"),
    mutants.ReadsOnePlace: modes("memory_is_alive"),
    mutants.WritesNoPlace: modes("memory_is_alive"),
    mutants.NothingToRemember: modes("memory_is_alive"),
    mutants.CentresTheBatch: modes("batch_invariance"),
    mutants.CentresInTraining: {"batch_invariance-train"},
    mutants.OneCountForAll: modes("fresh_rows_forget"),
    mutants.GrowsLate: modes("bounded_state"),
    mutants.DetachedWhenRead: modes("gradient_reach"),
    mutants.DetachedWhenWritten: modes("gradient_reach"),
    mutants.OneLayerDetached: modes("gradient_reach"),
    mutants.StoresDetached: modes("gradient_reach"),
    mutants.LearnsAfterAll: modes("gradient_reach"),
    mutants.NamesAStranger: modes("gradient_reach"),
    mutants.DetachesBetweenSegments: modes("parallel_equals_fold"),
    mutants.DetachesAmidFreshRows: modes("parallel_equals_fold"),
    mutants.UnsavedWeight: modes("saved_and_loaded"),
    mutants.KeepsBfloat16: modes("bf16_is_finite"),
    mutants.RoundsToOne: modes("bf16_is_finite"),
    mutants.WrongRemainder: modes("generation_is_teacher_forcing"),
    mutants.Unseeded: modes("deterministic_by_seed"),
}

# A model that sees what comes later says something else where nothing comes later: causality in eval mode is
# never broken alone, since generation, and mostly odd lengths, read the text's beginning by itself.
SEES_THE_FUTURE = modes("causality", "odd_lengths", "generation_is_teacher_forcing")

# Laws that overlap by nature: generation streams; the parallel form is `forward`, which every other law reads
# with; a mixed batch holds fresh rows; a state of another shape doesn't fit.
SEVERAL: dict[type[SequenceModule], set[str]] = {
    mutants.PeeksAhead: SEES_THE_FUTURE,
    mutants.PeeksInTheLastSegment: SEES_THE_FUTURE | modes("streaming"),
    mutants.PeeksAtTheNextSegment: SEES_THE_FUTURE | modes("streaming", "parallel_equals_fold"),
    mutants.CountsInFloats: modes("shapes", "bf16_is_finite"),  # both read the types
    mutants.Overflows: modes("bf16_is_finite", "deterministic_by_seed"),  # both in float32
    mutants.OwnDice: {name for name in NAMES if name.endswith("-train")} - modes("bf16_is_finite")
    | modes("deterministic_by_seed"),
    mutants.SharedAfterACall: modes(
        "streaming",
        "batch_invariance",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
    mutants.SharedMemory: modes("batch_invariance", "fresh_rows_forget"),
    mutants.Grows: modes("shapes", "bounded_state", "fresh_rows_forget", "parallel_equals_fold"),
    mutants.RowsSecond: modes("shapes", "batch_invariance", "fresh_rows_forget", "parallel_equals_fold"),
    mutants.LosesALogit: modes(
        "shapes", "odd_lengths", "streaming", "bf16_is_finite", "generation_is_teacher_forcing"
    ),
    mutants.NeedsTwoTokens: modes("odd_lengths", "generation_is_teacher_forcing"),
    mutants.CallLength: modes("odd_lengths", "generation_is_teacher_forcing"),
    mutants.CallPositions: modes("streaming", "generation_is_teacher_forcing"),
    mutants.IgnoresTheCarried: modes(
        "streaming",
        "memory_is_alive",
        "gradient_reach",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
    mutants.FreshForAll: modes("fresh_rows_forget", "parallel_equals_fold"),
    mutants.InPlaceAndReadAgain: modes("purity", "generation_is_teacher_forcing"),
    mutants.HiddenMemory: modes(
        "purity",
        "fresh_rows_forget",
        "gradient_reach",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
    mutants.HiddenCounter: modes(
        "odd_lengths",
        "causality",
        "streaming",
        "purity",
        "batch_invariance",
        "fresh_rows_forget",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
}


def broken(build: type[SequenceModule]) -> dict[str, Exception]:
    found: dict[str, Exception] = {}
    for name, check in laws(build):
        try:
            check()
        except Exception as error:
            found[name] = error
    return found


@pytest.mark.parametrize("build", HONEST, ids=lambda build: build.__name__)
def test_honest_models_keep_every_law(build: type[SequenceModule]) -> None:
    for _, check in laws(build):
        check()


@pytest.mark.parametrize("build", ALONE, ids=lambda build: build.__name__)
def test_a_mutant_of_its_own_breaks_a_law_and_no_other(build: type[SequenceModule]) -> None:
    found = broken(build)
    assert set(found) == ALONE[build]
    for error in found.values():
        assert isinstance(error, AssertionError)
        assert str(error)


@pytest.mark.parametrize("build", SEVERAL, ids=lambda build: build.__name__)
def test_a_mutant_breaks_exactly_these_laws(build: type[SequenceModule]) -> None:
    assert set(broken(build)) == SEVERAL[build]


def test_every_law_catches_a_mutant_of_its_own() -> None:
    alone = {name for names in ALONE.values() for name in names}
    assert NAMES - alone == {"causality"}  # see SEES_THE_FUTURE
    assert "causality" in SEES_THE_FUTURE


def test_every_mutant_is_listed() -> None:
    defined = {
        part
        for _, part in inspect.getmembers(mutants, inspect.isclass)
        if issubclass(part, SequenceModule) and part.__module__ == mutants.__name__
    }
    assert defined == {*HONEST, *ALONE, *SEVERAL}
