"""Log-probs in chunks: the same numbers and gradients as all at once, and never all the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from consumer.compiling import why_not
from consumer.head import CHUNK_BYTES, chosen_logprobs, chunk_for
from tests.consumer.allocations import Allocations

TOKENS, WIDTH, VOCABULARY = 37, 8, 50


def made(bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    return head, hidden, torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


def by_hand(head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=head(hidden) / temperature)
    return distribution.log_prob(targets), distribution.entropy()


def gradients(head: nn.Linear, hidden: Tensor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *head.parameters()]))


@pytest.mark.parametrize("chunk", [1, 5, TOKENS - 1, TOKENS, 10**6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_no_chunk_changes_the_log_probs_the_entropies_or_any_gradient(
    chunk: int, bias: bool, temperature: float
) -> None:
    head, hidden, targets = made(bias)
    expected = by_hand(head, hidden, targets, temperature)
    found = chosen_logprobs(head, hidden, targets, temperature, chunk, entropy=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    ours, theirs = (gradients(head, hidden, (weights * (a + 0.3 * b)).sum()) for a, b in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


@pytest.mark.parametrize("chunk", [5, 10**6])
def test_log_probs_entropies_and_gradients_are_those_of_autograd_to_the_bit(chunk: int) -> None:
    head, hidden, targets = made(bias=False)
    head, hidden = head.float(), hidden.detach().float().requires_grad_()
    found = chosen_logprobs(head, hidden, targets, 0.6, chunk)
    logits = torch.cat([head(part) / 0.6 for part in hidden.split(-(-TOKENS // -(-TOKENS // chunk)))])
    normaliser = torch.logsumexp(logits, -1)
    expected = logits.gather(1, targets[:, None])[:, 0] - normaliser
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], normaliser - (torch.softmax(logits, -1) * logits).sum(-1))
    weights = torch.linspace(-1, 2, TOKENS)
    ours, theirs = (torch.autograd.grad((weights * of).sum(), [hidden])[0] for of in (found[0], expected))
    assert torch.equal(ours, theirs)


CPU = torch.device("cpu")


@pytest.mark.skipif(why_not(CPU) is not None, reason=str(why_not(CPU)))
@pytest.mark.parametrize("entropy", [False, True])
def test_compiled_it_gives_the_same_and_one_compilation_serves_all_lengths(entropy: bool) -> None:
    torch.compiler.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    head, hidden, targets = made()
    weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    for length in (TOKENS, 20, 11):  # several chunks of other lengths each, and one
        found = []
        for compiled in (False, True):
            given = (hidden[:length], targets[:length], 0.6, 12)
            logprobs, entropies = chosen_logprobs(head, *given, entropy=entropy, compiled=compiled)
            of = logprobs + 0.3 * entropies if entropy else logprobs
            found.append([logprobs, entropies, *gradients(head, hidden, (weights[:length] * of).sum())])
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 4


def test_a_second_backward_pass_over_what_the_first_has_used_up_is_an_error() -> None:
    head, hidden, targets = made()
    loss = chosen_logprobs(head, hidden, targets, 1.0, 10**6)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk", [5, 10**6])
def test_the_entropies_have_a_gradient_only_where_one_is_asked_for(chunk: int) -> None:
    head, hidden, targets = made()
    logprobs, entropies = chosen_logprobs(head, hidden, targets, 1.0, chunk)
    assert (logprobs.requires_grad, entropies.requires_grad) == (True, False)
    with torch.no_grad():
        found = chosen_logprobs(head, hidden, targets, 1.0, chunk, entropy=True)
    assert not any(value.requires_grad for value in found)
    assert torch.equal(found[0], logprobs.detach())


def test_a_head_is_called_as_the_module_it_is() -> None:
    """What hangs on it, a hook or an adapter, is not passed over."""
    head, hidden, targets = made()
    head.register_forward_hook(lambda _module, _input, logits: logits + torch.arange(VOCABULARY))
    shifted = torch.log_softmax(head(hidden), -1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(chosen_logprobs(head, hidden, targets, 1.0, 5)[0], shifted)


def test_a_tied_head_has_the_gradient_of_both_its_uses() -> None:
    table = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
    head.weight = table.weight
    ids = torch.arange(TOKENS) % VOCABULARY
    found: list[Any] = []
    for chunk in (3, 10**6):
        loss = chosen_logprobs(head, table(ids), ids.flip(0), 1.0, chunk)[0].sum()
        found += torch.autograd.grad(loss, [table.weight])
    assert torch.allclose(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entropy", [False, True])
def test_the_logits_of_more_than_a_chunk_never_exist(entropy: bool) -> None:
    head, hidden, targets = made()
    with Allocations() as seen:
        logprobs, entropies = chosen_logprobs(head, hidden, targets, 0.6, 4, entropy=entropy)
        (logprobs.sum() + (entropies.sum() if entropy else 0.0)).backward()
    assert seen.largest <= max(4 * VOCABULARY, VOCABULARY * WIDTH, TOKENS * WIDTH)


def test_the_logits_of_a_chunk_are_computed_again_and_not_kept() -> None:
    head, hidden, targets = made()
    calls: list[int] = []
    head.register_forward_hook(lambda _module, _input, logits: calls.append(len(logits)))
    logprobs, _ = chosen_logprobs(head, hidden, targets, 1.0, 4)
    assert calls == [4] * 9 + [1]
    logprobs.sum().backward()
    assert sorted(calls) == sorted(([4] * 9 + [1]) * 2)


def test_left_to_itself_a_chunk_fills_what_it_may_and_is_a_token_at_least() -> None:
    for device, most in CHUNK_BYTES.items():
        tokens = chunk_for(49152, device)
        assert tokens * 49152 * 4 <= most < (tokens + 1) * 49152 * 4
    assert chunk_for(10**9) == 1
