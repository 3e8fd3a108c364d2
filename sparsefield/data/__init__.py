"""Data sets, observation patterns, training batches and the frozen evaluation cases."""

from sparsefield.data.batches import Batch, FrozenCase, TrainingBatches, frozen_case
from sparsefield.data.patterns import Pattern, parse_pattern
from sparsefield.data.scale import Data, Scale, Split
from sparsefield.data.sources import NAMES, open_as_configured, open_data

__all__ = [
    "NAMES", "Batch", "Data", "FrozenCase", "Pattern", "Scale", "Split", "TrainingBatches",
    "frozen_case", "open_as_configured", "open_data", "parse_pattern",
]
