"""Settings of what is minimised beside supervised fine-tuning: preferences, in TRL's names."""

from dataclasses import dataclass
from typing import Literal

from hunyuan_train.config.declare import Auto, check_bounds, setting

ObjectiveName = Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo"]
REFERENCE_FREE = ("orpo", "simpo")  # by their formulas
MAY_BE_REFERENCE_FREE = ("dpo", "ipo")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """The training objective, and its reference."""

    objective: ObjectiveName = setting(
        "sft",
        "sft: imitate the answers. dpo, ipo, orpo, simpo: learn from pairs of a chosen and a "
        "rejected answer. kto: learn from single answers with a label, good or bad",
    )
    beta: float = setting(
        0.1,
        "how strongly a preference objective keeps the model close to the reference (ipo's tau, "
        "orpo's lambda)",
        low=1e-6,
        high=1000,
    )
    label_smoothing: float = setting(
        0.0, "dpo, simpo: assumed share of pairs with the wrong label", low=0, high=0.5
    )
    rpo_alpha: float = setting(
        0.0,
        "dpo, ipo: weight of the chosen answers' mean cross entropy beside the preference",
        low=0,
        high=1000,
    )
    simpo_gamma: float = setting(0.5, "simpo: target margin", low=0, high=1000)
    desirable_weight: float = setting(1.0, "kto: weight of good answers", low=0, high=10**6)
    undesirable_weight: float = setting(1.0, "kto: weight of bad answers", low=0, high=10**6)
    reference_free: bool = setting(
        False,
        "dpo, ipo: compute the loss without a reference, as if it found all answers equally likely",
    )
    precompute_ref_log_probs: bool | Auto = setting(
        "auto",
        "true: compute the reference's log-probabilities of all data once, before the first "
        "step, and keep them in cache_dir. false: compute them in every step, by the model with "
        "its adapters off. auto: false with new adapters, otherwise true",
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
