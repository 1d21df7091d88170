"""The network that is trained: body and head in one module, from a micro-batch to log-probs.

Invariant: a token's log-prob is log softmax(logits/T) in fp32, or wider, whatever precision the body ran in; all that
is learnt is used within its `forward`, so whoever shards or wraps the network wraps this. Refuses to know devices,
files and what log-probs are for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from consumer.head import chosen_logprobs
from consumer.pack import MicroBatch


class LogProbs(nn.Module):
    """A causal language model of transformers, `model`; `chunk` tokens have logits at once.

    `compiled` is the way from hidden states to log-probs; the layers are not its business.
    """

    def __init__(self, model: Any, chunk: int, *, autocast: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.chunk, self.autocast, self.compiled = chunk, autocast, compiled

    def forward(self, batch: MicroBatch, temperature: float, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs (N,) of the targets and entropies (N,) of their distributions in nats, fp32.

        The entropies have a gradient only where `entropy` asks for one.
        """
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                **({} if batch.segments is None else {"segments": batch.segments}),
            ).last_hidden_state  # (R, T, D)
        # The head runs for completion tokens only, and outside autocast: a logit rounded to bfloat16 is off by up to
        # 0.4 %, which no later float32 brings back.
        chosen = hidden.flatten(0, 1).index_select(0, batch.predictor)  # (N, D)
        wide = torch.promote_types(chosen.dtype, torch.float32)
        head = self.model.get_output_embeddings()
        how = {"entropy": entropy, "compiled": self.compiled}
        return chosen_logprobs(head, chosen.to(wide), batch.targets, temperature, self.chunk, **how)
