"""Checkpoint files for tests: rewriting the bytes of safetensors, and writing GGUF.

The GGUF writer is the `gguf` package with llama.cpp's own table of names, so that it shares nothing
with the reader that is tested.
"""

import json

import numpy as np
import torch

from tests.tiny import V3_EXPERTS, latent_config
from ziphius.models.model import Model


def v3_config(**changes):
    """A V3 with a dense, an expert and an MTP layer."""
    return latent_config(**(V3_EXPERTS | {"num_nextn_predict_layers": 1} | changes))


def rounded(model: Model, dtype=torch.bfloat16) -> Model:
    """The model with weights that `dtype` can hold."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return model


def read_parts(file):
    """Split a safetensors file into its header and its data."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def write_parts(file, header, data):
    """Join a header, as JSON or as text, and data to a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change_tensors(file, change):
    """Let `change` edit the dict of all tensors of a file in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file, **changes):
    """Set keys of a JSON file; None removes one."""
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


GGUF_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def write_gguf(
    model, file, kinds=None, *, metadata=None, extra=None, arch=None, raw=None, tensors_per_part=0
):
    """Write a model as llama.cpp's converter does.

    Args:
        kinds: names of number formats by GGUF tensor name; float32 for the others.
        metadata: entries to replace, or None to leave out.
        extra: more tensors, by GGUF name.
        arch: name to write instead of the model type.
        raw: bytes of rows by GGUF name, for formats that the package cannot encode.
        tensors_per_part: split the file into parts of so many tensors, named as llama.cpp does.
    """
    import gguf

    config = model.config
    family = config.model_type
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, family.upper()), config.num_hidden_layers
    )
    writer = gguf.GGUFWriter(file, arch or family, split_max_tensors=tensors_per_part)
    for key, value in (gguf_metadata(config) | (metadata or {})).items():
        add_entry(writer, key, value)
    tensors = dict(model.named_parameters())
    for name, tensor in tensors.items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = llama_cpp_order(name, tensor.detach().float().numpy(), config)
        add_tensor(writer, gguf_name, values, (kinds or {}).get(gguf_name, "F32"), raw or {})
    for name, values in (extra or {}).items():
        add_tensor(writer, name, values, "F32", {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_metadata(config):
    family = config.model_type
    return {
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.key_length": config.head_dim,
        f"{family}.attention.value_length": config.head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{family}.rope.freq_base": config.rope_theta,
        f"{family}.rope.dimension_count": config.head_dim,
        f"{family}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(2000)],
        "tokenizer.ggml.scores": [0.5] * 2000,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def add_entry(writer, key, value):
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def add_tensor(writer, name, values, kind, raw):
    import gguf

    number_format = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(values))
    elif name in raw:
        writer.add_tensor(name, raw[name], raw_dtype=number_format)
    else:
        packed = gguf.quantize(np.ascontiguousarray(values), number_format)
        writer.add_tensor(name, packed, raw_dtype=number_format)


def llama_cpp_order(name, values, config):
    """The rows of query and key as llama.cpp's converter puts them for its own rotation."""
    kind = name.split(".")[-2]
    if config.model_type != "llama" or kind not in GGUF_HEADS:
        return values
    heads = getattr(config, GGUF_HEADS[kind])
    shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
