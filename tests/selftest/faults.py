"""Faults that have been shipped elsewhere, planted in a rank before it trains."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.module_inject import auto_ep_layer
from deepspeed.moe import ep_experts
from deepspeed.ops.triton_ops import autoep_fused_token_ops
from deepspeed.utils import safe_get_local_grad, safe_set_local_grad
from transformers import AttentionInterface

from hunyuan_train.data.batches import loader
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.families.tensors import Kind
from hunyuan_train.model import fused
from hunyuan_train.model.attention import PER_DOCUMENT, per_document_attention
from hunyuan_train.model.expert_cache import CachedExperts
from hunyuan_train.model.weights import SeededWeights
from hunyuan_train.objectives import choose, log_probabilities
from hunyuan_train.parallel import assemble, sequence
from hunyuan_train.parallel.gradient_norm import give_norm, squared_norm
from hunyuan_train.parallel.quantised_experts import CompressedWeights
from hunyuan_train.parallel.zero import is_split_expert
from hunyuan_train.selftest import training
from hunyuan_train.selftest.samples import SHAPE
from hunyuan_train.trainer import step


def scale_expert_gradients_by_the_wrong_group() -> None:
    """As if they were averaged over the ranks that share an expert instead of over all."""

    def scale_first(engine):
        for parameter in engine.module.parameters():
            if is_split_expert(parameter):
                gradient = safe_get_local_grad(parameter)
                safe_set_local_grad(parameter, gradient * dist.get_world_size())
        return squared_norm(engine)

    step.squared_norm = scale_first


def clip_by_the_norm_of_one_rank() -> None:
    def give_own(engine, _):
        give_norm(engine, squared_norm(engine).tolist())

    step.give_norm = give_own


def leak_between_packed_samples() -> None:
    def see_all(module, query, *arguments, document_lengths, **options):
        whole_row = [sum(document_lengths)]
        return per_document_attention(
            module, query, *arguments, document_lengths=whole_row, **options
        )

    AttentionInterface.register(PER_DOCUMENT, see_all)


def predict_the_token_itself() -> None:
    """Labels off by one."""

    def no_shift(sample):
        labels = np.where(sample.spans == 0, loader.IGNORED, sample.tokens.astype(np.int64))
        return labels, sample.weights, sample.spans

    loader._shift = no_shift


def lose_labels_at_bounds_of_parts() -> None:
    """As if labels were shifted in each part of a shared row by itself."""
    cut = training.cut_batch

    def cut_first(batch, part, num_parts):
        mine = cut(batch, part, num_parts)
        labels, weights = mine.labels.copy(), mine.loss_weights.copy()
        labels[-1], weights[-1] = loader.IGNORED, 0.0
        return replace(mine, labels=labels, loss_weights=weights)

    training.cut_batch = cut_first


def attend_to_the_own_part_only() -> None:
    """As if a shared row were several."""

    def see_part(self, module, query, *arguments, part_lengths=(), document_lengths, **options):
        lengths = [query.shape[2]] if part_lengths else document_lengths
        return self.plain(module, query, *arguments, document_lengths=lengths, **options)

    sequence.SequenceParallelAttention.__call__ = see_part


def forget_a_micro_batch() -> None:
    accumulate = training.accumulate_gradients

    def accumulate_less(engine, objective, batches, **options):
        return accumulate(engine, objective, batches[:1], **options)

    training.accumulate_gradients = accumulate_less


def take_the_scale_of_the_next_block() -> None:
    put = CompressedWeights.put

    def shifted(self, expert, codes, scales, device):
        put(self, expert, codes, scales.roll(1, dims=-1), device)

    CompressedWeights.put = shifted


def swap_codes_between_experts() -> None:
    put = CompressedWeights.put

    def swapped(self, expert, codes, scales, device):
        put(self, expert ^ 1, codes, scales, device)

    CompressedWeights.put = swapped


def read_codes_that_an_earlier_base_left(folder: Path) -> None:
    """As if a cache kept them under this base's name, and nothing compared any with the base.

    Args:
        folder: in which each rank has a cache of its own.
    """
    own = folder / str(os.getpid())
    experts = [one for one in released_tensors(SHAPE).values() if one.kind is Kind.EXPERT]

    def stale(codes, *_):
        fresh = replace(codes, source=SeededWeights(seed=9, standard_deviation=0.08))
        earlier = CachedExperts(fresh, own, ["base"])
        earlier.keep([(one, *earlier.read_experts(one)) for one in experts])
        return CachedExperts(codes, own, ["base"])

    CachedExperts.compare = lambda *_: None
    assemble.with_cache = stale


def keep_adapters_on_in_the_reference() -> None:
    log_probabilities.adapters_off = lambda _: nullcontext()


def hold_a_started_adapter_to_the_bare_base() -> None:
    """As if adapters that an earlier run has trained were fresh, and their reference without."""
    training.uses_reference_cache = lambda _: False
    choose.reference_is_base = lambda _: True


def swap_sides_on_one_rank() -> None:
    lay = training.step_batches

    def swapped(config, step):
        batches = lay(config, step)
        if dist.get_rank():
            batches = [
                replace(one, sides=np.where(one.sides, 3 - one.sides, 0).astype(np.uint8))
                for one in batches
            ]
        return batches

    training.step_batches = swapped


def count_the_tokens_of_prompts() -> None:
    def every_token(sample):
        labels = np.append(sample.tokens[1:].astype(np.int64), loader.IGNORED)
        return labels, (labels >= 0).astype(np.float32), np.append(sample.spans[1:], np.uint8(0))

    loader._shift = every_token


def add_pairs_up_instead_of_their_mean() -> None:
    choose_objective = training.choose_objective

    def chosen(config):
        objective = choose_objective(config)
        return replace(objective, weigh=lambda one: np.minimum(objective.weigh(one), 1.0))

    training.choose_objective = chosen


def swap_gate_and_up() -> None:
    """As if the one product for both had its halves in the other order."""
    activate = ep_experts.apply_packed_expert_activation

    def swapped(gate_up, *arguments, **options):
        return activate(gate_up.roll(gate_up.shape[-1] // 2, dims=-1), *arguments, **options)

    ep_experts.apply_packed_expert_activation = swapped


def sum_outputs_in_the_order_of_experts() -> None:
    def keep_order(index, num_rows):
        return torch.arange(num_rows, dtype=torch.int32)

    autoep_fused_token_ops._invert_index = keep_order


def read_the_split_plan_too_early() -> None:
    """As if nobody waited for the copy to the host."""
    auto_ep_layer.get_accelerator().Event.synchronize = lambda _: None


def leave_keys_unturned() -> None:
    kernels = fused.load_kernels()

    def turn_queries(query, key, *angles):
        return kernels.rope(query, key.clone(), *angles)[0], key

    fused.load_kernels = lambda: replace(kernels, rope=turn_queries)


def die() -> None:
    raise RuntimeError("this rank was told to die")


def train_with_fault(plant, *arguments):
    """What a rank runs: the fault, and then the self-test's own training."""
    plant()
    return training.train_case(*arguments)
