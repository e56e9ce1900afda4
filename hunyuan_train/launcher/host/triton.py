"""What AutoEP's kernels are built with: Triton compiles the start of each on the host, in C.

Without it a run on GPUs would end in its first forward pass, with the weights loaded.
"""

import os

from hunyuan_train.config.resolved_run import ResolvedRun
from hunyuan_train.errors import ConfigError
from hunyuan_train.launcher.host.probe import list_what_triton_lacks

TRITON_REMEDY = (
    "apt-get install gcc python3-dev (the headers of this very Python; CC names another compiler)"
)


def check_triton(run: ResolvedRun) -> None:
    """Refuse to split experts on GPUs of a host that cannot build their kernels.

    Raises:
        ConfigError: naming what is missing.
    """
    lacking = list_what_triton_lacks(os.environ) if run.is_on_gpu and run.splits_experts else []
    if lacking:
        raise ConfigError(
            f"expert_parallel_size is {run.expert_size}, and this machine has no "
            f"{' and no '.join(lacking)}, with which Triton builds the kernels of split experts: "
            f"{TRITON_REMEDY}"
        )
