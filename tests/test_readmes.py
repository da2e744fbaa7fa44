"""The Python of the READMEs runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpart
from tests.support.graphs import parallel_chains
from tests.support.modules import THREE_CHIPS

ROOT = Path(__file__).parents[1]


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("README.md", 1),
        ("jaxpart/README.md", 2),
        ("jaxpart/export/README.md", 1),
        ("data/graphs/README.md", 1),
    ],
)
def test_a_readme_s_python_runs(path, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(path)
    assert len(found) == count
    # What the text takes for granted; names made in one block are known in the next.
    known = {"graph": parallel_chains(2, 6), "mcm": THREE_CHIPS, "jaxpart": jaxpart}
    for block in found:
        # A search ends when it has a proof; a busy machine needs longer for it.
        exec(block.replace("time_limit_s=10", "time_limit_s=60"), known)
        if isinstance(known.get("result"), jaxpart.Result):
            assert known["result"].costs.valid
    if path == "README.md":
        assert (tmp_path / "mlp.result.json").exists()
        assert known["result"].problem.num_chips == 8
    if path == "jaxpart/export/README.md":
        expected = known["mlp"](known["weights"], jnp.ones((4, 256)))
        np.testing.assert_allclose(known["y"], expected, rtol=1e-5)
        assert (tmp_path / "mlp.stages" / "manifest.json").exists()


def test_pretraining_needs_public_names_alone(tmp_path):
    graphs = [parallel_chains(2, 4), parallel_chains(3, 3, seed=1)]
    train = jaxpart.pretraining_pairs(graphs[:1], 1, 0)
    valid = jaxpart.pretraining_pairs(graphs[1:], 1, 1)
    network = jaxpart.NetworkConfig(width=16, layers=1, heads=2, rank=2)
    config = jaxpart.TrainingConfig(tasks=1, rounds=2, learned=1, batch=8, network=network)
    run = jaxpart.PretrainingRun(tmp_path, 2, save_every=1, validate_every=2)

    path = jaxpart.pretrain(train, valid, config, run)

    policy = jaxpart.Policy.load(path)
    assert policy.network == network
    assert len(jax.tree.leaves(policy.params)) > 10
