"""What a restart needs of a trainer: its weights, its optimizer's moments, its count of updates, by name.

Invariant: what is loaded is to the bit what was copied, whoever of one or several ranks wrote it and reads it. Refuses
to know how an update is made, and when a checkpoint is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from broker.errors import Refused
from consumer.checkpoint import STATE
from consumer.model import Copied, PolicyModel
from consumer.optimizer import kind_of, make_optimizer, moments, take_up
from consumer.ranks import Ranks
from consumer.settings import LearnerSettings
from consumer.shards import Shards, contents, read
from consumer.transfer import Copies


class Restorable:
    """A model and its optimizer, on one rank or, a part on each, on several."""

    def __init__(self, model: PolicyModel, settings: LearnerSettings, ranks: Ranks) -> None:
        self.model, self.ranks, self._kind = model, ranks, settings.optimizer
        self.optimizer = make_optimizer(model.parameters, settings, ranks.world)
        self.updates, self._copies = 0, 0

    def snapshot(self, what: Copied = "published") -> Copies:
        """The weights, copied, as `PolicyModel.snapshot` has them."""
        return self.model.snapshot(what)

    def state(self) -> Mapping[str, Tensor] | Shards:
        """Everything a restart needs, copied, for `checkpoint.write`."""
        if self.ranks.world == 1:
            return self.state_dict()
        self._copies += 1
        return Shards(self._tensors(), self.ranks, self._copies)

    def load(self, folder: Path) -> None:
        """The reverse of `state`, from a checkpoint's folder, whoever and however many wrote it.

        Raises `Refused` for a checkpoint of another model, other adapters or another optimizer, whose moments would be
        taken for this one's.
        """
        there, parameters, found = contents(folder), self.model.parameters, self._tensors()
        ours = {name: tensor.shape for name, tensor in found.items() if name.startswith("model.")}
        theirs = {name: shape for name, (shape, _) in there.items() if name.startswith("model.")}
        if ours != theirs:
            odd = min(name for name in ours | theirs if ours.get(name) != theirs.get(name)).removeprefix("model.")
            raise Refused(
                f"checkpoint {folder} is of another model or other adapters ({odd})", "bring back the recipe's"
            )
        kind = kind_of({name: dtype for name, (_, dtype) in there.items() if name.startswith("optimizer.")})
        # torchao keeps small moments in fp32 itself, so for its optimizer all of them may be.
        if kind not in ("", self._kind) and (kind, self._kind) != ("adamw", "adamw_8bit"):
            raise Refused(
                f"checkpoint {folder} has the moments of learner.optimizer = '{kind}', not of '{self._kind}'",
                f"bring back learner.optimizer = '{kind}', or begin another run from the model",
            )
        alone = folder / STATE
        if self.ranks.world == 1 and alone.exists():
            self.load_state_dict(load_file(alone))
            return
        for name, (shape, dtype) in there.items():  # moments come into being with the first update
            if name.startswith("optimizer.") and name not in found:
                like = parameters[int(name.split(".")[1])]
                whole_moment = like.shape == shape
                found[name] = torch.zeros_like(like, dtype=dtype) if whole_moment else torch.zeros(shape, dtype=dtype)
        read(folder, found, self.ranks)
        self._take_up(found)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a restart of one process needs, as flat named tensors on the CPU, copied."""
        return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of `state_dict`, for the same model and recipe. Raises `KeyError` for another model's."""
        own = self._tensors()
        with torch.no_grad():
            for name, value in state.items():
                if name.startswith("model."):
                    own[name].copy_(value)
        self._take_up(state)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, or our parts of them."""
        found = {f"model.{name}": tensor.detach() for name, tensor in self.model.named_tensors()}
        found |= {f"optimizer.{name}": tensor for name, tensor in moments(self.optimizer).items()}
        return {"updates": torch.tensor(self.updates), **found}

    def _take_up(self, state: Mapping[str, Tensor]) -> None:
        """Position and optimizer as in `state`; the weights are there already."""
        self.updates = int(state["updates"])
        take_up(
            self.optimizer,
            {name.removeprefix("optimizer."): t for name, t in state.items() if name.startswith("optimizer.")},
        )
