"""Search by the policy: zero-shot samples first, then fine-tuning on the given graph.

Source: Xie et al. (MLSys 2022), section 5.3. Every round proposes changes to the best partition
known. This can be a sample, the solver's repair of a sample, the initial partition, or the result
of another method.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.batch import batch_within, is_accelerator, steps_ahead
from jaxpart.cost.device import pad_assignments
from jaxpart.cost.evaluate import evaluate
from jaxpart.environment import share_of_memory
from jaxpart.errors import InputError
from jaxpart.methods.policy import checkpoint, ppo
from jaxpart.methods.policy.actions import Decoder
from jaxpart.methods.policy.checkpoint import Policy
from jaxpart.methods.policy.network import NetworkConfig
from jaxpart.methods.policy.rollout import (
    Mode,
    Rollout,
    State,
    Task,
    advanced,
    initial_params,
    play,
)
from jaxpart.methods.repair.search import Workers
from jaxpart.runtime.background import in_thread
from jaxpart.runtime.state import Method, Search

# Samples per round. The first rounds are small, so that the search soon continues from a better
# partition. Later rounds are large, because they still find improvements when small rounds do not.
# Learning needs large rounds to compare samples. In the background, rounds are large because each
# round has a fixed cost. A GPU or TPU takes thousands in the time of a few.
BATCH = 16
_LARGE_BATCH = 64
_ACCELERATOR_BATCH = 4096  # or more, if the device likes; fewer, where more do not fit
# Of a round's scores of chips on an accelerator: this share of its memory, or so many bytes where
# the device does not say how much it has.
_SCORES_SHARE, _MOST_SCORES_BYTES = 1 / 4, 2**33
ZERO_SHOT = 1024  # samples in small rounds; by default, learning starts after them
MAX_PLAYED = 5000  # contracted nodes; on larger graphs a background step takes seconds


@dataclasses.dataclass(frozen=True)
class PolicySearchConfig:
    """How a search uses the policy."""

    decoder: Decoder | Literal["both"] = "labels"
    mode: Mode = "fix"
    learn_after: int | None = ZERO_SHOT  # samples before learning starts; None: never
    ppo_config: ppo.PPOConfig = dataclasses.field(default_factory=ppo.PPOConfig)
    solver: bool = True  # whether SCIP repairs promising invalid samples
    batch: int | None = None  # samples per round; None: few at first on a CPU, else thousands
    refines: bool = True  # whether rounds start from the best so far, or all from `Task.start`
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)  # of fresh weights


NO_POLICY = "none"  # use no policy
FRESH = "fresh"  # use an untrained policy
# Name of a shipped policy, path of a checkpoint, FRESH, NO_POLICY or a policy. None: the default
# policy (`checkpoint.SHIPPED`).
PolicySource = str | os.PathLike[str] | Policy | None


def policy_search(search: Search, policy: PolicySource = None) -> Generator[None]:
    """The search method `policy`.

    Args:
      search: the search that it works for.
      policy: the weights to start from.

    Raises:
      InputError: there is no such policy, or it is damaged.
    """
    trained, note = policy_of(policy)
    if note:
        search.notes.append(note)
    return with_policy(trained, PolicySearchConfig())(search)


def check_policy(policy: PolicySource, *, is_needed: bool) -> None:
    """Checks that a policy can be used.

    Args:
      policy: to check.
      is_needed: whether the method cannot run without a policy.

    Raises:
      InputError: there is no such policy, it is damaged, or it is `NO_POLICY` although needed.
    """
    if policy is not None and (is_needed or policy != NO_POLICY):
        policy_of(policy)


def policy_of(policy: PolicySource) -> tuple[Policy | None, str]:
    """Loads a policy.

    Args:
      policy: what to load.

    Returns:
      The policy, or None for an untrained one; and a note for the user, which may be empty.

    Raises:
      InputError: there is no such policy, it is damaged, or it is `NO_POLICY`.
    """
    if isinstance(policy, Policy):
        return policy, ""
    if policy == NO_POLICY:
        raise InputError(
            f"a policy is needed here, but policy is {NO_POLICY!r}; expected a shipped policy's "
            f"name, a checkpoint, or {FRESH!r} for an untrained one"
        )
    if policy == FRESH:
        return None, ""
    if policy is None and checkpoint.SHIPPED not in checkpoint.shipped_policies():
        return None, "no policy is shipped: an untrained one is used"
    return Policy.load(checkpoint.SHIPPED if policy is None else policy), ""


def with_policy(
    trained: Policy | None,
    config: PolicySearchConfig,
    keep: Callable[[Policy], None] = lambda trained: None,
) -> Method:
    """Makes a search method of a policy.

    Args:
      trained: the weights to start from; None: fresh weights, drawn by the seed of the search.
      config: how the search uses the policy.
      keep: called with the current weights after every round.
    """

    def method(search: Search) -> Generator[None]:
        search.enter("policy")
        task = Task.build(search.problem)
        params, sizes = params_of(trained, task, search.seed, config.network)
        opt_state = ppo.optimizer(config.ppo_config).init(params)
        state, key, step, own = task.start, jax.random.key(search.seed), 0, 0
        compiled: set[tuple[str, int, Decoder]] = set()
        with search.compiling():
            wide = _accelerator_batch(task)
        pending: deque[_Round] = deque()
        with contextlib.closing(Workers(search)) as workers:
            while True:
                while len(pending) <= steps_ahead():
                    decoder = _decoder(config, step)
                    learns = config.learn_after is not None and own >= config.learn_after
                    batch = config.batch or wide or _batch(is_large=learns or own >= ZERO_SHOT)
                    with _billed(search, compiled, ("play", batch, decoder)) as wait:
                        made = play(
                            params, sizes, task, state, jax.random.fold_in(key, step),
                            batch=batch, decoder=decoder, mode=config.mode,
                        )  # fmt: skip
                        wait(made.after)
                    pending.append(_Round(state, made, decoder, learns))
                    own, step = own + batch, step + 1
                    if config.refines:
                        state = made.after
                before, made, decoder, learns = pending.popleft()
                search.offer_batch(made.assignments, made.costs)
                if config.solver:
                    workers.repair_promising()
                    workers.collect()
                search.start_clock()
                if learns:
                    reward = task.reference_s / made.costs.bottleneck_s
                    worth = ppo.advantages(reward, made.costs.valid)
                    transition = ppo.Transition(
                        task.features, before, made.actions, made.log_prob, worth
                    )
                    part = ppo.part_for(worth.shape[0])
                    for _ in range(config.ppo_config.epochs):
                        with _billed(search, compiled, ("learn", len(worth), decoder)) as wait:
                            gradient, _ = ppo.gradient(
                                params, transition, sizes, config.ppo_config, decoder, part
                            )
                            params, opt_state = ppo.apply_gradients(
                                params, opt_state, [gradient], config.ppo_config
                            )
                            wait(params)
                if config.refines:
                    state = _joined(search, task, state, made)
                keep(Policy(params, sizes, {}))
                yield

    return method


@contextlib.contextmanager
def _billed(
    search: Search, compiled: set[tuple[str, int, Decoder]], program: tuple[str, int, Decoder]
) -> Generator[Callable[[Any], object]]:
    """Context for a call of a program; where it is the first, its time is that of compilation.

    Args:
      search: that the program works for.
      compiled: programs called before; the program is added.
      program: its name, batch and decoder.

    Yields:
      What waits for the results of the first call, and not for those of later ones.
    """
    if program in compiled:
        yield lambda results: None
        return
    with search.compiling():
        yield jax.block_until_ready
    compiled.add(program)


class _Round(NamedTuple):
    """A round that the device has been given."""

    before: State  # the state before it
    made: Rollout
    decoder: Decoder
    learns: bool  # whether weights change by it


def policy_background(search: Search, policy: PolicySource = None) -> Generator[bool]:
    """Draws zero-shot samples of labels, in the background of other methods.

    Every round starts from the best partition of all methods. Under a time limit, the policy is
    compiled in a thread (`in_thread` in `runtime/background.py`). The generator ends at once if the
    policy is `NO_POLICY`, or if the graph has more than `MAX_PLAYED` contracted nodes.

    Args:
      search: the search that it works for.
      policy: the weights.

    Yields:
      True if it only waits because another method is compiling; False if it used the step, for its
      own compilation or for a round.

    Raises:
      InputError: there is no such policy, or it is damaged.
    """
    if policy == NO_POLICY or search.problem.num_contracted > MAX_PLAYED:
        return

    def prepared() -> tuple[Task, Any, NetworkConfig, int]:
        trained, _ = policy_of(policy)
        task = Task.build(search.problem)
        params, sizes = params_of(trained, task, search.seed)
        batch = _accelerator_batch(task) or _batch(is_large=True)
        made = _played(task, params, sizes, task.start, jax.random.key(0), batch)
        jax.block_until_ready(_joined(search, task, made.after, made))
        return task, params, sizes, batch

    if search.budget.time_limit_s is not None:
        task, params, sizes, batch = yield from in_thread(prepared, compiles=True)
    else:
        with search.compiling():
            task, params, sizes, batch = prepared()
    search.start_clock()
    state, key = task.start, jax.random.key(search.seed)
    pending: deque[Rollout] = deque()
    for step in itertools.count():
        while len(pending) <= steps_ahead():
            round_key = jax.random.fold_in(key, step + len(pending))
            pending.append(_played(task, params, sizes, state, round_key, batch))
            search.device_time.given("policy", pending[-1].costs.valid)
            state = pending[-1].after
        made = pending.popleft()
        search.offer_batch(made.assignments, made.costs)
        state = _joined(search, task, state, made)
        yield False


def _played(
    task: Task, params: Any, sizes: NetworkConfig, state: State, key: jax.Array, batch: int
) -> Rollout:
    """One round in the background."""
    return play(params, sizes, task, state, key, batch=batch, decoder="labels", mode="fix")


def _batch(*, is_large: bool) -> int:
    """Samples of a round on a CPU."""
    return _LARGE_BATCH if is_large else BATCH


def _accelerator_batch(task: Task) -> int | None:
    """Samples of a round on an accelerator, as far as their scores fit; None: on a CPU."""
    if not is_accelerator():
        return None
    sample_bytes = 4 * task.contracted.padded_nodes * task.contracted.config.num_chips
    most_bytes = share_of_memory(_SCORES_SHARE, _MOST_SCORES_BYTES)
    return batch_within(task.device, BATCH, sample_bytes, most_bytes, _ACCELERATOR_BATCH)


def params_of(
    trained: Policy | None, task: Task, seed: int, fresh: NetworkConfig | None = None
) -> tuple[Any, NetworkConfig]:
    """The weights of a policy, or fresh weights.

    Args:
      trained: the policy; None: fresh weights.
      task: any task.
      seed: of fresh weights.
      fresh: sizes of a network with fresh weights; None: the defaults.

    Returns:
      The weights, and the sizes of the network.
    """
    if trained is None:
        sizes = fresh or NetworkConfig()
        return initial_params(sizes, task, seed), sizes
    return trained.params, trained.network


def _decoder(config: PolicySearchConfig, step: int) -> Decoder:
    """The decoder of a round. For "both", one round in eight has orders, which cost more."""
    if config.decoder != "both":
        return config.decoder
    return "orders" if step % 8 == 7 else "labels"


def _joined(search: Search, task: Task, state: State, made: Rollout) -> State:
    """The newest state, with the search's best partition if that is better.

    Args:
      search: its best was found by any method.
      task: the graph on the module.
      state: the newest; the device may still be computing it.
      made: the newest round that the host has looked at. Only its state is waited for.
    """
    if search.best is None or search.best_s >= float(made.after.bottleneck_s) * (1 - 1e-5):
        return state
    # Repeated to the width of the batch: the programs for it are already compiled.
    columns = np.repeat(search.best[:, None], made.assignments.shape[1], axis=1)
    assignments = jnp.asarray(pad_assignments(task.device, columns))
    return advanced(task, state, assignments, evaluate(task.device, assignments))
