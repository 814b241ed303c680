"""Every law catches a mutant, and honest models keep every law."""

import inspect

import pytest

from tests.contract import mutants
from tests.contract.mutants import Honest, Recurrent
from zoo.contract import laws
from zoo.module import SequenceModule

HONEST = (
    Honest,
    Recurrent,
    mutants.MixesRowsAsDeclared,
    mutants.ReadsNoSlotInTrainingAsDeclared,
    mutants.LearnsInPartAsDeclared,
    mutants.ForgetsAsDeclared,
    mutants.StoresTheOddToken,
    mutants.Slots,
    mutants.DeltaRule,
    mutants.StopsTheStrength,
    mutants.SplitProjection,
    mutants.SeesThreeTokens,
    mutants.ReachesUndeclared,
)
NAMES = {name for name, _ in laws(Honest)}


def modes(*names: str) -> set[str]:
    """These laws, in train mode too where they are checked there."""
    return {*names, *(f"{name}-train" for name in names)} & NAMES


# Mutants that break one law alone.
ALONE: dict[type[SequenceModule], set[str]] = {
    mutants.PadsTheVocabulary: modes("shapes"),
    mutants.StartsSmall: modes("shapes"),
    mutants.VarianceOfOneToken: modes("odd_lengths"),
    mutants.PeeksInDoublePrecision: {"causality-train"},
    mutants.ForgetsInLongCalls: modes("streaming"),
    mutants.RecordsTheCallLength: modes("streaming"),
    mutants.InPlace: modes("purity"),
    mutants.CountsItsReads: modes("purity"),
    mutants.CachesItsLogits: modes("purity"),
    mutants.ForgetsOneLayer: modes("memory_is_alive"),
    mutants.RemembersUndeclared: modes("memory_is_alive"),
    mutants.OneCountForAll: modes("fresh_rows_forget"),
    mutants.LosesTheLastToken: modes("last_token_is_remembered"),
    mutants.LosesTheLastTokenInTraining: {"last_token_is_remembered-train"},
    mutants.StopsReading: modes("last_token_is_remembered"),
    mutants.SharesWithTheFifthRow: modes("batch_invariance"),
    mutants.GrowsLate: modes("bounded_state"),
    mutants.GrowsMuchLater: modes("bounded_state"),
    mutants.LearnsUndeclared: modes("gradient_reach"),
    mutants.NamesAnUnknownField: modes("gradient_reach"),
    mutants.ReachesFartherThanDeclared: modes("reach_is_true"),
    mutants.DeclaresMoreThanItReaches: modes("reach_is_true"),
    mutants.DeclaresToCarryFurther: modes("reach_is_true"),
    mutants.ReadsAtTheFirstToken: modes("reach_is_true"),
    mutants.DetachesInTheTokenLoop: modes("gradient_is_true"),
    mutants.DetachesInTheTokenLoopInTraining: {"gradient_is_true-train"},
    mutants.HalvesTheGradientOfShortSegments: modes("gradient_is_true"),
    mutants.DetachesTheStrength: modes("gradient_is_true"),
    mutants.FreezesTokensByAHook: modes("gradient_is_true"),
    mutants.DetachesBetweenSegments: modes("parallel_equals_fold"),
    mutants.DetachesInTraining: {"parallel_equals_fold-train"},
    mutants.DetachesBesideFreshRows: modes("parallel_equals_fold"),
    mutants.CapsOutsideTheProjection: modes("parallel_equals_fold"),
    mutants.UnsavedWeight: modes("saved_and_loaded"),
    mutants.StoresBfloat16: modes("bf16_is_finite"),
    mutants.RoundsToOne: modes("bf16_is_finite"),
    mutants.PeeksInHalfPrecision: modes("bf16_is_causal"),
    mutants.CentresUnderAutocast: modes("bf16_is_causal"),
    mutants.WrongRemainder: modes("generation_is_teacher_forcing"),
    mutants.Unseeded: modes("deterministic_by_seed"),
}

# A model that sees later tokens predicts differently where there are none: causality in eval mode is never
# broken alone, since generation, and mostly odd lengths, read the beginning of a text by itself.
SEES_THE_FUTURE = modes("causality", "odd_lengths", "bf16_is_causal", "generation_is_teacher_forcing")

# Laws overlap: generation streams; the parallel form is `forward`, which every other law calls; a mixed batch
# has fresh rows; a state of a wrong shape can't be combined with fresh rows, as gradient_is_true does too.
SEVERAL: dict[type[SequenceModule], set[str]] = {
    mutants.PeeksAhead: SEES_THE_FUTURE,
    mutants.PeeksInTraining: {"causality-train", "bf16_is_causal-train"},
    mutants.CentresTheBatch: modes("batch_invariance", "bf16_is_causal"),
    mutants.CentresInTraining: {"batch_invariance-train", "bf16_is_causal-train"},
    mutants.PeeksInTheLastSegment: SEES_THE_FUTURE | modes("streaming"),
    mutants.PeeksAtTheNextSegment: SEES_THE_FUTURE | modes("streaming", "parallel_equals_fold"),
    mutants.CountsInFloats: modes("shapes", "bf16_is_finite"),  # both read the types
    # both in float32; and a part that computes in less than float64 has no exact derivative
    mutants.HasEightPositions: modes("bounded_state", "last_token_is_remembered"),
    mutants.Overflows: modes("bf16_is_finite", "deterministic_by_seed", "gradient_is_true"),
    # a memory that is never written or never read has no token
    mutants.ReadsNoSlotInTraining: {"memory_is_alive-train", "last_token_is_remembered-train"},
    mutants.NeverReads: modes("memory_is_alive", "last_token_is_remembered"),
    mutants.ReturnsTheOldState: modes("memory_is_alive", "last_token_is_remembered"),
    mutants.WritesNoSlot: modes("memory_is_alive", "last_token_is_remembered"),
    mutants.NothingToRemember: modes("memory_is_alive", "last_token_is_remembered"),
    mutants.ReadsOneSlot: modes("memory_is_alive", "last_token_is_remembered"),
    # a gradient that doesn't run through the memory isn't the true one either
    mutants.DetachedWhenRead: modes("gradient_reach", "gradient_is_true"),
    mutants.DetachedWhenWritten: modes("gradient_reach", "gradient_is_true"),
    mutants.OneLayerDetached: modes("gradient_reach", "gradient_is_true"),
    mutants.StoresDetached: modes("gradient_reach", "gradient_is_true"),
    # noise is finite, and differs after any text
    mutants.UnseededDropout: {name for name in NAMES if name.endswith("-train")}
    - modes("bf16_is_finite", "memory_is_alive", "last_token_is_remembered")
    | modes("deterministic_by_seed"),
    mutants.SharedAfterACall: modes(
        "streaming",
        "batch_invariance",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
    mutants.SharedMemory: modes("batch_invariance", "fresh_rows_forget", "reach_is_true", "bf16_is_causal"),
    mutants.Grows: modes(
        "shapes", "bounded_state", "fresh_rows_forget", "gradient_is_true", "parallel_equals_fold"
    ),
    mutants.RowsSecond: modes(
        "shapes", "batch_invariance", "fresh_rows_forget", "gradient_is_true", "parallel_equals_fold"
    ),
    mutants.LosesALogit: modes(
        "shapes",
        "odd_lengths",
        "streaming",
        "reach_is_true",
        "bf16_is_finite",
        "generation_is_teacher_forcing",
    ),
    mutants.NeedsTwoTokens: modes("odd_lengths", "generation_is_teacher_forcing"),
    mutants.DividesByTheCallLength: modes("odd_lengths", "generation_is_teacher_forcing"),
    mutants.CountsPositionsPerCall: modes("streaming", "generation_is_teacher_forcing"),
    mutants.IgnoresTheCarriedState: modes(
        "streaming",
        "memory_is_alive",
        "gradient_reach",
        "parallel_equals_fold",
        "generation_is_teacher_forcing",
    ),
    mutants.FirstCountForAll: modes("fresh_rows_forget", "parallel_equals_fold"),
    mutants.InPlaceAndReadAgain: modes("purity", "gradient_is_true", "generation_is_teacher_forcing"),
    mutants.HiddenMemory: modes(
        "purity",
        "fresh_rows_forget",
        "gradient_reach",
        "gradient_is_true",
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
        "gradient_is_true",
        "parallel_equals_fold",
        "bf16_is_causal",
        "generation_is_teacher_forcing",
    ),
}


def broken(build: type[SequenceModule]) -> dict[str, Exception]:
    errors: dict[str, Exception] = {}
    for name, check in laws(build):
        try:
            check()
        except Exception as error:
            errors[name] = error
    return errors


@pytest.mark.parametrize("build", HONEST, ids=lambda build: build.__name__)
def test_honest_models_keep_every_law(build: type[SequenceModule]) -> None:
    for _, check in laws(build):
        check()


@pytest.mark.parametrize("build", ALONE, ids=lambda build: build.__name__)
def test_a_mutant_breaks_this_law_alone(build: type[SequenceModule]) -> None:
    errors = broken(build)
    assert set(errors) == ALONE[build]
    for error in errors.values():
        assert isinstance(error, AssertionError)
        assert str(error)


@pytest.mark.parametrize("build", SEVERAL, ids=lambda build: build.__name__)
def test_a_mutant_breaks_exactly_these_laws(build: type[SequenceModule]) -> None:
    assert set(broken(build)) == SEVERAL[build]


def test_every_law_alone_catches_a_mutant() -> None:
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
