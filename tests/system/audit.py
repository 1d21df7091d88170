"""An eavesdropper on a run: every group that was published, and whether what is said of its tokens is true (I4)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import redis
import torch
from transformers import AutoModelForCausalLM

from broker.decoding import decode_group
from broker.keys import Keys
from broker.schema import KINDS, RolloutGroup

TOLERANCE = 1e-4  # between a cached and a full forward pass in float32


class Audit:
    """Reads the rollout streams beside the learner, on a thread, whatever happens to Redis meanwhile."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.groups: dict[tuple[str, bytes], RolloutGroup] = {}
        self._client = redis.Redis.from_url(url, socket_timeout=2.0)
        self._streams = [keys.rollouts(kind) for kind in KINDS]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _listen(self) -> None:
        while not self._stop.wait(0.02):
            for stream in self._streams:
                try:
                    entries: Any = self._client.xrange(stream)
                except redis.RedisError:  # away: that is what the run is tested for
                    continue
                for entry_id, fields in entries:
                    if (stream, entry_id) not in self.groups:
                        self.groups[stream, entry_id] = decode_group(fields[b"payload"])

    def verify(self, policy: Path, temperature: float) -> int:
        """Each token's log-prob against a full forward pass of the version in its span; how many were compared."""
        models: dict[int, Any] = {}
        compared, threads = 0, torch.get_num_threads()
        torch.set_num_threads(1)  # models this small only lose by sharing work
        for group in self.groups.values():
            for rollout in group.rollouts:
                for span in rollout.spans:
                    if span.policy_version not in models:
                        folder = policy / f"v{span.policy_version:08d}"
                        models[span.policy_version] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                    ids = torch.tensor(np.concatenate([group.prompt, rollout.tokens]).astype(np.int64))
                    with torch.no_grad():
                        logits = models[span.policy_version](input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1]
                    logprobs = torch.log_softmax(logits / temperature, -1)
                    chosen = logprobs.gather(1, ids[len(group.prompt) :, None])[span.start : span.end, 0].numpy()
                    said = rollout.behaviour_logprobs[span.start : span.end]
                    assert np.allclose(chosen, said, atol=TOLERANCE), (group.ticket_id, span, chosen - said)
                    compared += span.end - span.start
        torch.set_num_threads(threads)
        return compared
