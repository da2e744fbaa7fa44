"""Transformers beside the split: published configurations, Hugging Face's Flax implementations.

Encoders and decoders without the heads of pre-training, batch 1; decoders see a whole sequence (no
cache). Swin and the mixture of experts, which have no Flax implementation there, are in
`transformers_own`.
"""

from __future__ import annotations

import functools
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpart.ingest.jaxpr.importer import from_jax
from jaxpart.problem.graph import Graph

from .catalog import Kind, Model
from .transformers_own import moe_block, swin_tiny


def _ids(length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, length), jnp.int32)


def _traced(name: str, model: Any, call: Callable[..., Any], *inputs: Any) -> Graph:
    """The graph of `call(variables, *inputs)`; no weight is materialised."""

    def run(params: Any, *arguments: Any) -> Any:
        return call({"params": params}, *arguments)

    return from_jax(
        run, model.params_shape_tree, *inputs, param_argnums=0, name=name, element_bytes=1
    )


def _bert(name: str, *, width: int, layers: int, heads: int, length: int) -> Graph:
    """BERT (Devlin et al., NAACL 2019): encoder and pooler."""
    from transformers import BertConfig, FlaxBertModel  # pyright: ignore[reportMissingImports]

    config = BertConfig(
        vocab_size=30522,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    model: Any = FlaxBertModel(config, _do_init=False)

    def bert(variables: Any, token_ids: Any, mask: Any, segment_ids: Any) -> Any:
        positions = jnp.arange(length)[None]
        return model.module.apply(variables, token_ids, mask, segment_ids, positions, None)

    return _traced(name, model, bert, *[_ids(length)] * 3)


def _gpt2(name: str) -> Graph:
    """GPT-2 (Radford et al. 2019), the smallest."""
    from transformers import FlaxGPT2Model, GPT2Config  # pyright: ignore[reportMissingImports]

    length = 256
    model: Any = FlaxGPT2Model(GPT2Config(), _do_init=False)

    def gpt2(variables: Any, token_ids: Any) -> Any:
        mask, positions = jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]
        return model.module.apply(variables, token_ids, mask, positions)

    return _traced(name, model, gpt2, _ids(length))


def _t5(name: str) -> Graph:
    """T5 (Raffel et al., JMLR 2020), small: encoder and decoder."""
    from transformers import FlaxT5Model, T5Config  # pyright: ignore[reportMissingImports]

    length = 128
    model: Any = FlaxT5Model(T5Config(), _do_init=False)

    def t5(variables: Any, token_ids: Any, decoded_ids: Any) -> Any:
        ones = jnp.ones((1, length), jnp.int32)
        return model.module.apply(
            variables,
            input_ids=token_ids,
            attention_mask=ones,
            decoder_input_ids=decoded_ids,
            decoder_attention_mask=ones,
        )

    return _traced(name, model, t5, _ids(length), _ids(length))


def _t5_on_todays_jax(name: str) -> Graph:
    """As `_t5`; the last line of transformers with Flax names a bound as jax no longer does."""

    def clip(x: Any, a_max: int) -> Any:
        return jnp.minimum(x, a_max)

    with unittest.mock.patch.object(jnp, "clip", clip):
        return _t5(name)


def _vit(name: str) -> Graph:
    """ViT-B/16 (Dosovitskiy et al., ICLR 2021)."""
    from transformers import FlaxViTModel, ViTConfig  # pyright: ignore[reportMissingImports]

    model: Any = FlaxViTModel(ViTConfig(), _do_init=False, input_shape=(1, 224, 224, 3))
    return _traced(name, model, model.module.apply, jax.ShapeDtypeStruct((1, 224, 224, 3), "f4"))


def _whisper(name: str) -> Graph:
    """Whisper (Radford et al., ICML 2023), tiny: 30 s of sound, 64 words."""
    from transformers import FlaxWhisperModel, WhisperConfig  # pyright: ignore[reportMissingImports]

    length = 64
    config = WhisperConfig(
        vocab_size=51865,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    )
    shape: Any = (1, 80, 3000)
    model: Any = FlaxWhisperModel(config, _do_init=False, input_shape=shape)

    def whisper(variables: Any, features: Any, token_ids: Any) -> Any:
        return model.module.apply(
            variables,
            input_features=features,
            decoder_input_ids=token_ids,
            decoder_attention_mask=jnp.ones((1, length), jnp.int32),
            decoder_position_ids=jnp.arange(length)[None],
        )

    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _traced(name, model, whisper, features, _ids(length))


def _llama(name: str) -> Graph:
    """A decoder in the style of Llama (Touvron et al. 2023), of TinyLlama's configuration."""
    from transformers import FlaxLlamaModel, LlamaConfig  # pyright: ignore[reportMissingImports]

    length = 128
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    model: Any = FlaxLlamaModel(config, _do_init=False, input_shape=(1, length))

    def llama(variables: Any, token_ids: Any) -> Any:
        mask, positions = jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]
        return model.module.apply(variables, token_ids, mask, positions)

    return _traced(name, model, llama, _ids(length))


def _model(
    name: str,
    family: str,
    config: str,
    build: Callable[[str], Graph],
    *,
    fused: bool = True,
    kind: Kind = "transformer",
    source: str = "transformers",
) -> Model:
    traced = functools.partial(build, name)
    return Model(name, family, kind, source, "Apache-2.0", config, "extra", traced, fused)


MODELS = (
    _model(
        "bert-large",
        "bert",
        "24 x 1024, 16 heads, 384 tokens",
        functools.partial(_bert, width=1024, layers=24, heads=16, length=384),
        fused=False,
    ),
    _model(
        "bert-base",
        "bert",
        "12 x 768, 12 heads, 384 tokens",
        functools.partial(_bert, width=768, layers=12, heads=12, length=384),
    ),
    _model("gpt2", "gpt2", "12 x 768, 12 heads, 256 tokens", _gpt2),
    _model("t5-small", "t5", "6 + 6 x 512, 8 heads, 128 tokens to 128", _t5_on_todays_jax),
    _model("vit-b16", "vit", "12 x 768, 12 heads, 224 x 224 x 3", _vit),
    _model("whisper-tiny", "whisper", "4 + 4 x 384, 6 heads, 30 s to 64 tokens", _whisper),
    _model("llama-1.1b", "llama", "22 x 2048, 32 heads on 4, 128 tokens", _llama),
    _model(
        "swin-tiny", "swin", "2-2-6-2 x 96, windows of 7, 224 x 224 x 3", swin_tiny, source="flax"
    ),
    _model(
        "moe-block",
        "moe",
        "8 experts of 3,584, 2 a token, width 1024, 64 tokens",
        moe_block,
        kind="moe",
        source="flax",
    ),
)
