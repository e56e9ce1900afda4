"""Cross entropy of labels without the logits of a whole sequence, and without a wait for the GPU.

Forward works on chunks of tokens and keeps two numbers a token. Backward makes the logits again for
all tokens and some words at a time, so that each part of the weight's gradient is one product. The
arithmetic is that of `deepspeed.sequence.linear_cross_entropy`, which lets the CPU wait to look for
labels out of range (`.item()`) and three times a block to index by masks: 25 waits a micro-step at
the released size.

Shape letters:  T tokens, each with a label · C tokens of a chunk · D hidden · V words · B words of
a block
"""

from math import ceil

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def label_losses(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk: int) -> Tensor:
    """Negative log-probability of each label: [tokens], float32.

    Args:
        hidden_TD: [tokens, hidden], any float dtype; the products run in it and sum in float32.
        weight_VD: [words, hidden], of the output layer.
        labels_T: [tokens], int64, every one a word: nothing here looks.
        chunk: tokens whose logits exist at a time.
    """
    losses: Tensor = LabelLosses.apply(hidden_TD, weight_VD, labels_T, chunk)
    return losses


class Context(FunctionCtx):
    """What forward leaves for backward."""

    block: int  # words whose logits exist at a time
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class LabelLosses(torch.autograd.Function):
    """`label_losses`, with gradients for hidden states and weight."""

    @staticmethod
    def forward(
        ctx: Context, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, chunk: int
    ) -> Tensor:
        """Losses of one chunk after the other."""
        losses_T = torch.empty(len(hidden_TD), dtype=torch.float32, device=hidden_TD.device)
        # Apart: one log-sum-exp of both would lose a small sum beside a large maximum.
        highest_T, sums_T = torch.empty_like(losses_T), torch.empty_like(losses_T)
        for start in range(0, len(hidden_TD), chunk):
            part = slice(start, start + chunk)
            logits_CV = multiply(hidden_TD[part], weight_VD.t())
            torch.amax(logits_CV, dim=-1, out=highest_T[part])
            logits_CV.sub_(highest_T[part, None])
            of_label_C = logits_CV.gather(-1, labels_T[part, None])[:, 0]
            torch.sum(logits_CV.exp_(), dim=-1, out=sums_T[part])
            torch.sub(sums_T[part].log(), of_label_C, out=losses_T[part])
        ctx.save_for_backward(hidden_TD, weight_VD, labels_T, highest_T, sums_T)
        num_chunks = max(1, ceil(len(hidden_TD) / chunk))
        ctx.block = max(1, ceil(len(weight_VD) / num_chunks))  # as many logits as forward
        return losses_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_T: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of one block of words after the other: softmax less the label, weighed."""
        hidden_TD, weight_VD, labels_T, highest_T, sums_T = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_T = grad_T.float()
        share_T1 = (grad_T / sums_T)[:, None]
        # Summed over all blocks, and so in float32.
        grad_hidden = torch.zeros_like(hidden_TD, dtype=torch.float32) if wants_hidden else None
        grad_weight = torch.empty_like(weight_VD) if wants_weight else None
        for start in range(0, len(weight_VD), ctx.block):
            words_BD = weight_VD[start : start + ctx.block]
            logits_TB = multiply(hidden_TD, words_BD.t()).sub_(highest_T[:, None])
            logits_TB.exp_().mul_(share_T1)
            # A label of another block takes nothing from the word that stands for it here.
            places_T = labels_T - start
            is_here_T = (places_T >= 0) & (places_T < len(words_BD))
            places_T1 = places_T.clamp(0, len(words_BD) - 1)[:, None]
            logits_TB.scatter_add_(1, places_T1, (-grad_T * is_here_T)[:, None])
            grads_TB = logits_TB.to(hidden_TD.dtype)
            del logits_TB  # before a product asks for memory
            if grad_weight is not None:
                torch.mm(grads_TB.t(), hidden_TD, out=grad_weight[start : start + ctx.block])
            if grad_hidden is not None:
                add_product(grad_hidden, grads_TB, words_BD)
        return (
            grad_hidden.to(hidden_TD.dtype) if grad_hidden is not None else None,
            grad_weight,
            None,
            None,
        )


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """A product in float32: [m, k] times [k, n], of any float dtype; CUDA writes it so itself."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product, [m, k] times [k, n], to a float32 sum [m, n], in place."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())
