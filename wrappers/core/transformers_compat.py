"""Lets transformers record the outputs inside wrapped models: `output_hidden_states` and the like.

transformers notes for each model, when it is constructed, which classes' outputs it can record.
Wrappers are not constructed, so a wrapper whose forward is under `capture_outputs` notes it itself.
"""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY


def note_recordable_outputs(model: PreTrainedModel) -> None:
    """Note what the wrapper of a model can record, as its float class says."""
    # Early releases of version 5 keep a plain dict with the class's name as key.
    by_name = type(_CAN_RECORD_REGISTRY) is dict
    _CAN_RECORD_REGISTRY[str(type(model)) if by_name else model] = model._can_record_outputs
