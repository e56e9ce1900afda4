"""A mask of the loss that was left on the CPU."""

import torch

from hunyuan_train.objectives import sft

whole_losses = sft.token_losses


def masked_losses(model, batch, row=None):
    return whole_losses(model, batch, row) * torch.ones(len(batch.labels))  # the fault


sft.token_losses = masked_losses
