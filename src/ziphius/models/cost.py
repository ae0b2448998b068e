"""What a model costs: parameters, FLOPs, cache bytes and memory, from its config alone.

Everything but the memory is exact and follows from the shapes in `models/`; a test holds the
parameters to the sum over the model itself. Two parameters in a product cost two FLOPs per token;
norms, activations, softmax and the embedding's lookup are left out, as is usual. The comparison of
caches follows DeepSeek-V2 (arXiv 2405.04434), table 1.

Shapes: D hidden, N heads, C latent, P no-rope, R rope, V value, F expert width, I dense width,
W vocabulary, K experts per token.
"""

from dataclasses import dataclass
from typing import Literal

from ziphius.core.errors import ConfigError
from ziphius.models.attention_spec import AttentionForm, attention_spec, cache_specs
from ziphius.models.config import ModelConfig

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
BIAS_BYTES = 4  # a router bias is float32 in every model
RUNTIME_BYTES = 116 * 2**20
"""What a process takes as soon as it trains on a CPU, however small the model: pages of the
libraries, kernels made for its shapes, threads (100 MiB, measured), and a block of logits."""
HOLES = 1 / 8
"""Free places between living tensors, as a share of the activations; bench/memory.py has more where
the allocator keeps what was freed (core/memory.py), and less on accelerators."""


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters; the parts from `embedding` to `norms` add up to `main`."""

    embedding: int
    head: int
    """0 when tied to the embedding."""
    attention: int
    dense_layers: int
    routed_experts: int
    shared_experts: int
    routers: int
    norms: int
    main: int
    mtp: int
    """Of the MTP layers alone, without their copies of embedding and head."""
    mtp_active: int
    """Of `mtp`, those that one token uses."""
    router_biases: int
    """Balancing biases of all layers: buffers, in no other count here."""
    active: int
    """Of `main`, those that one token uses, embedding and head included."""
    active_without_embedding: int
    active_trunk: int
    """Without embedding and head."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token; all but `decode` at the mean context of a sequence."""

    training: int
    """Forward and backward (twice the forward), first form of attention, MTP layers left out."""
    training_mtp: int
    """What the MTP layers add to it."""
    prefill: int
    """Forward of a prompt with the head at its last token only."""
    decode: int
    """Forward of one token behind a full context, in the cheapest form of attention."""


@dataclass(frozen=True)
class CacheBytes:
    """Bytes a token of context holds in the main layers, against other kinds of attention.

    The others have the model's own number of heads and head width (for latent attention the part
    without rotation, as in DeepSeek-V2's comparison).
    """

    own: int
    mha: int
    """A key and a value for every head."""
    gqa: int
    """One pair for each of 8 groups of heads."""
    mqa: int
    """One pair for all heads."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes to serve and to train `batch` sequences of `context` tokens, one device."""

    weights: int
    cache: int
    working: int
    serve: int
    packed: int
    """On a CPU besides, while a native program runs it: its own copy of all matrices."""
    masters: int
    gradients: int
    moments: int
    activations: int
    runtime: int
    """The libraries' own, a block of logits, the head's gradient while it is added up, holes."""
    train: int


@dataclass(frozen=True)
class ModelCost:
    """All costs of one model at one batch, context and dtype."""

    batch: int
    context: int
    dtype: Dtype
    parameters: Parameters
    flops: Flops
    cache_bytes: CacheBytes
    memory: Memory


def model_cost(
    config: ModelConfig, *, batch: int = 1, context: int = 4_096, dtype: Dtype = "bfloat16"
) -> ModelCost:
    """Work out what a model costs, without building it.

    Args:
        config: the model.
        batch: sequences held at once.
        context: tokens of each.
        dtype: of weights and cache in serving; in training other than float32 means autocast over
            float32 masters.
    """
    if batch < 1 or context < 1:
        raise ConfigError(f"batch = {batch} and context = {context}: both must be 1 or more.")
    if context > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise ConfigError(f"context = {context}: the model reaches {limit:,} tokens at most.")
    parameters = count_parameters(config)
    size = DTYPE_BYTES[dtype]
    return ModelCost(
        batch=batch,
        context=context,
        dtype=dtype,
        parameters=parameters,
        flops=_flops(config, context),
        cache_bytes=_cache_bytes(config, size),
        memory=_memory(config, parameters, batch * context, batch, size),
    )


def count_parameters(config: ModelConfig) -> Parameters:
    """Count exactly what `Model(config)` holds."""
    layers = range(config.num_hidden_layers)
    expert_layers = sum(map(config.is_expert_layer, layers))
    matrices, vectors = _attention(config)
    embedding = config.vocab_size * config.hidden_size
    head = 0 if config.tie_word_embeddings else embedding
    parts = {
        "attention": len(layers) * (matrices + vectors),
        "dense_layers": (len(layers) - expert_layers) * _feed_forward(config),
        "routed_experts": expert_layers * config.n_routed_experts * _expert(config),
        "shared_experts": expert_layers * config.n_shared_experts * _expert(config),
        "routers": expert_layers * _router(config),
        "norms": (2 * len(layers) + 1) * config.hidden_size,
    }
    mtp_layers = config.num_nextn_predict_layers
    idle = (config.n_routed_experts - config.num_experts_per_tok) * _expert(config)
    trunk = sum(parts.values()) - expert_layers * idle
    biases = config.n_routed_experts if config.topk_method == "noaux_tc" else 0
    return Parameters(
        embedding=embedding,
        head=head,
        **parts,
        main=embedding + head + sum(parts.values()),
        mtp=mtp_layers * _mtp_layer(config),
        mtp_active=mtp_layers * (_mtp_layer(config) - idle),
        router_biases=(expert_layers + mtp_layers) * biases,
        active=trunk + embedding + head,
        active_without_embedding=trunk + embedding,
        active_trunk=trunk,
    )


def _attention(config: ModelConfig) -> tuple[int, int]:
    """Count one layer's attention: parameters of projections, and of its own norms and biases."""
    width, heads = config.hidden_size, config.num_attention_heads
    queries = heads * config.q_head_dim
    if config.attention == "mla":
        assert config.kv_lora_rank is not None
        assert config.qk_rope_head_dim is not None
        assert config.qk_nope_head_dim is not None
        assert config.v_head_dim is not None
        latent = config.kv_lora_rank
        query = width * queries
        if config.q_lora_rank is not None:
            query = config.q_lora_rank * (width + queries)
        down = width * (latent + config.qk_rope_head_dim)
        up = latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
        out = heads * config.v_head_dim * width
        return query + down + up + out, latent + (config.q_lora_rank or 0)
    keys = config.num_key_value_heads * config.q_head_dim
    vectors = 0
    if config.qkv_bias or config.attention_bias:
        vectors += queries + 2 * keys
    if config.attention_bias:
        vectors += width
    if config.qk_norm:
        vectors += 2 * config.q_head_dim
    return 2 * width * (queries + keys), vectors


def _feed_forward(config: ModelConfig) -> int:
    return 3 * config.hidden_size * config.intermediate_size


def _expert(config: ModelConfig) -> int:
    return 3 * config.hidden_size * config.moe_intermediate_size


def _router(config: ModelConfig) -> int:
    return config.hidden_size * config.n_routed_experts


def _mtp_layer(config: ModelConfig) -> int:
    """Count one MTP layer: a block, its projection from 2 D to D, and three further norms."""
    width = config.hidden_size
    if config.n_routed_experts:
        experts = config.n_routed_experts + config.n_shared_experts
        mlp = _router(config) + experts * _expert(config)
    else:
        mlp = _feed_forward(config)
    return sum(_attention(config)) + mlp + 2 * width + 2 * width * width + 3 * width


def _products(config: ModelConfig, layer_idx: int) -> int:
    """Count the parameters of one layer that multiply a token."""
    matrices, _ = _attention(config)
    if not config.is_expert_layer(layer_idx):
        return matrices + _feed_forward(config)
    experts = config.num_experts_per_tok + config.n_shared_experts
    return matrices + _router(config) + experts * _expert(config)


def _flops(config: ModelConfig, context: int) -> Flops:
    layers = config.num_hidden_layers
    trunk = 2 * sum(_products(config, index) for index in range(layers))
    head = 2 * config.vocab_size * config.hidden_size
    specs = [attention_spec(config, index) for index in range(layers)]
    mean, visible = _mean_visible(config, context), _visible(config, context)
    pairs = mean * sum(2 * spec.forms[0].per_pair for spec in specs)
    mtp_pairs = mean * 2 * attention_spec(config, layers).forms[0].per_pair
    mtp_layer = 2 * (_products(config, layers) + 2 * config.hidden_size**2) + head + mtp_pairs
    behind = sum(2 * _behind(spec.cheapest(1, visible), visible) for spec in specs)
    return Flops(
        training=round(3 * (trunk + head + pairs)),
        training_mtp=round(3 * config.num_nextn_predict_layers * mtp_layer),
        prefill=round(trunk + head / context + pairs),
        decode=trunk + head + behind,
    )


def _behind(form: AttentionForm, keys: int) -> int:
    """Count what one query takes beside the weights, which the trunk has applied to it once."""
    return form.cost(1, keys) - form.per_key - form.per_query


def _value_width(config: ModelConfig) -> int:
    return config.v_head_dim or config.q_head_dim


def _visible(config: ModelConfig, context: int) -> int:
    """Count the keys that the last of `context` tokens sees."""
    if config.sliding_window is None:
        return context
    return min(context, config.sliding_window + config.attention_sinks)


def _mean_visible(config: ModelConfig, context: int) -> float:
    """Average the visible keys over the positions of a causal sequence."""
    most = _visible(config, context)
    growing = most * (most + 1) / 2
    return (growing + (context - most) * most) / context


def _cache_bytes(config: ModelConfig, size: int) -> CacheBytes:
    pair = 2 * _value_width(config) * config.num_hidden_layers * size
    return CacheBytes(
        own=sum(spec.numbers for spec in cache_specs(config)[: config.num_hidden_layers]) * size,
        mha=config.num_attention_heads * pair,
        gqa=min(8, config.num_attention_heads) * pair,
        mqa=pair,
    )


def _memory(
    config: ModelConfig, parameters: Parameters, tokens: int, batch: int, size: int
) -> Memory:
    count = parameters.main + parameters.mtp
    biases = BIAS_BYTES * parameters.router_biases
    serving = {
        "weights": count * size + biases,
        "cache": sum(spec.numbers for spec in cache_specs(config)) * size * tokens,
        "working": _working_bytes(config, tokens, batch, size),
    }
    # Embeddings are read where they lie, but multiplied by as a head.
    looked_up = 0 if config.tie_word_embeddings else parameters.embedding
    training = {
        # Float32 masters; autocast keeps a copy of a matrix in the smaller dtype beside them,
        # except of routed experts, whose kernel reads the masters.
        "masters": 4 * count + (size * (count - _all_routed(config)) if size < 4 else 0) + biases,
        "gradients": 4 * count,
        "moments": 8 * count,  # AdamW's two
        "activations": tokens * activation_bytes(config, size),
        "runtime": RUNTIME_BYTES
        + 8 * config.vocab_size * config.hidden_size
        + int(HOLES * tokens * activation_bytes(config, size)),
    }
    return Memory(
        **serving,
        serve=sum(serving.values()),
        packed=(parameters.main - looked_up) * size,
        **training,
        train=sum(training.values()),
    )


def _working_bytes(config: ModelConfig, tokens: int, batch: int, size: int) -> int:
    """Estimate what a prefill of the whole batch holds at its largest layer beside the weights.

    The largest of: residual, norm and sum (3 D) beside attention's queries, keys, values, output
    and a copy of one (5 N (P + R)), or beside a dense layer's gate, up and product (3 I); and five
    of the former (5 D) beside the experts' rows in, out and gathered (3 K D), weighted in float32,
    for which a smaller dtype is copied first. Then the float32 logits of the last tokens, twice.
    """
    queries = config.num_attention_heads * config.q_head_dim
    attention = 5 * size * queries
    if config.qk_norm:
        attention += (8 - 2 * size) * queries  # float32 copies that a smaller dtype needs
    dense = size * (3 * config.hidden_size + 3 * config.intermediate_size)
    pairs = config.num_experts_per_tok * config.hidden_size
    experts = 5 * size * config.hidden_size + (3 * size + (4 if size == 4 else 8)) * pairs
    per_token = max(3 * size * config.hidden_size + attention, dense, experts)
    return tokens * per_token + 8 * batch * config.vocab_size


def activation_bytes(config: ModelConfig, size: int) -> int:
    """Estimate the bytes per token that a training step holds at the start of its backward pass.

    Counts what the fused operations of `ops/` keep for their gradients, without recomputation: a
    norm its float32 input and its result, each product its input, `size` bytes wide, the head the
    gradient of its input. Logits exist a block at a time and are left out.
    """
    norm = config.hidden_size * (4 + size)
    total = norm + size * config.hidden_size
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    for layer_idx in range(layers):
        total += 2 * norm + size * _attention_activations(config)
        if config.is_expert_layer(layer_idx):
            routed, shared = config.num_experts_per_tok, config.n_shared_experts
            # A routed pair keeps gate and up, its weight and two numbers of its place.
            total += size * (2 * routed + 3 * shared) * config.moe_intermediate_size
            total += 20 * routed + 16 * config.n_routed_experts
        else:
            total += size * 3 * config.intermediate_size
    # An MTP layer keeps the embeddings, the joined input, its last norm and the head's gradient.
    mtp = norm + config.hidden_size * (4 + 3 * size)
    return total + config.num_nextn_predict_layers * mtp


def _all_routed(config: ModelConfig) -> int:
    """Count the weights of all routed experts, those of MTP layers included."""
    layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
    return sum(map(config.is_expert_layer, layers)) * config.n_routed_experts * _expert(config)


def _attention_activations(config: ModelConfig) -> int:
    """Count values per token and layer: queries, keys, values and outputs, and the latents."""
    heads = config.num_attention_heads
    kept = heads * (2 * config.q_head_dim + 3 * _value_width(config))
    if config.attention == "mla":
        assert config.kv_lora_rank is not None
        return kept + 4 * config.kv_lora_rank + 2 * (config.q_lora_rank or 0)
    if config.qk_norm:
        kept += (heads + config.num_key_value_heads) * config.q_head_dim
    return kept
