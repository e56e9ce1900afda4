"""What routers add to any objective's loss: terms that keep them balanced and their logits small.

Shape letters:  T tokens of this rank · E experts · L layers
"""

from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hunyuan_train.config.schema import ModelConfig
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.model.router import RouterWatch
from hunyuan_train.parallel.routers import watch_routers


@dataclass(slots=True)
class RouterTerms:
    """The terms of one run; the router monitor may raise the coefficient."""

    watch: RouterWatch
    top_k: int
    first_layer: int = 0  # with a router
    balance_coefficient: float = 0.0
    z_coefficient: float = 0.0

    def loss(self) -> Tensor:
        """This rank's part of the terms, of the forward pass recorded last: a float32 scalar.

        Every rank takes part, because load is a matter of all tokens. Once a pass: its logits are
        let go.
        """
        chunks = self.watch.take_logits()
        if not (self.balance_coefficient or self.z_coefficient):
            return self.watch.counts_LE.new_zeros((), dtype=torch.float32)
        counts_LE = self.watch.counts_LE.clone()
        if dist.is_initialized():
            dist.all_reduce(counts_LE)
        num_tokens = int(counts_LE[0].sum()) / self.top_k
        logits = [torch.cat(layer) for layer in chunks]
        balance = balance_loss(logits, counts_LE, num_tokens)
        return self.balance_coefficient * balance + self.z_coefficient * z_loss(logits, num_tokens)


def watch_and_weigh(
    engine: deepspeed.DeepSpeedEngine, shape: ModelShape, config: ModelConfig
) -> RouterTerms:
    """Watch the routers of an engine, and weigh their losses as the settings say."""
    return RouterTerms(
        watch=watch_routers(engine.module, shape, engine.device),
        top_k=shape.moe_topk,
        first_layer=shape.num_dense_layers,
        balance_coefficient=config.router_aux_loss_coef,
        z_coefficient=config.router_z_loss_coef,
    )


def balance_loss(logits_TE: list[Tensor], counts_LE: Tensor, num_tokens: int | float) -> Tensor:
    """Load-balancing loss of Switch Transformers (arXiv 2101.03961, equation 4), mean over layers.

    It is 1 where every expert gets as much as any other, and the number of experts where one gets
    all. Counts and token number are those of all ranks, so the sum of the ranks' losses is the loss
    of the whole batch, and so is its gradient.

    Args:
        logits_TE: router logits of each layer, [tokens, experts], local.
        counts_LE: [layers, experts], token slots sent to each expert, all ranks.
        num_tokens: of all ranks.
    """
    num_experts = counts_LE.shape[1]
    share_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp(min=1)
    mean_probability_LE = torch.stack(
        [layer_TE.float().softmax(dim=-1).sum(dim=0) / num_tokens for layer_TE in logits_TE]
    )
    return num_experts * (share_LE * mean_probability_LE).sum(dim=1).mean()


def z_loss(logits_TE: list[Tensor], num_tokens: int | float) -> Tensor:
    """Router z-loss of ST-MoE (arXiv 2202.08906, equation 5): keeps logits small; mean over layers.

    Args:
        logits_TE: router logits of each layer, [tokens, experts], local.
        num_tokens: of all ranks; the sum of the ranks' losses is the loss of the whole batch.
    """
    squares = [layer_TE.float().logsumexp(dim=-1).square().sum() for layer_TE in logits_TE]
    return torch.stack(squares).mean() / num_tokens
