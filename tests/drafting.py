"""What tests of drafts share: models that know a language of 61 words, and engines that watch."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.tiny import grouped_config, latent_config
from ziphius.engine.build import limits_of
from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts import Target, build_proposer
from ziphius.engine.drafts.proposer import Computed, Draw, Proposer
from ziphius.engine.engine import Engine
from ziphius.engine.runner import RunnerOutput, TorchRunner
from ziphius.engine.sampler import BatchSampler
from ziphius.engine.sequence import SequenceState
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.engine.step import Ints
from ziphius.models.attention_spec import cache_specs
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model

WORDS = 61
_SHARES = torch.tensor([0.7, 0.2, 0.1])


def successors() -> Tensor:
    """Three words [W, 3] that may follow each word, with the probabilities of `_SHARES`."""
    generator = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(WORDS, generator=generator)[:3] for _ in range(WORDS)])


def texts(rows: int, length: int, seed: int) -> Tensor:
    """Texts of the language, [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    follow_W3 = successors()
    ids = [torch.randint(0, WORDS, (rows,), generator=generator)]
    for _ in range(length - 1):
        which = torch.multinomial(_SHARES, rows, replacement=True, generator=generator)
        ids.append(follow_W3[ids[-1], which])
    return torch.stack(ids, dim=1)


@cache
def trained(kind: str) -> Model:
    """A model that has learned the language: the `target` with its MTP layer, or the `draft`."""
    wide = {"hidden_size": 48, "num_hidden_layers": 1}
    if kind == "target":
        config = latent_config(num_nextn_predict_layers=1, **wide)
    else:
        config = grouped_config(**wide)
    model = Model(config)
    model.initialize(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0)
    steps = 60
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(1, 2 * (1 - step / steps))
        ids_BT = texts(32, 16, seed=step)
        output = model(ids_BT)
        loss = next_token_loss(model, output, ids_BT).mean
        for depth in mtp_losses(model, output, ids_BT):
            loss = loss + 0.5 * depth.mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


class OneByOne:
    """A runner whose rows do not hang on each other's company: it runs every token alone."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        paged = batch.paged
        assert paged is not None
        assert batch.logits_rows_L is not None
        logits, hidden = [], []
        bounds = paged.cu_seqlens_Z1.tolist()
        for row, length in enumerate(paged.seq_lens_Z.tolist()):
            for place in range(bounds[row], bounds[row + 1]):
                alone = PagedTokens(
                    paged.cache,
                    torch.tensor([0, 1]),
                    torch.tensor([length - (bounds[row + 1] - 1 - place)]),
                    paged.slot_mapping_M[place : place + 1],
                    paged.block_tables_ZJ[row : row + 1],
                )
                output = self.runner(
                    ForwardBatch(
                        batch.input_ids_BT[:, place : place + 1],
                        paged=alone,
                    )
                )
                logits.append(output.logits_LW[0])
                if output.hidden_MD is not None:
                    hidden.append(output.hidden_MD[0])
        hidden_MD = torch.stack(hidden) if hidden else None
        return RunnerOutput(torch.stack(logits)[batch.logits_rows_L], None, hidden_MD)


class Watched:
    """A proposer, and what it proposed: tokens of the sequence, then drafts.

    Independent, it draws by numbers of its own (at temperature 1) instead of the positions'.
    """

    def __init__(self, proposer: Proposer, *, is_independent: bool = False) -> None:
        self.proposer = proposer
        self.is_independent = is_independent
        self.generator = torch.Generator().manual_seed(9)
        self.needs_hidden = proposer.needs_hidden
        self.drafts: list[tuple[list[int], list[int]]] = []

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        def own_draw(logits_LW: Tensor, asked: Sequence[SequenceState], ahead: int) -> list[int]:
            probs_LW = logits_LW.softmax(-1)
            drawn: list[int] = torch.multinomial(probs_LW, 1, generator=self.generator)[
                :, 0
            ].tolist()
            return drawn

        chosen = own_draw if self.is_independent else draw
        proposed = self.proposer.propose(sequences, lengths, chosen)
        for sequence, drafts in zip(sequences, proposed, strict=True):
            if drafts:
                self.drafts.append((list(sequence.tokens), drafts))
        return proposed

    def overwrite(self, slots_M: Ints) -> None:
        self.proposer.overwrite(slots_M)

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        self.proposer.observe(computed, hidden_MD)

    def forget(self, sequence: SequenceState) -> None:
        self.proposer.forget(sequence)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.proposer.copy_blocks(sources, targets)


def drafting_engine(
    model: Model,
    method: str | None,
    *,
    draft_model: Model | None = None,
    num_blocks: int = 64,
    one_by_one: bool = True,
    is_independent: bool = False,
    **settings: Any,
) -> tuple[Engine, Watched | None]:
    """An engine of blocks of 4 that always drafts as much as it can, and its watched proposer."""
    speculation = None
    if method is not None:
        speculation = SpeculationConfig.model_validate(
            {"method": method, "num_speculative_tokens": 3, "adaptive": False}
        )
    config = EngineConfig(
        **(
            {"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 48}
            | settings
            | {"speculation": speculation}
        )
    )
    cache = PagedCache(cache_specs(model.config), num_blocks, config.block_size)
    watched = None
    if speculation is not None:
        target = Target(
            model, cache, config.max_num_batched_tokens, lambda its, view: TorchRunner(its)
        )
        proposer = build_proposer(speculation, target, draft_model)
        watched = Watched(proposer, is_independent=is_independent)
    needs_hidden = watched is not None and watched.needs_hidden
    runner = TorchRunner(model, return_hidden=needs_hidden)
    engine = Engine(
        OneByOne(runner) if one_by_one else runner,
        cache,
        BatchSampler(),
        config,
        limits_of(model),
        proposer=watched,
    )
    return engine, watched
