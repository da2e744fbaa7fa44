"""Counts of small programs as text, and of a program that is compiled for the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import counts_of, module_of

# A loop of ten steps with one kernel in its body, its number stated or not, and a copy before it.
LOOP = """HloModule jit_f

%fused (param_0: f32[8,4]) -> f32[8,4] {{
  %param_0 = f32[8,4]{{1,0}} parameter(0)
  %two = f32[] constant(2)
  %many = f32[8,4]{{1,0}} broadcast(%two), dimensions={{}}
  ROOT %product = f32[8,4]{{1,0}} multiply(%param_0, %many)
}}

%body (carried: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {{
  %carried = (s32[], f32[8,4]{{1,0}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[8,4]{{1,0}} get-tuple-element(%carried), index=1
  %n = s32[] get-tuple-element(%carried), index=2
  %kernel = f32[8,4]{{1,0}} fusion(%x), kind=kLoop, calls=%fused
  ROOT %after = (s32[], f32[8,4]{{1,0}}, s32[]) tuple(%next, %kernel, %n)
}}

%compared (param_0: s32[], param_1: s32[]) -> pred[] {{
  %param_0 = s32[] parameter(0)
  %param_1 = s32[] parameter(1)
  ROOT %less = pred[] compare(%param_0, %param_1), direction=LT
}}

%condition (carried: (s32[], f32[8,4], s32[])) -> pred[] {{
  %carried = (s32[], f32[8,4]{{1,0}}, s32[]) parameter(0)
  %ten = s32[] constant(10)
  %i = s32[] get-tuple-element(%carried), index=0
  %n = s32[] get-tuple-element(%carried), index=2
  ROOT %go = pred[] fusion(%i, {limit}), kind=kLoop, calls=%compared
}}

ENTRY %main (x: f32[8,4], n: s32[]) -> f32[8,4] {{
  %x = f32[8,4]{{1,0}} parameter(0), metadata={{op_name="x"}}
  %n = s32[] parameter(1), metadata={{op_name="problem.num_nodes"}}
  %zero = s32[] constant(0)
  %copied = f32[8,4]{{1,0}} copy(%x)
  %first = (s32[], f32[8,4]{{1,0}}, s32[]) tuple(%zero, %copied, %n)
  %loop = (s32[], f32[8,4]{{1,0}}, s32[]) while(%first), condition=%condition, body=%body{stated}
  ROOT %result = f32[8,4]{{1,0}} get-tuple-element(%loop), index=1
}}
"""
STATED = ', backend_config={"known_trip_count":{"n":"7"}}'

BRANCHES = """HloModule jit_g

%fused (param_0: s8[16]) -> s8[16] {
  %param_0 = s8[16]{0} parameter(0)
  ROOT %negated = s8[16]{0} negate(%param_0)
}

%fused.1 (param_0: s8[16]) -> s8[16] {
  %param_0 = s8[16]{0} parameter(0)
  ROOT %negated = s8[16]{0} negate(%param_0)
}

%dear (x: s8[16]) -> (s8[16]) {
  %x = s8[16]{0} parameter(0)
  %a = s8[16]{0} fusion(%x), kind=kLoop, calls=%fused
  %b = s8[16]{0} fusion(%a), kind=kLoop, calls=%fused.1
  ROOT %made = (s8[16]{0}) tuple(%b)
}

%cheap (x: s8[16]) -> (s8[16]) {
  %x = s8[16]{0} parameter(0)
  ROOT %made = (s8[16]{0}) tuple(%x)
}

ENTRY %main (x: s8[16], which: pred[]) -> s8[16] {
  %x = s8[16]{0} parameter(0)
  %which = pred[] parameter(1)
  %chosen = (s8[16]{0}) conditional(%which, %x, %x), ATTRIBUTES
  ROOT %result = s8[16]{0} get-tuple-element(%chosen), index=0
}
"""


def loop(limit, stated=""):
    return module_of(LOOP.format(limit=limit, stated=stated))


@pytest.mark.parametrize(("stated", "steps"), [("", 10), (STATED, 7)], ids=["compared", "stated"])
def test_a_loop_to_a_constant_has_a_known_number_of_steps(stated, steps):
    counts = counts_of(loop("%ten", stated))

    assert (counts.known_loops, counts.unknown_loops) == (1, 0)
    # Outside the loop the copy; inside the fusion, and what the counter needs is no kernel.
    assert (counts.kernels_outside, counts.kernels_inside) == (1, 1)
    assert counts.launches == 1 + steps
    assert counts.questions == 0
    assert not counts.is_estimated
    assert counts.operations == steps * 32


def test_a_loop_to_an_argument_is_estimated_and_asks_the_host():
    counts = counts_of(loop("%n"), {"problem.num_nodes": 1713})

    assert (counts.known_loops, counts.unknown_loops) == (0, 1)
    assert counts.launches == 1 + 2 * 1713
    assert counts.questions == 1713
    assert counts.is_estimated
    assert not counts.is_least


def test_a_loop_of_which_nothing_is_known_counts_one_step():
    counts = counts_of(loop("%n"))

    assert counts.unknown_loops == 1
    assert counts.launches == 1 + 2
    assert counts.is_least


@pytest.mark.parametrize(
    "attributes",
    [
        "true_computation=%dear, false_computation=%cheap",
        "branch_computations={%cheap, %dear}",
    ],
)
def test_the_branch_with_most_kernels_counts_and_the_host_is_asked(attributes):
    counts = counts_of(module_of(BRANCHES.replace("ATTRIBUTES", attributes)))

    assert counts.launches == counts.kernels_outside == 2
    assert counts.questions == 1
    assert counts.num_bytes == 4 * 16
    assert counts.operations == 2 * 16


def entry(lines, before=""):
    return module_of(f"{before}\nENTRY %main () -> f32[] {{\n{lines}\n}}\n")


def test_what_starts_no_kernel_is_not_counted():
    counts = counts_of(
        entry("""
  %x = s32[4]{0} parameter(0)
  %same = s32[2,2]{1,0} bitcast(%x)
  %told = s32[4]{0} custom-call(%x), custom_call_target="AssumeGatherIndicesInBound"
  %both = (s32[4]{0}, s32[2,2]{1,0}) tuple(%told, %same)
  ROOT %sorted = s32[4]{0} sort(%x), dimensions={0}, to_apply=%order""")
    )

    assert counts.launches == 1
    assert counts.operations == 4 * 2


def test_what_lies_on_the_core_of_a_tpu_moves_nothing():
    counts = counts_of(
        entry("""
  %x = f32[1024]{0:T(1024)} parameter(0)
  %begun = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[1024]{0:T(1024)S(1)} copy-done(%begun)
  ROOT %sum = f32[1024]{0:T(1024)S(1)} add(%near, %near)""")
    )

    assert counts.launches == 1  # the copy runs beside
    assert counts.num_bytes == 4 * 1024
    assert counts.operations == 1024


def test_an_update_in_place_moves_the_row_alone():
    fused = """%fused (table: f32[100,8], row: f32[1,8], at: s32[]) -> f32[100,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%table, %row, %at, %zero)
}"""
    counts = counts_of(
        entry(
            """
  %table = f32[100,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[100,8]{1,0} fusion(%table, %row, %at), kind=kLoop, calls=%fused""",
            fused,
        )
    )

    assert counts.num_bytes == 32 + 32 + 4


def test_a_reduction_counts_what_goes_in_and_a_product_its_multiply_adds():
    counts = counts_of(
        entry("""
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  %zero = f32[] constant(0)
  %sums = f32[8]{0} reduce(%a, %zero), dimensions={1}, to_apply=%add
  ROOT %dot = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}""")
    )

    assert counts.operations == pytest.approx(8 * 16 + 2 * 8 * 16 * 4)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        module_of("HloModule empty\n")


def test_loops_that_jax_compiles_are_told_apart():
    def steps(x, count):
        def step(_, x):
            return x * 2 + 1

        x = jax.lax.fori_loop(0, 12, step, x)
        x = jax.lax.fori_loop(0, count, step, x)
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e9, lambda x: x * 3, x)

    compiled = jax.jit(steps).lower(np.ones((64, 64), np.float32), np.int32(5)).compile()

    counts = counts_of(module_of(compiled.as_text() or ""), {"count": 5.0})

    assert (counts.known_loops, counts.unknown_loops) == (1, 2)
    assert counts.operations >= 64 * 64 * (2 * 12 + 2 * 5 + 1)
    assert counts.is_estimated
    assert counts.is_least


SCATTER = """HloModule jit_h

%combined (old: {kind}[], new: {kind}[]) -> {kind}[] {{
  %old = {kind}[] parameter(0)
  %new = {kind}[] parameter(1)
  ROOT %sum = {kind}[] {root}
}}

%fused (x: {kind}[4], i: s32[8,1], y: {kind}[8]) -> {kind}[4] {{
  %x = {kind}[4]{{0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %y = {kind}[8]{{0}} parameter(2)
  ROOT %scattered = {kind}[4]{{0}} scatter(%x, %i, %y), index_vector_dim=1, to_apply=%combined
}}

ENTRY %main (x: {kind}[4], i: s32[8,1], y: {kind}[8]) -> {kind}[4] {{
  %x = {kind}[4]{{0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %y = {kind}[8]{{0}} parameter(2)
  ROOT %result = {kind}[4]{{0}} fusion(%x, %i, %y), kind=kInput, calls=%fused
}}
"""


@pytest.mark.parametrize(
    ("kind", "root", "count"),
    [
        ("f32", "add(%old, %new)", 1),
        ("bf16", "add(%old, %new)", 1),
        ("s32", "add(%old, %new)", 0),
        ("f32", "parameter(1)", 0),  # overwrites
    ],
)
def test_scatters_that_add_floats_are_counted(kind, root, count):
    module = module_of(SCATTER.format(kind=kind, root=root))

    assert counts_of(module).float_scatters == count
