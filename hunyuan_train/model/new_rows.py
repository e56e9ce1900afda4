"""Train the rows of new tokens alone, in matrices whose other rows stay as they are.

The gradient of the other rows is zero, and such a matrix has no weight decay: no optimizer here
then changes an element of them, bit for bit. Checkpoints, export and other splits see a matrix like
any other.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hunyuan_train.families.registry import family_of
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import kind_of
from hunyuan_train.families.tensors import VOCABULARY

MARK = "trains_new_rows_only"  # on a parameter, which the engine keeps


def train_new_rows(model: PreTrainedModel, shape: ModelShape) -> None:
    """Train the new rows of an embedding or head that is frozen otherwise.

    Called again, it trains what has been frozen again meanwhile, as PEFT does.

    Args:
        model: whose parameters may be partitioned already.
        shape: names the new rows, if any.
    """
    if not shape.num_new_tokens:
        return
    first, last = shape.first_new_token, shape.first_new_token + shape.num_new_tokens
    family = family_of(shape)
    for name, parameter in model.named_parameters():
        if kind_of(family, name) in VOCABULARY and not parameter.requires_grad:
            parameter.requires_grad = True
            if not trains_new_rows_only(parameter):
                parameter.register_hook(partial(_keep_rows, first=first, last=last))
                setattr(parameter, MARK, True)


def trains_new_rows_only(parameter: nn.Parameter) -> bool:
    """Whether the other rows of a trained parameter stay as they are."""
    return hasattr(parameter, MARK)


def _keep_rows(gradient: Tensor, *, first: int, last: int) -> Tensor:
    """The gradient with zeros outside of some rows: [rows, hidden]."""
    return functional.pad(gradient[first:last], (0, 0, first, len(gradient) - last))
