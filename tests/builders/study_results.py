"""Results of studies as if their trials had been run."""

from wrappers.studies import DecodeCalibration, MaskFill, Result, Results
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH

PAIR = ("uint8", "uint8")
SEEDS = (0, 1, 2)
LOSSES = {(v, f): 1.0 + f / 1000 for v in (SEARCH, FAITHFUL) for f in (-40.0, -80.0, -120.0)}


def metrics(loss: float, seed: int) -> dict:
    loss += 0.001 * seed
    return {
        "loss": loss, "float_loss": 0.4, "layer_l2": [0.1, 0.3], "equal": 0.5,
        "tasks": {"copa": 0.5},
    }  # fmt: skip


def fill_in(study: MaskFill, known: Results, losses: dict[tuple[str, float], float]) -> None:
    """Results of the search and of the finalists, until nothing more is wanted."""
    while missing := known.missing(study.wanted(known)):
        for trial in missing:
            settings = trial.settings
            place = settings["variant"], settings["attention_mask_fill_value"]
            known.add(Result(trial, metrics(losses[place], trial.seed), "", 1.0))


def study(**options) -> MaskFill:
    return MaskFill(fills=(-40.0, -80.0), pairs=[PAIR], seeds=SEEDS, **options)


def decoded(loss: float, seed: int, **others: float) -> dict:
    """Metrics of a decode trial: a loss as deployed, and the same over each past."""
    found = metrics(loss, seed)
    losses = {"quantized_past_loss": found["loss"], "float_past_loss": found["loss"]}
    return found | losses | {"float_step_loss": 0.5} | others


def fill_in_decode(study: DecodeCalibration, known: Results, measure) -> None:
    while missing := known.missing(study.wanted(known)):
        for trial in missing:
            known.add(Result(trial, measure(trial)))
