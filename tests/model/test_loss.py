"""The output layer's own loss is the plain one, to the last digits that float32 has."""

import torch
from deepspeed.sequence.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from torch import Tensor, nn
from torch.nn import functional

from hunyuan_train.model.loss import LossHead

NUM_TOKENS, HIDDEN, VOCABULARY = 96, 32, 1500


def head(dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * 0.3)
    hidden = torch.randn(1, NUM_TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (NUM_TOKENS,), generator=generator)
    return linear, hidden, labels


def weights() -> Tensor:
    return torch.linspace(0.0, 1.5, NUM_TOKENS)


def plain(linear: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = functional.linear(hidden[0], linear.weight).float()
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return losses, *torch.autograd.grad((losses * weights()).sum() / 7, (hidden, linear.weight))


def chunked(linear: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    LossHead.install(linear)
    with linear.fused_cross_entropy(labels):
        losses = linear(hidden)[0]
    return losses, *torch.autograd.grad((losses * weights()).sum() / 7, (hidden, linear.weight))


def test_losses_and_gradients_are_the_plain_ones_in_float32() -> None:
    case = head(torch.float32)
    for expected, found in zip(plain(*case), chunked(*case), strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_bfloat16_is_as_near_to_float32_as_the_plain_loss_is() -> None:
    case = head(torch.bfloat16)
    linear, hidden, labels = head(torch.bfloat16)
    exact = plain(linear.float(), hidden.detach().float().requires_grad_(), labels)
    for expected, usual, found in zip(exact, plain(*case), chunked(*case), strict=True):
        error = (found.float() - expected).abs().max()
        assert error <= 1.5 * (usual.float() - expected).abs().max() + 1e-6


def test_without_labels_there_are_logits() -> None:
    linear, hidden, _ = head(torch.float32)
    expected = linear(hidden)
    LossHead.install(linear)
    assert torch.equal(linear(hidden), expected)


def test_no_label_at_all_leaves_zero_gradients_not_none() -> None:
    linear, hidden, labels = head(torch.float32)
    LossHead.install(linear)
    with linear.fused_cross_entropy(labels[:0]):
        losses = linear(hidden[:, :0])
    losses.sum().backward()
    assert losses.shape == (1, 0)
    assert linear.weight.grad is not None
    assert not linear.weight.grad.any()


def test_the_logits_of_all_tokens_never_exist() -> None:
    linear, hidden, labels = head(torch.float32)
    LossHead.install(linear)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            nonlocal largest
            output = operator(*arguments, **(options or {}))
            if isinstance(output, Tensor) and output.shape != linear.weight.shape:
                largest = max(largest, output.numel())
            return output

    with Watch():
        with linear.fused_cross_entropy(labels):
            loss = linear(hidden).sum()
        loss.backward()
    assert largest == max(linear.weight.numel(), NUM_TOKENS * VOCABULARY // 4)


def test_losses_and_gradients_are_those_of_the_engines_function() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        linear, hidden, labels = head(dtype)
        losses = vocab_parallel_linear_cross_entropy(
            hidden[0], linear.weight, labels, reduction="none", chunk_size=NUM_TOKENS // 4
        )
        grads = torch.autograd.grad((losses * weights()).sum() / 7, (hidden, linear.weight))
        for expected, found in zip((losses, *grads), chunked(linear, hidden, labels), strict=True):
            assert torch.equal(expected, found)
