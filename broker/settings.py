"""The sections of a recipe that both sides share.

Invariant: a settings object that exists is valid; unknown keys and impossible combinations never get past construction.
Refuses to know what the other rooms configure, and where a recipe is from.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from broker.audit import LEAST_BYTES, MOST_BYTES
from broker.errors import Refused
from broker.secret import read_secret

ENV_PREFIX = "HEADRACE_"
ENV_NAME = re.compile(ENV_PREFIX + r"([A-Z]+)__([A-Z0-9_]+)")

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
# One that would not be found and moved: with an @ or / of its own, or among the options.
HIDDEN_PASSWORD = re.compile(r"^(?!unix:)[^?]*://[^@]*:[^@]*@|[?&]password=", re.IGNORECASE)


class Section(BaseModel):
    """A frozen, strict section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class RunSettings(Section):
    """What the run is: its name, model and seed, and how old a token may get."""

    name: str = Field(pattern=RUN_NAME)
    model: str = Field(
        description="directory or hub name of a causal language model; `pypi:…` and `random:…` are prepared"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    steps: int = Field(gt=0, description="optimizer steps, after which the run ends")
    directory: Path = Path("runs")
    max_staleness: int = Field(8, ge=0, description="oldest token that may enter a gradient, in policy versions")
    deterministic: bool = Field(
        False, description="sample each ticket at exactly its min_policy_version, no refresh in flight"
    )
    trust_remote_code: bool = False


class BrokerSettings(Section):
    """Where Redis is and how patient its clients are (seconds)."""

    url: str | None = Field(None, description="redis://, rediss:// or unix://; unset: an embedded server is started")
    password: str | None = Field(None, repr=False, exclude=True)
    password_file: Path | None = Field(None, description="holds the password, where `password` is not given")
    tls_ca: Path | None = Field(
        None, description="PEM file of whoever signed the server's certificate, for rediss://; unset: the system's"
    )
    tls_cert: Path | None = Field(None, description="PEM file of our own certificate, where the server asks for one")
    tls_key: Path | None = Field(None, description="PEM file of its key")
    connect_timeout: float = Field(5.0, gt=0)
    command_timeout: float = Field(20.0, gt=0)
    patience: float = Field(600.0, ge=0, description="how long a running process waits for a Redis that is away")
    lease_seconds: float = Field(60.0, gt=0, description="a ticket whose owner is silent for this long goes to another")
    max_deliveries: int = Field(3, ge=1, description="deliveries of a ticket after which it is settled as failed")
    audit_entries: int = Field(
        2000, ge=0, description="what `make explain` has to go by: so many notes, two a group, and no more; 0: none"
    )
    audit_bytes: int = Field(
        16384, ge=LEAST_BYTES, le=MOST_BYTES, description="the longest of them: longer texts are cut, and say so"
    )

    @model_validator(mode="before")
    @classmethod
    def _password_apart(cls, data: Any) -> Any:
        """A password in the URL moves to its own field: URLs are printed and written down."""
        url = data.get("url") if isinstance(data, dict) else None
        if not isinstance(url, str):
            return data
        found = re.fullmatch(r"(\w+://[^:@/]*):([^@/]*)@([^@]*)", url)
        if not found and HIDDEN_PASSWORD.search(url):
            raise ValueError("url holds a password in an unusual place: percent-encode it, or give it in a file")
        if not found:
            return data
        user = found[1] + ("" if found[1].endswith("//") else "@")
        return {"password": unquote(found[2]), **data, "url": user + found[3]}

    @property
    def secret(self) -> str | None:
        """The password, wherever it comes from; the file is read anew each time. Raises `Refused`."""
        if self.password or self.password_file is None:
            return self.password
        return read_secret(self.password_file, "broker.password_file")

    @model_validator(mode="after")
    def _encrypted_if_meant_to_be(self) -> Self:
        wanted = next((name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name) is not None), "")
        if wanted and self.url is not None and not self.url.startswith("rediss://"):
            raise ValueError(f"{wanted} is given and url is not rediss://: nothing would be encrypted")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        return self


class PolicySettings(Section):
    """How weights reach the generators."""

    backend: Literal["directory", "redis"] = Field(
        "directory",
        description="through a directory that learner and generators share; or through Redis, where they share none",
    )
    directory: Path | None = Field(
        None,
        description="shared by learner and generators (`redis`: the learner's alone); unset: inside the run's folder",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    keep: int = Field(2, ge=2, description="newest versions that are never pruned")
    anchor_every: int = Field(
        16,
        ge=1,
        description="redis and bfloat16: versions from one that travels whole to the next; of those between, what "
        "differs from the one before; 1: all travel whole",
    )
    lease_seconds: float = Field(120.0, gt=0, description="how long a version stays after its reader was last heard of")

    @property
    def spacing(self) -> int:
        """Of versions that travel whole; all do where nearly every number differs from step to step (float32)."""
        return self.anchor_every if self.backend == "redis" and self.dtype == "bfloat16" else 1


class SamplingSettings(Section):
    """How a completion is sampled. Both sides need it: the learner's log-probs are taken under the same temperature."""

    group_size: int = Field(8, description="completions per problem, G")
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(gt=0)
    max_prompt_tokens: int = Field(512, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = 0

    @property
    def max_sequence(self) -> int:
        """Longest sequence in tokens, prompt and completion together."""
        return self.max_prompt_tokens + self.max_tokens

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        if self.group_size < 2:
            raise ValueError("group_size = 1 has no group to compare with and every advantage is 0; use at least 2")
        if self.top_p < 1.0 or self.top_k > 0:
            raise ValueError(
                "top_p < 1 or top_k > 0 renormalises the sampler's log-probs and not the learner's, so the importance "
                "ratio would be wrong; use top_p = 1 and top_k = 0"
            )
        return self


class RecipeBase(BaseModel):
    """What every process reads of a recipe. Rooms add their own sections to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: RunSettings
    broker: BrokerSettings = BrokerSettings()
    policy: PolicySettings = PolicySettings()
    sampling: SamplingSettings
    _others: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def others(self) -> dict[str, Any]:
        """The sections that other rooms own, as they were written."""
        return self._others

    def whole(self) -> dict[str, Any]:
        """Every section as plain data: ours resolved, those of other rooms as they were written; no secrets."""
        ours: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return {**self.others, **ours}

    @property
    def policy_directory(self) -> Path:
        """The PolicyStore's directory."""
        return self.policy.directory or self.run.directory / self.run.name / "policy"


def redis_url(settings: BrokerSettings) -> str:
    """Where Redis is, for a process that does not start one. Raises `Refused` when nobody said."""
    if settings.url is None:
        raise Refused("broker.url is not set", f"start `make broker` and pass --broker.url or {ENV_PREFIX}BROKER__URL")
    return settings.url


def environment(settings: BrokerSettings) -> dict[str, str]:
    """Ours, for a process that gets a resolved recipe: nothing is laid over that again but the password it lacks."""
    ours = {name: value for name, value in os.environ.items() if not ENV_NAME.fullmatch(name)}
    return ours if settings.password is None else {**ours, f"{ENV_PREFIX}BROKER__PASSWORD": settings.password}
