"""Which deliberately broken mixer each check of the conformance kit must reject.

`BROKEN` names for each check its mixers and, where a fault cannot be had alone, the other checks that it fails.
"""

from __future__ import annotations

from broken_answers import (
    BlocksNotSaid,
    ClaimsContentDependence,
    CountsSkippedPositions,
    FieldTooLarge,
    FieldTooSmall,
    FieldWithoutLimit,
    FinalStateOfStepsIsStale,
    FirstStepWithoutBias,
    FixedMatrixPerRow,
    HeadsAllAsWide,
    HeadsInAnotherOrder,
    HeadWithoutLimit,
    JacobianOfAnotherNorm,
    LinkNotDeclared,
    LinkThatIsNotThere,
    LooksAhead,
    MatrixOfAnotherScale,
    MatrixWithoutMemory,
    MixingReadout,
    OneHeadTooFew,
    PieceOfOneForgets,
    ReachTooFar,
    RememberingReadout,
    ValuesAreTheOutput,
)
from broken_calls import (
    ConfigCanBeChanged,
    ConfigChangesInJson,
    ConstantStateThatGrows,
    CountsNoGroups,
    CrossesBorders,
    DetachedGate,
    DrawsRandomNumbers,
    DropsTheRemainder,
    FlopsOfOneLength,
    IgnoresItsCapacity,
    JoinedStatesShareAPosition,
    JoinsReturningDocuments,
    KeepsItsLastOutput,
    LosesBitsInBetween,
    NormalizesOverTheBatch,
    OptionWithoutExample,
    OverflowsOnLargeInputs,
    RandomScaleOutsideTheStateDict,
    ReadsANumberBack,
    ResetForgetsAParameter,
    StateBytesOffByFour,
    StateInTheModule,
    StepLosesBits,
    WritesIntoItsInput,
    WritesIntoTheGivenState,
    WrongFastGradient,
)
from sharing_mixers import StepHandsOnMore

from seqmix.mixer import Mixer

BROKEN: dict[str, dict[type[Mixer], set[str]]] = {
    "forward_equals_steps": {
        FirstStepWithoutBias: set(),
        StepHandsOnMore: set(),
        FinalStateOfStepsIsStale: {"pieces_equal_whole", "low_precision"},
    },
    "pieces_equal_whole": {PieceOfOneForgets: set()},
    "matrix_reproduces_forward": {
        MatrixOfAnotherScale: set(),
        FixedMatrixPerRow: set(),
        ClaimsContentDependence: set(),
        JacobianOfAnotherNorm: set(),
        MatrixWithoutMemory: {"odd_sizes"},
    },
    "readout_is_positionwise": {MixingReadout: set(), RememberingReadout: {"repeatable_and_pure"}},
    "values_are_local": {ValuesAreTheOutput: set(), ReachTooFar: set()},
    "causality": {
        LooksAhead: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "matrix_reproduces_forward",
            "links_by_gradient",
            "packed_equals_separate",
            "batch_invariance",
            "odd_sizes",
            "repeatable_and_pure",
            "low_precision",
        }
    },
    "links_by_gradient": {LinkThatIsNotThere: set(), LinkNotDeclared: set(), BlocksNotSaid: set()},
    "receptive_field_by_gradient": {
        FieldTooLarge: set(),
        FieldTooSmall: set(),
        FieldWithoutLimit: set(),
        CountsSkippedPositions: set(),
    },
    "head_spans_by_gradient": {
        HeadsAllAsWide: set(),
        HeadsInAnotherOrder: set(),
        HeadWithoutLimit: set(),
        OneHeadTooFew: set(),
    },
    "packed_equals_separate": {CrossesBorders: set(), JoinsReturningDocuments: set()},
    "batch_invariance": {JoinedStatesShareAPosition: set(), NormalizesOverTheBatch: {"packed_equals_separate"}},
    "odd_sizes": {DropsTheRemainder: set()},
    "repeatable_and_pure": {
        KeepsItsLastOutput: set(),
        WritesIntoItsInput: {"state_dict_round_trip"},
        WritesIntoTheGivenState: set(),
        DrawsRandomNumbers: set(),
        StateInTheModule: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "packed_equals_separate",
            "batch_invariance",
        },
    },
    "gradcheck": {DetachedGate: set(), WrongFastGradient: set()},
    "state_bytes": {
        StateBytesOffByFour: set(),
        ConstantStateThatGrows: {
            "forward_equals_steps",
            "pieces_equal_whole",
            "packed_equals_separate",
        },
        IgnoresItsCapacity: set(),
    },
    "flops": {CountsNoGroups: set(), FlopsOfOneLength: set()},
    "config_round_trip": {ConfigChangesInJson: set(), ConfigCanBeChanged: set(), OptionWithoutExample: set()},
    "state_dict_round_trip": {RandomScaleOutsideTheStateDict: set(), ResetForgetsAParameter: set()},
    "compiles": {ReadsANumberBack: set()},
    "low_precision": {LosesBitsInBetween: set(), StepLosesBits: set(), OverflowsOnLargeInputs: set()},
}
