"""A small network and a training configuration for few short steps, for tests."""

from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.training import TrainingConfig

SIZES = NetworkConfig(width=16, layers=2, heads=2, rank=2)


CONFIG = TrainingConfig(
    seed=1, tasks=2, rounds=2, learned=1, batch=8, order_share=0.0, network=SIZES
)
