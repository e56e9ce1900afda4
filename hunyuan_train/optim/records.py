"""One record for each optimizer: what it keeps, moves and asks for.

Settings, rules, plans, the engine's side and checkpoints ask the record and never test a name. To
add an optimizer, write

- its name in `OptimizerName`, and a record in `RECORDS`,
- an entry in `parallel/optimizer.py: FACTORIES`, which builds it over the engine's parameters,

and prove it: an entry in `selftest/parity_cases.py`, a run in `tests/planner/test_reality.py`.
Nothing here imports torch, so that settings are checked and plans are made without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hunyuan_train.errors import ConfigError
from hunyuan_train.optim.lean_memory import lean_state_bytes, lean_temporary_bytes

OptimizerName = Literal["adamw", "lean", "offload", "sgd"]


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """What trained elements take between two steps, beside weights and gradients."""

    master: int
    states: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.master + self.states


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRecord:
    """All that the rest of the package knows about one optimizer."""

    name: OptimizerName  # the setting's value
    title: str  # what it is called in the summary of a run
    summary: str  # its part of the setting's help
    code: str  # where its update is written, which lines of a plan name
    states: tuple[str, ...]  # kept for each element, under the names of `state` in torch
    state_bytes: Callable[[int], int]  # of all states of a flat range of so many elements
    traffic_bytes: int  # that an update reads and writes, an element
    # Bytes that an update takes beside gradients, of so many elements, on a GPU or not.
    temporary_bytes: Callable[[int, bool], int]
    # The plain optimizer whose steps it takes, by which the selftest judges it.
    reference: Literal["adamw", "sgd"]
    # Shared master weights: bfloat16 weights are updated in place, by stochastic rounding, so there
    # is no float32 master but of vectors and routers. The engine then keeps a flat tensor for each
    # parameter, and its gradients are used where they lie (`parallel/shared_masters.py`).
    shares_masters: bool = False
    is_on_host: bool = False  # masters, states and gradients live in host memory
    extensions: tuple[str, ...] = ()  # DeepSpeed's, compiled before ranks start
    reason_against_adapters: str = ""  # why it refuses use_lora; empty where it does not
    # How far from the user's wish `plan` finds it where it must change the optimizer to make a run
    # fit (`planner/search.py`); 0: never suggested.
    search_price: float = 0.0
    hugging_face_names: tuple[str, ...] = ()  # values of their Trainer's `optim` that mean it

    def kept(self, num_elements: int, *, is_exact: bool = False) -> KeptBytes:
        """Bytes of master weights and states.

        A float32 master is counted of float32 weights too, which stages 1 and 2 clone. Under stage
        3 it takes no memory of its own (`parallel/shared_masters.py`).

        Args:
            num_elements: that are updated; where masters are shared, of one rank's range of one
                parameter, padding included.
            is_exact: a vector or a router, whose master is float32 also where others are shared.
        """
        has_master = is_exact or not self.shares_masters
        return KeptBytes(4 * num_elements if has_master else 0, self.state_bytes(num_elements))


# Kinds of state: the weights as the optimizer keeps them (float32, or bfloat16 where they are their
# own master), and its states by its own names.
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names, which `optim/lean.py` keeps
ADAMW_TRAFFIC = 30  # master and two moments read and written, gradient read, weight written
# In this order in the help, and for `auto`: the first that keeps its states where the run does.
RECORDS = (
    OptimizerRecord(
        name="adamw",
        title="adamw",
        summary="",
        code="torch.optim.AdamW",
        states=MOMENTS,
        state_bytes=lambda num_elements: 8 * num_elements,
        traffic_bytes=ADAMW_TRAFFIC,
        temporary_bytes=lambda num_elements, is_on_gpu: 0,  # fused
        reference="adamw",
        hugging_face_names=("adamw_torch", "adamw_torch_fused", "adamw_hf"),
    ),
    OptimizerRecord(
        name="lean",
        title="lean (8-bit AdamW with stochastic rounding)",
        summary="8-bit AdamW at 5.9 bytes a parameter: bf16 weights updated with stochastic "
        "rounding, no master copy, block-wise quantised states of 8 and 7 bits",
        code="optim/lean.py",
        states=MOMENTS,
        state_bytes=lean_state_bytes,
        traffic_bytes=10,  # weight and both coded moments read and written, gradient read
        temporary_bytes=lambda num_elements, _: lean_temporary_bytes(num_elements),
        reference="adamw",
        shares_masters=True,
        reason_against_adapters="adapters are so small that saving on their states gains nothing",
        search_price=2.0,
    ),
    OptimizerRecord(
        name="offload",
        title="offload (AdamW in host memory)",
        summary="AdamW with its states in host memory",
        code="DeepSpeedCPUAdam",
        states=MOMENTS,
        state_bytes=lambda num_elements: 8 * num_elements,
        traffic_bytes=ADAMW_TRAFFIC,
        temporary_bytes=lambda num_elements, is_on_gpu: 0,
        reference="adamw",
        is_on_host=True,
        extensions=("cpu_adam",),
        search_price=4.0,
    ),
    OptimizerRecord(
        name="sgd",
        title="sgd",
        summary="no states",
        code="torch.optim.SGD",
        states=(),
        state_bytes=lambda num_elements: 0,
        traffic_bytes=14,  # master read and written, gradient read, weight written
        temporary_bytes=lambda num_elements, is_on_gpu: 0,
        reference="sgd",
        hugging_face_names=("sgd",),
    ),
)
OPTIMIZERS: dict[str, OptimizerRecord] = {record.name: record for record in RECORDS}


def find_optimizer(name: str) -> OptimizerRecord:
    """The record of the setting's value.

    Raises:
        ConfigError: there is none of that name, or it is "auto", which is no optimizer yet.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer is {name}, and none of that name is known: set --optimizer to one of "
            f"{', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def choose_optimizer(*, is_on_host: bool) -> OptimizerName:
    """What "auto" stands for: the first whose states live where the DeepSpeed file keeps them."""
    return next(one.name for one in OPTIMIZERS.values() if one.is_on_host == is_on_host)


def describe_optimizers() -> str:
    """Names and summaries, for the setting's help."""
    return ", ".join(
        f"{one.name} ({one.summary})" if one.summary else one.name for one in OPTIMIZERS.values()
    )
