"""Settings of what is minimised beside supervised fine-tuning: preferences, in TRL's names."""

from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.declare import Auto, check_bounds, setting

ObjectiveName = Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo"]
REFERENCE_FREE = ("orpo", "simpo")  # by their formulas
MAY_BE_REFERENCE_FREE = ("dpo", "ipo")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """What is minimised, and against which reference."""

    objective: ObjectiveName = setting(
        "sft",
        "sft: imitate the answers; dpo, ipo, orpo, simpo: learn from pairs of a chosen and a "
        "rejected answer; kto: learn from single answers with a label, good or bad",
    )
    beta: float = setting(
        0.1,
        "how strongly a preference objective holds to the reference; ipo's tau, orpo's lambda",
        low=1e-6,
        high=1000,
    )
    label_smoothing: float = setting(
        0.0, "dpo, simpo: the share of pairs that are taken to be labelled wrongly", low=0, high=0.5
    )
    rpo_alpha: float = setting(
        0.0,
        "dpo, ipo: weight of the chosen answers' mean cross entropy beside the preference",
        low=0,
        high=1000,
    )
    simpo_gamma: float = setting(0.5, "simpo: the margin that is aimed at", low=0, high=1000)
    desirable_weight: float = setting(1.0, "kto: weight of good answers", low=0, high=10**6)
    undesirable_weight: float = setting(1.0, "kto: weight of bad answers", low=0, high=10**6)
    reference_free: bool = setting(
        False, "dpo, ipo: as if the reference found all answers equally likely"
    )
    precompute_ref_log_probs: bool | Auto = setting(
        "auto",
        "true: the reference judges all data once, before the first step, and what it says is kept "
        "in cache_dir; false: in every step, as the model with its adapters off; auto: false with "
        "adapters that start fresh, else true",
    )

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with what a reference says of them."""
        return self.objective not in ("sft", *REFERENCE_FREE) and not self.reference_free

    @property
    def records(self) -> Literal["dialogues", "pairs", "judged"]:
        """What records of the data are read as."""
        if self.objective == "sft":
            return "dialogues"
        return "judged" if self.objective == "kto" else "pairs"
