"""The interface of rollout engines, which sample completions for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from tvg.model.policy import Policy
from tvg.types import PromptBatch, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The settings that determine the distribution of completions.

    Every setting is explicit, so that a checkpoint's generation config (often `top_k=50`) cannot
    silently change the distribution.

    Attributes:
        max_new_tokens: length limit of a completion.
        temperature: temperature of the softmax; 0 selects the most likely token.
        top_p: probability mass of the nucleus; 1.0 keeps all tokens.
        top_k: number of most likely tokens to keep; 0 keeps all tokens.

    Raises:
        ValueError: a setting is out of range; the message names the config key.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int

    def __post_init__(self) -> None:
        check_setting("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        check_setting("temperature", self.temperature, self.temperature >= 0, "at least 0")
        check_setting("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        check_setting("top_k", self.top_k, self.top_k >= 0, "at least 0")

    @property
    def logprob_temperature(self) -> float:
        """Temperature for the trainer's log-probabilities of the tokens (1 if greedy)."""
        return self.temperature if self.temperature > 0 else 1.0

    def greedy(self) -> SamplingSettings:
        """Returns the same settings with greedy decoding."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0)


class RolloutEngine(Protocol):
    """Samples completions from the policy and records the log-probabilities of their tokens.

    Life of an engine:

    1. The config builds it with its settings.
    2. `setup` binds it to a policy, once.
    3. Every rollout and every validation calls `wake`, `sync_weights`, `generate` any number of
       times, and `sleep`. The context `awake` makes all these calls except `generate`.
    4. `close` ends it.

    For an engine that samples with the policy's weights in place, most of these methods do nothing.

    Ranks call `generate` independently of each other, so it must not communicate between ranks.

    The engines that `greedy` and `limited` return share everything except the settings with the
    original. If the engine has a server, waking or closing one copy wakes or closes this server for
    all copies. `InProcessEngine` has no server: closing one copy only unbinds this copy.

    The random draws of a completion depend only on the seed, the query and the completion's index
    in its group. A resumed run therefore samples the same completions.

    Attributes:
        sampling: the settings of this engine.
        needs_frames: the engine processes clips itself, from `PromptBatch.unexpanded`.
    """

    sampling: SamplingSettings
    needs_frames: bool = False

    def setup(self, *, policy: Policy, tokenizer: Any) -> None:
        """Binds the engine to the policy that it samples from; called once.

        Args:
            policy: the policy. It may still be on the CPU, so allocate GPU memory only in `wake`.
                Its weights change between rollouts.
            tokenizer: decodes ids to text.
        """

    def wake(self) -> None:
        """Allocates the memory that sampling needs."""

    def sync_weights(self) -> None:
        """Makes the engine sample from the policy's current weights."""

    def generate(self, prompts: PromptBatch, *, group_size: int, seed: int) -> RolloutBatch:
        """Samples `group_size` completions for each prompt.

        Args:
            prompts: B prompts on the policy's device.
            group_size: completions per prompt, G.
            seed: seed of the draws; the global random state is neither used nor changed.
        """

    def sleep(self) -> None:
        """Frees the memory that only sampling needs."""

    def close(self) -> None:
        """Shuts the engine down; after an error, the engine may still be awake."""

    def greedy(self) -> Self:
        """Returns this engine with greedy decoding, bound to the same policy."""

    def limited(self, max_new_tokens: int) -> Self:
        """Returns this engine with another length limit, bound to the same policy."""


@contextmanager
def awake(engine: RolloutEngine) -> Iterator[None]:
    """Wakes an engine with the policy's current weights; puts it to sleep at the end."""
    engine.wake()
    try:
        engine.sync_weights()
        yield
    finally:
        engine.sleep()


def check_setting(key: str, got: Any, is_valid: bool, expected: str) -> None:
    """Raises a ValueError that names a key of `rollout` unless its value is valid."""
    if not is_valid:
        raise ValueError(f"rollout.{key}: expected {expected}, got {got!r}")
