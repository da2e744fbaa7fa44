"""Accelerators that programs are compiled for without having them, and what these can do.

`jax.experimental.topologies` gives devices to compile for; neither a driver nor hardware is needed.
The plugins are those of the extra `aot`. `prepare` must be called before JAX is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hlo import Counts

# What XLA asks of an H100 with 80 GB, as text of its `GpuTargetConfigProto`.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs: several processes may compile at once
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Target(NamedTuple):
    """A kind of device.

    The figures are published ones, or follow from published ones. `launch_s` and `question_s` are
    customary values; none of them was measured here.
    """

    name: str
    backend: str  # what `jax.default_backend` says there
    packages: tuple[str, ...]  # modules that compile for it
    launch_s: float = 0.0  # of one kernel
    question_s: float = 0.0  # to the host, with its answer
    bytes_per_s: float = 0.0  # of its memory; 0: nothing is predicted
    # Operations on 32-bit integers. A vector unit does as many on floats, or twice as many.
    operations_per_s: float = 0.0
    cores: int = 1  # multiprocessors of a GPU

    def seconds(self, counts: Counts) -> float | None:
        """The predicted time of one call.

        launches * launch_s + questions * question_s
            + max(bytes / bytes_per_s, operations / operations_per_s)
        """
        if not self.bytes_per_s:
            return None
        moved_s = counts.num_bytes / self.bytes_per_s
        computed_s = counts.operations / self.operations_per_s
        waited_s = counts.launches * self.launch_s + counts.questions * self.question_s
        return waited_s + max(moved_s, computed_s)

    def describe(self) -> str:
        """The figures of the prediction."""
        return (
            f"{self.name}: {self.launch_s * 1e6:g} us a launch, {self.question_s * 1e6:g} us a "
            f"question to the host, {self.bytes_per_s:.3g} bytes/s, "
            f"{self.operations_per_s:.3g} operations/s"
        )


TARGETS = {
    target.name: target
    for target in (
        # 132 multiprocessors, 64 integer lanes each, 1.755 GHz.
        Target("h100", "gpu", ("jax_cuda12_plugin",), 3e-6, 1e-5, 3.35e12, 1.48e13, 132),
        # 1,024 lanes, four vector units each, 1.5 GHz. The whole program is launched once, and its
        # conditions are decided on the device; a kernel in it takes about 1 us to begin.
        Target("v5e", "tpu", ("libtpu",), 1e-6, 0.0, 8.2e11, 6.1e12),
        Target("cpu", "cpu", ()),
    )
}


def prepare() -> None:
    """Sets what the plugins read when JAX starts.

    Raises:
      RuntimeError: JAX was imported before.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax is imported; targets.prepare() comes first")
    os.environ.update(_ENVIRONMENT)


def missing(target: Target) -> list[str]:
    """Modules that a target needs and that are not installed."""
    return [name for name in target.packages if importlib.util.find_spec(name) is None]


def devices_of(target: Target, count: int = 1) -> list[Any]:
    """Devices of the target; a program that is lowered for them is compiled for it.

    Args:
      target: what they are.
      count: how many; a v5e has 4 at most, and a CPU those that there are.

    Raises:
      InputError: there are fewer.
    """
    import jax
    from jax.experimental import topologies

    from jaxpart.errors import InputError

    if target.name == "h100":
        devices = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"1x1x{count}", target_config=_H100
        ).devices
    elif target.name == "v5e":
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:2x2", chip_config_name="default"
        ).devices
    else:
        devices = jax.local_devices(backend="cpu")
    if len(devices) < count:
        raise InputError(f"{target.name}: {count} devices wanted, but there are {len(devices)}")
    return list(devices[:count])
