"""The loss: cross entropy per token, weighted, summed; its mean is taken over all ranks."""

from torch import Tensor
from torch.nn import functional


def weighted_token_losses(logits: Tensor, labels: Tensor, loss_weights: Tensor) -> Tensor:
    """Cross entropy of each token times its weight.

    Args:
        logits: [tokens, vocabulary], any float dtype; the loss is computed in float32.
        labels: [tokens], int64, already shifted: position t predicts labels[t]; -100 is ignored.
        loss_weights: [tokens], float32, 0 where the label is -100.

    Returns:
        [tokens], float32.
    """
    losses = functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="none")
    return losses * loss_weights
