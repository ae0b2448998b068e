"""`RolloutEngine`: one engine for all that is sampled from a model, trained or not in between.

It is kept from call to call: cache, prefix cache, and the packed weights of the native program. New
weights are packed into the memory of the old ones; what has not changed is not packed again.

Every call looks at every bit of the weights first (`models/fingerprint.py`), so that no token comes
from weights, or from cached rows of weights, that the model no longer has. Weights have a version,
which stands on every completion, as trainers that sample ahead need it (AReaL, arXiv 2505.24298).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from ziphius.engine.build import evaluation_mode, limits_of, new_cache, packed_program
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.generate import (
    BLOCK_SIZE,
    Completion,
    Request,
    blocks_of,
    check_requests,
    complete,
)
from ziphius.engine.native_runner import NativeRunner
from ziphius.engine.runner import Runner, TorchRunner
from ziphius.engine.sampler import BatchSampler
from ziphius.models.cache import PagedCache
from ziphius.models.fingerprint import WeightDigest, weight_digest
from ziphius.models.model import Model
from ziphius.ops.native.program_builder import Program
from ziphius.rollout.weights import rounded_weights
from ziphius.text.tokenizer import Tokenizer

_BATCHED_TOKENS = 2048
"""Of a step: what the buffers of a program are as large as, and keep."""


class RolloutEngine:
    """Samples from a model whose weights may change between two calls, never within one.

    Example:
        engine = RolloutEngine(model, tokenizer, dtype=torch.bfloat16)
        for step in range(steps):
            engine.update_weights(step)
            groups = sample_groups(engine, problems(step), config, seed=seed)
            ...

    Args:
        model: shared, in any mode, which it keeps; it stays on its device.
        tokenizer: whose vocabulary is drawn from.
        dtype: what products multiply in, by default the dtype of the weights. bfloat16 for float32
            weights rounds what autocast rounds; autocast around a call has no effect.
        record_routes: keep the experts that each token was sent to.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype | None = None,
        record_routes: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.policy_version = 0
        """Of the weights: what `update_weights` was told, or has counted."""
        self.program: Program | None = None
        """The packed weights, from the first `update_weights` on; None where the modules run."""
        self.not_native: str | None = None
        """Why the modules run, if they do."""
        self._dtype = dtype or model.model.embed_tokens.weight.dtype
        self._record_routes = record_routes
        self._digest: WeightDigest | None = None
        self._engine: Engine | None = None
        self._cache: PagedCache | None = None

    def update_weights(self, policy_version: int | None = None) -> bool:
        """Take over the weights that the model has now; tell whether they have changed.

        Args:
            policy_version: what to call them, such as the optimizer steps they have had; by
                default, where they have changed, one more than the last.
        """
        digest, known = weight_digest(self.model), self._digest
        is_new = digest != known
        if is_new:
            self._digest = None  # until all is done: it may be broken off
            with self._dropped_if_broken_off():
                arena = None if self.program is None else self.program.arena
                self.program, self.not_native = packed_program(self.model, self._dtype, arena)
                if self._engine is not None and self._cache is not None:
                    self._engine.runner = self._runner(self._cache)
                    self._engine.reset_prefix_cache()
            self._digest = digest
        if policy_version is not None:
            self.policy_version = policy_version
        elif is_new and known is not None:
            self.policy_version += 1
        return is_new

    def generate(self, requests: Sequence[Request], *, max_num_seqs: int) -> list[Completion]:
        """Run all requests, of one sample each, to their end; return their completions in order.

        Args:
            requests: any number; one is admitted when another ends.
            max_num_seqs: that run at the same time, which bounds the memory.

        Raises:
            ConfigError: a request can never be answered; nothing was computed.
            CheckpointError: the model gave logits that are not finite.
        """
        check_requests(self.model, requests)
        self.update_weights()
        engine = self._fitting(requests, max_num_seqs)
        engine.weight_version = self.policy_version
        with evaluation_mode(self.model), self._numbers(), self._dropped_if_broken_off():
            return complete(engine, self.model, requests)

    def check(self) -> None:
        """Assert that the engine is idle, and that no block, seat or request of it is lost."""
        if self._engine is not None:
            self._engine.check()
            assert not self._engine.has_work

    def _runner(self, cache: PagedCache) -> Runner:
        if self.program is None:
            return TorchRunner(self.model, record_routes=self._record_routes)
        return NativeRunner(
            self.model, cache, record_routes=self._record_routes, program=self.program
        )

    @contextmanager
    def _numbers(self) -> Iterator[None]:
        """Let modules, if they run, multiply in the dtype asked for; a program does by itself."""
        weight = self.model.model.embed_tokens.weight
        is_rounding = self._dtype != weight.dtype
        with ExitStack() as stack:
            if is_rounding and self.program is None:
                stack.enter_context(rounded_weights(self.model, self._dtype))
            dtype = self._dtype if is_rounding else None
            stack.enter_context(torch.autocast(weight.device.type, dtype, enabled=is_rounding))
            yield

    def _fitting(self, requests: Sequence[Request], max_num_seqs: int) -> Engine:
        """Return the engine, or a new one where these requests need a larger cache."""
        needs = blocks_of(requests)
        at_once = min(len(needs), max_num_seqs)
        if self._engine is not None and self._engine.config.max_num_seqs == max_num_seqs:
            assert self._cache is not None
            if self._cache.num_blocks >= sum(needs[-at_once:]):
                return self._engine
        self._engine = self._cache = None  # before another one takes memory
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(_BATCHED_TOKENS, max_num_seqs),
            block_size=BLOCK_SIZE,
            # As if all were as long as the longest: those that come later fit too.
            num_blocks=at_once * needs[-1],
        )
        self._cache = new_cache(self.model, config)
        self._engine = Engine(
            self._runner(self._cache),
            self._cache,
            BatchSampler(self.tokenizer.vocab_size),
            config,
            limits_of(self.model),
            device=self.model.model.embed_tokens.weight.device,
            not_native=self.not_native,
        )
        return self._engine

    @contextmanager
    def _dropped_if_broken_off(self) -> Iterator[None]:
        """Let go of the engine where a block ends with an exception.

        An interrupt may come in the middle of a step, and nobody knows what the engine has put down
        of it. Steps do not write to the packed weights: those stay.
        """
        try:
            yield
        except BaseException:
            self._engine = self._cache = None
            raise
