"""Traces BERT-large and writes its graph: python scripts/build_bert.py [--out FILE].

The encoder and pooler of Hugging Face's Flax implementation (`pip install jaxpart[trace]`), batch
1, 384 tokens, float tensors counted as int8. The heads of pre-training are left out: a fine-tuned
BERT has none. Nothing is downloaded and no weight is materialised.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpart.graph import Graph
from jaxpart.ingest.jaxpr import from_jax

SEQUENCE_LENGTH = 384
OUT = Path(__file__).parents[1] / "data" / "graphs" / "bert-large.json.gz"


def build() -> Graph:
    """BERT-large (Devlin et al., NAACL 2019): 24 layers, width 1024, 16 heads, 30,522 words."""
    from transformers import BertConfig, FlaxBertModel  # pyright: ignore[reportMissingImports]

    config = BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    model: Any = FlaxBertModel(config, _do_init=False)
    tokens = jax.ShapeDtypeStruct((1, SEQUENCE_LENGTH), jnp.int32)

    def bert(params: Any, token_ids: Any, mask: Any, segment_ids: Any) -> Any:
        positions = jnp.arange(SEQUENCE_LENGTH)[None]
        variables = {"params": params}
        return model.module.apply(variables, token_ids, mask, segment_ids, positions, None)

    return from_jax(
        bert,
        model.params_shape_tree,
        tokens,
        tokens,
        tokens,
        params=0,
        name="bert-large",
        element_bytes=1,
    )


def main() -> None:
    """Builds and writes the graph, and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    out = parser.parse_args().out
    graph = build()
    graph.save(out)
    span = max(k.consumers[-1] - k.producer for k in graph.tensors if k.consumers)
    print(
        f"{out}: {len(graph.nodes)} nodes, {graph.num_edges} edges, "
        f"{graph.total_flops / 1e9:.1f} GFLOP, {graph.weight_bytes / 1e6:.1f} MB of weights, "
        f"longest edge {span} nodes"
    )


if __name__ == "__main__":
    main()
