"""The model: embedding, decoder layers, final norm, MTP layers, head.

One class for all of the family; `ModelConfig` decides every part. Parameter names are those of the
published checkpoints, save that the routed experts of a layer are stacked.

Shapes: B sequences, T new tokens, M tokens of a batch, L tokens whose logits are wanted,
D hidden_size, W vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ziphius.core.device import send
from ziphius.models.attention.backend import build_metadata
from ziphius.models.attention_spec import CacheSpec, cache_specs
from ziphius.models.block import Block
from ziphius.models.cache import PagedCache
from ziphius.models.config import ModelConfig
from ziphius.models.context import ForwardContext
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.gates import Routing
from ziphius.models.gates.sigmoid import BiasedSigmoidGate
from ziphius.models.heads import HEADS
from ziphius.models.layers import Embedding, RMSNorm
from ziphius.models.moe import MixtureOfExperts
from ziphius.models.mtp import MtpLayer
from ziphius.models.native import native
from ziphius.models.patterns import build_pattern, document_positions
from ziphius.models.rope import build_rope, rope_frequencies, rope_multiplier
from ziphius.models.segments import branch_positions
from ziphius.ops.native.program_builder import Program
from ziphius.ops.native.program_records import Into, Norm, Place
from ziphius.ops.targets import shift_left


@dataclass(frozen=True)
class Output:
    """What a forward pass leaves: hidden states after the final norm, and its context."""

    hidden_BTD: Tensor
    context: ForwardContext
    logits_rows_L: Tensor | None = None

    @property
    def wanted_LD(self) -> Tensor:
        """Return the hidden states whose logits are wanted, of all tokens in a row."""
        hidden_MD = self.hidden_BTD.flatten(0, 1)
        if self.logits_rows_L is None:
            return hidden_MD
        return hidden_MD[send(self.logits_rows_L, hidden_MD.device)]

    @property
    def routings(self) -> dict[int, Routing]:
        """Return the routing of every expert layer that ran, by layer index."""
        return self.context.routings

    @property
    def expert_counts(self) -> dict[int, Tensor]:
        """Count the tokens that each expert of each layer received, [E] by layer index."""
        return {layer: routing.counts() for layer, routing in self.routings.items()}


class Trunk(nn.Module):
    """Embedding, layers and final norm. The layers past num_hidden_layers are the MTP ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_hidden_layers = config.num_hidden_layers
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        blocks = [Block(config, idx) for idx in range(config.num_hidden_layers)]
        mtp_layers = [
            MtpLayer(config, config.num_hidden_layers + depth)
            for depth in range(config.num_nextn_predict_layers)
        ]
        self.layers = nn.ModuleList([*blocks, *mtp_layers])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids_BT: Tensor, context: ForwardContext) -> Tensor:
        """Return the hidden states [B, T, D] after the final norm."""
        hidden_BTD = self.embed_tokens(input_ids_BT)
        if torch.is_autocast_enabled(hidden_BTD.device.type):
            # As over float32 weights: what layers add up is not rounded on the way, and adapters
            # learn on weights in bfloat16 what they would on a float32 copy of them.
            hidden_BTD = hidden_BTD.float()
        for layer in self.layers[: self.num_hidden_layers]:
            hidden_BTD = layer(hidden_BTD, context)
        normed_BTD: Tensor = self.norm(hidden_BTD)
        return normed_BTD

    def emit(self, program: Program, frequencies_r: Tensor, factor: float) -> tuple[Norm, Place]:
        """Have a native program compute the stream; returns the final norm and where the stream is.

        Args:
            program: to be written.
            frequencies_r: of the rotation.
            factor: on its cosines and sines.
        """
        table_WD = native(self.embed_tokens).emit()
        [stream] = program.place("stream", table_WD.shape[1])
        angles = program.embed(table_WD, stream, frequencies_r, factor)
        for layer in self.layers[: self.num_hidden_layers]:
            native(layer).emit(program, stream, angles)
            program.keep(stream, table_WD.shape[1])
        norm = native(self.norm).emit(program)
        program.keep(stream, table_WD.shape[1], norm)
        return norm, stream

    @property
    def mtp_layers(self) -> list[MtpLayer]:
        """Return the MTP layers, by depth."""
        layers = self.layers[self.num_hidden_layers :]
        return [layer for layer in layers if isinstance(layer, MtpLayer)]


class Model(nn.Module):
    """Any member of the family; a training loop of your own calls `update_router_biases`.

    Once a step, after the optimizer: it is what balances the experts of V3, and no gradient does
    it. Built empty: call `initialize`, or load a checkpoint.

    Example:
        model = Model(get_preset("v3-tiny"))
        model.initialize(seed=0)
        output = model(input_ids_BT)
        next_token_loss(model, output, input_ids_BT).mean.backward()
        optimizer.step()
        model.update_router_biases(output.expert_counts)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = build_pattern(config)
        self.model = Trunk(config)
        head = HEADS[config.head](config)
        self.head_attribute = head.attribute
        self.add_module(head.attribute, head)
        self.tie_weights()

    def forward(self, batch: ForwardBatch | Tensor) -> Output:
        """Run the trunk over new tokens.

        Args:
            batch: the tokens; ids [B, T] alone are rows from their first token on.
        """
        if isinstance(batch, Tensor):
            batch = ForwardBatch(batch)
        context = self.context(batch)
        return Output(self.model(batch.input_ids_BT, context), context, batch.logits_rows_L)

    def context(self, batch: ForwardBatch) -> ForwardContext:
        """Say what every layer has to know of a batch; for passes that run single layers."""
        positions_BT = batch.positions_BT
        if positions_BT is None:
            positions_BT = _default_positions(batch)
        documents_BT = batch.documents_BT
        return ForwardContext(
            build_rope(self.config, positions_BT),
            build_metadata(self.pattern, batch, positions_BT),
            replayed={layer: experts.flatten(0, 1) for layer, experts in batch.routes.items()},
            text_M=None if documents_BT is None else _text(documents_BT),
            first_row=batch.first_row,
        )

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Apply the head to hidden states [..., D]; for the language model logits [..., W]."""
        logits_BTW: Tensor = self.head(hidden_BTD)
        return logits_BTW

    def cache_specs(self) -> list[CacheSpec]:
        """Say what each layer caches, the MTP layers last."""
        return cache_specs(self.config)

    def new_cache(self, num_blocks: int, block_size: int) -> PagedCache:
        """Make an empty cache of `num_blocks * block_size` slots, in the model's numbers."""
        weight_WD = self.model.embed_tokens.weight
        return PagedCache(
            self.cache_specs(),
            num_blocks,
            block_size,
            dtype=weight_WD.dtype,
            device=weight_WD.device,
        )

    def predict_mtp(
        self, output: Output, input_ids_BT: Tensor, detach_trunk: bool = False
    ) -> list[Tensor]:
        """Return the hidden states [B, T, D] of each MTP depth, for a pass without a cache.

        Behind a cache `draft` does one depth, given the tokens that come next.

        Depth k at position i sees the tokens up to i + k and predicts token i + k + 1. The last k
        positions of a row or document have no such token: `ops.targets.targets_ahead` leaves them
        out, and causality keeps them from reaching any position that counts.
        """
        assert output.context.attention.cache is None, "drafting from a cache is the engine's work"
        hidden_BTD = output.hidden_BTD.detach() if detach_trunk else output.hidden_BTD
        states = []
        for depth, layer in enumerate(self.model.mtp_layers, 1):
            embedded_BTD = self.model.embed_tokens(shift_left(input_ids_BT, depth))
            if detach_trunk:
                embedded_BTD = embedded_BTD.detach()
            hidden_BTD = layer.predict(hidden_BTD, embedded_BTD, output.context)
            states.append(hidden_BTD)
        return states

    def draft(self, depth: int, hidden_BTD: Tensor, next_ids_BT: Tensor, output: Output) -> Tensor:
        """Run MTP depth `depth`, from 1, over the tokens of a pass; returns hidden [B, T, D].

        Args:
            depth: which MTP layer; its part of the pass's cache, if any, receives the tokens.
            hidden_BTD: hidden states of the depth before; for the first those of `output`.
            next_ids_BT: for each token the one `depth` places ahead, drawn or known.
            output: of the pass.
        """
        layer = self.model.mtp_layers[depth - 1]
        return layer.predict(hidden_BTD, self.model.embed_tokens(next_ids_BT), output.context)

    def emit(self, program: Program) -> None:
        """Write the model into a native program: what `forward` and `logits` compute of a batch.

        Raises:
            NotNative: some module of it has no native operation.
        """
        native(self.pattern).emit(program)
        width = self.config.qk_rope_head_dim or self.config.head_dim
        assert width is not None
        theta, scaling = self.config.rope_theta, self.config.rope_scaling
        frequencies_r = rope_frequencies(width, theta, scaling)
        norm, stream = native(self.model).emit(program, frequencies_r, rope_multiplier(scaling))
        head = native(self.head).emit()
        program.project([head], norm, stream, Place(0), Into.LOGITS)

    @property
    def head(self) -> nn.Module:
        """Return the module on the trunk, under whatever name checkpoints give it."""
        return self.get_submodule(self.head_attribute)

    def tie_weights(self) -> None:
        """Make the head share the embedding where the config ties them; again after `to_empty`."""
        if self.config.tie_word_embeddings:
            self.head.weight = self.model.embed_tokens.weight

    def update_router_biases(self, counts: Mapping[int, Tensor], rate: float = 0.001) -> None:
        """Move the biases of V3's gates towards balance; layers with other gates are left alone.

        Args:
            counts: tokens that each expert received [E], by layer index, summed over all
                micro-batches and processes of the step (`Output.expert_counts`).
            rate: V3's step; 0 towards the end of a run.
        """
        for layer_idx, counts_E in counts.items():
            mlp = self.model.layers[layer_idx].mlp
            assert isinstance(mlp, MixtureOfExperts)
            if isinstance(mlp.gate, BiasedSigmoidGate):
                mlp.gate.update_bias(counts_E, rate)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill all weights: matrices from N(0, initializer_range), norms 1, every other vector 0.

        Buffers, which are the router biases, become 0 too: on a model that was built on the meta
        device and then given memory, nothing is left as it was found. The draw depends on the seed
        and the architecture alone, not on the global generator.
        """
        self.tie_weights()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape, dtype=torch.float32)
                drawn.normal_(0.0, self.config.initializer_range, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        for buffer in self.buffers():
            buffer.zero_()


def _default_positions(batch: ForwardBatch) -> Tensor:
    ids_BT = batch.input_ids_BT
    if batch.paged is not None:
        return send(batch.paged.positions_M(), ids_BT.device).unsqueeze(0)
    if batch.documents_BT is not None and batch.branches_BT is not None:
        return branch_positions(batch.documents_BT, batch.branches_BT)
    if batch.documents_BT is not None:
        return document_positions(batch.documents_BT)
    return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)


def _text(documents_BT: Tensor) -> Tensor | None:
    """Tell text from padding, [B * T]; None without padding, where that is known at once."""
    is_text_M = documents_BT.flatten() >= 0
    # Elsewhere the host would have to wait for the answer, which changes no result.
    is_known = is_text_M.device.type == "cpu"
    return None if is_known and bool(is_text_M.all()) else is_text_M
