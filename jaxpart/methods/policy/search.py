"""Search by the policy: zero-shot samples first, then fine-tuning on the graph at hand.

Xie et al. (MLSys 2022), section 5.3. Every round proposes changes to the best partition known,
whoever found it: a sample, the solver's repair of one, or the partition to start from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpart.cost.device import pad_assignments
from jaxpart.cost.evaluate import evaluate
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

# Samples of a round. At first few, so that rounds soon go on from something better; later more,
# which find a way out where few find none. Learning needs them to compare, and beside other methods
# a step has to be worth its start.
BATCH = 16
_LARGE_BATCH = 64
ZERO_SHOT = 1024  # samples of small rounds, not learned from
# Beyond this many contracted nodes a step takes seconds.
MAX_CONTRACTED = 5000


@dataclasses.dataclass(frozen=True)
class PolicySearchConfig:
    """How a search uses the policy."""

    decoder: Decoder | Literal["both"] = "labels"
    mode: Mode = "fix"
    learn_after: int | None = ZERO_SHOT  # samples without learning first; None: never learn
    settings: ppo.PPOConfig = dataclasses.field(default_factory=ppo.PPOConfig)
    solver: bool = True  # whether SCIP repairs what memory forbids
    refines: bool = True  # whether rounds go on from the best so far, or all begin anew
    sizes: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)  # of fresh weights


NO_POLICY = "none"  # no policy at all
FRESH = "fresh"  # an untrained one
# A shipped policy's name, a checkpoint's path, FRESH, NO_POLICY or a policy; None: the shipped one.
PolicySource = str | os.PathLike[str] | Policy | None


def policy_search(search: Search, policy: PolicySource = None) -> Generator[None]:
    """The method `policy`.

    Raises:
      InputError: no such policy, or a damaged one.
    """
    trained, note = policy_of(policy)
    if note:
        search.notes.append(note)
    return with_policy(trained, PolicySearchConfig())(search)


def check_policy(policy: PolicySource, *, is_needed: bool) -> None:
    """Raises InputError where there is no such policy, it is damaged, or none although needed."""
    if policy is not None and (is_needed or policy != NO_POLICY):
        policy_of(policy)


def policy_of(policy: PolicySource) -> tuple[Policy | None, str]:
    """The policy that is named, None for an untrained one; and a note for the user.

    Raises:
      InputError: no such policy, or a damaged one.
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
    return Policy.load(policy or checkpoint.SHIPPED), ""


def with_policy(
    trained: Policy | None,
    use: PolicySearchConfig,
    keep: Callable[[Policy], None] = lambda trained: None,
) -> Method:
    """The search method with these weights; fresh ones, drawn by the search's seed, if None.

    Args:
      keep: called with the weights after every round.
    """

    def method(search: Search) -> Generator[None]:
        search.enter("policy")
        task = Task.build(search.problem)
        params, sizes = weights_of(trained, task, search.seed, use.sizes)
        opt_state = ppo.optimizer(use.settings).init(params)
        state, key, step, own = task.start, jax.random.key(search.seed), 0, 0
        compiled: set[tuple[int, Decoder]] = set()
        with Workers(search) as workers:
            while True:
                decoder = _decoder(use, step)
                learns = use.learn_after is not None and own >= use.learn_after
                batch = _LARGE_BATCH if learns or own >= ZERO_SHOT else BATCH
                is_new = (batch, decoder) not in compiled
                with search.compiling() if is_new else contextlib.nullcontext():
                    made = play(
                        params, sizes, task, state, jax.random.fold_in(key, step),
                        batch=batch, decoder=decoder, mode=use.mode,
                    )  # fmt: skip
                    jax.block_until_ready(made.after)
                compiled.add((batch, decoder))
                search.offer_batch(made.assignments, made.costs)
                if use.solver:
                    workers.repair_promising()
                    workers.collect()
                search.start_clock()
                own += batch
                if learns:
                    reward = task.reference_s / made.costs.bottleneck_s
                    worth = ppo.advantages(reward, made.costs.valid)
                    transition = ppo.Transition(
                        task.features, state, made.actions, made.log_prob, worth
                    )
                    for _ in range(use.settings.epochs):
                        gradient, _ = ppo.gradient(params, transition, sizes, use.settings, decoder)
                        params, opt_state = ppo.apply_gradients(
                            params, opt_state, [gradient], use.settings
                        )
                if use.refines:
                    state = _joined(search, task, made)
                step += 1
                keep(Policy(params, sizes, {}))
                yield

    return method


def policy_background(search: Search, policy: PolicySource = None) -> Generator[bool]:
    """Zero-shot samples on labels from the best of all methods, in turn with them.

    Yields whether it has to wait, for another's compilation: under a time limit its own runs in a
    thread, which has its turns. Ends at once without a policy, and on graphs too large for a
    step to be short.

    Raises:
      InputError: no such policy, or a damaged one.
    """
    if policy == NO_POLICY or search.problem.num_contracted > MAX_CONTRACTED:
        return

    def prepared() -> tuple[Task, Any, NetworkConfig]:
        trained, _ = policy_of(policy)
        task = Task.build(search.problem)
        params, sizes = weights_of(trained, task, search.seed)
        made = _played(task, params, sizes, task.start, jax.random.key(0))
        jax.block_until_ready(_joined(search, task, made))
        return task, params, sizes

    if search.budget.time_limit_s is not None:
        task, params, sizes = yield from in_thread(prepared, compiles=True)
    else:
        with search.compiling():
            task, params, sizes = prepared()
    search.start_clock()
    state, key = task.start, jax.random.key(search.seed)
    for step in itertools.count():
        made = _played(task, params, sizes, state, jax.random.fold_in(key, step))
        search.offer_batch(made.assignments, made.costs)
        state = _joined(search, task, made)
        yield False


def _played(task: Task, params: Any, sizes: NetworkConfig, state: State, key: jax.Array) -> Rollout:
    return play(params, sizes, task, state, key, batch=_LARGE_BATCH, decoder="labels", mode="fix")


def weights_of(
    trained: Policy | None, task: Task, seed: int, fresh: NetworkConfig | None = None
) -> tuple[Any, NetworkConfig]:
    """The trained weights, or fresh ones, with their sizes."""
    if trained is None:
        sizes = fresh or NetworkConfig()
        return initial_params(sizes, task, seed), sizes
    return trained.params, trained.sizes


def _decoder(use: PolicySearchConfig, step: int) -> Decoder:
    """With both, one round in eight cuts orders: they cost more and help elsewhere."""
    if use.decoder != "both":
        return use.decoder
    return "orders" if step % 8 == 7 else "labels"


def _joined(search: Search, task: Task, made: Rollout) -> State:
    """The state after the batch, or the search's best where somebody else found a better one."""
    state = made.after
    if search.best is None or search.best_s >= float(state.bottleneck_s) * (1 - 1e-5):
        return state
    # As wide as the batch, whose programs are compiled.
    columns = np.repeat(search.best[:, None], made.assignments.shape[1], axis=1)
    assignments = jnp.asarray(pad_assignments(task.device, columns))
    return advanced(task, state, assignments, evaluate(task.device, assignments))
