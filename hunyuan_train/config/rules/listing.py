"""Every rule about a run, in the order in which they are checked.

`train`, its `--dry_run`, `plan`, `plan --fit` and `selftest --recipe` all run this one list, by way
of `resolve`. A new rule is one function and one row here. What lies in other files is checked by
what reads them: weights, checkpoints, the tokenizer, the data.
"""

from collections.abc import Callable, Collection
from enum import Enum

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.config.rules import (
    engine_file,
    evaluation,
    logs,
    optimization,
    output_folder,
    preferences,
    processes,
    trained_parameters,
)


class Needs(Enum):
    """What a rule looks at. Who does not know it, as `plan` does not know a disk, leaves it out."""

    SETTINGS = "settings, with the DeepSpeed file, the model's shape and the hosts that they name"
    PACKAGES = "what is installed on this machine"
    DISK = "what lies in the output folder"


EVERYTHING = frozenset(Needs)
SETTINGS_ALONE = frozenset({Needs.SETTINGS})

RULES: dict[Callable[[ResolvedRun], None], Needs] = {
    optimization.check_precision: Needs.SETTINGS,
    optimization.check_row_length: Needs.SETTINGS,
    optimization.check_learning_rate: Needs.SETTINGS,
    evaluation.check_evaluation_data: Needs.SETTINGS,
    evaluation.check_early_stopping: Needs.SETTINGS,
    evaluation.check_user_metric: Needs.SETTINGS,
    evaluation.check_best_metric: Needs.SETTINGS,
    evaluation.check_best_checkpoint: Needs.SETTINGS,
    evaluation.check_needles: Needs.SETTINGS,
    optimization.check_activations: Needs.SETTINGS,
    preferences.check_preference_settings: Needs.SETTINGS,
    preferences.check_reference: Needs.SETTINGS,
    preferences.check_started_adapters: Needs.SETTINGS,
    trained_parameters.check_adapters_are_used: Needs.SETTINGS,
    trained_parameters.check_adapters_alone: Needs.SETTINGS,
    trained_parameters.check_adapter_targets: Needs.SETTINGS,
    trained_parameters.check_expert_adapters: Needs.SETTINGS,
    trained_parameters.check_expert_weights: Needs.SETTINGS,
    trained_parameters.check_freezing: Needs.SETTINGS,
    trained_parameters.check_router_guardian: Needs.SETTINGS,
    trained_parameters.check_experts_exist: Needs.SETTINGS,
    trained_parameters.check_router_losses: Needs.SETTINGS,
    processes.check_attention_kernels: Needs.SETTINGS,
    processes.check_fused_kernels: Needs.SETTINGS,
    processes.check_attention_package: Needs.PACKAGES,
    logs.check_trackers: Needs.SETTINGS,
    logs.check_tracker_packages: Needs.PACKAGES,
    logs.check_profile: Needs.SETTINGS,
    processes.check_processes_fit: Needs.SETTINGS,
    processes.check_experts_divide: Needs.SETTINGS,
    processes.check_sequence_size: Needs.SETTINGS,
    engine_file.check_offloading: Needs.SETTINGS,
    engine_file.check_expert_section: Needs.SETTINGS,
    engine_file.check_expert_kernels: Needs.SETTINGS,
    engine_file.check_exchange: Needs.SETTINGS,
    engine_file.check_exchange_package: Needs.PACKAGES,
    engine_file.check_stage: Needs.SETTINGS,
    engine_file.check_gathering: Needs.SETTINGS,
    engine_file.check_sequences: Needs.SETTINGS,
    optimization.check_moe_chunks: Needs.SETTINGS,
    optimization.check_optimizer: Needs.SETTINGS,
    engine_file.check_numbers: Needs.SETTINGS,
    output_folder.check_output_folder: Needs.DISK,
}


def check_run(run: ResolvedRun, known: Collection[Needs]) -> None:
    """Check every rule that looks at nothing but what is known.

    Raises:
        ConfigError: the first rule that is broken.
    """
    for check, needs in RULES.items():
        if needs in known:
            check(run)
