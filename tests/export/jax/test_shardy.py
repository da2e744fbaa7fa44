"""The MPMD module of stages is parsed and verified by the dialect that ships in jaxlib."""

import pytest
from jax.interpreters.mlir import make_ir_context
from jaxlib.mlir import ir

import jaxpart
from tests.support.functions import CASES, made, rising_chips

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def parsed(text):
    with make_ir_context():
        module = ir.Module.parse(text)
        assert module.operation.verify()
        functions = {str(op.attributes["sym_name"]): op for op in module.body.operations}
        main = functions['"main"']
        return [op.operation.name for op in main.regions[0].blocks[0].operations]


@pytest.mark.parametrize("name", CASES)
def test_each_chip_is_a_fragment_and_each_sent_tensor_a_transfer(name):
    case = made(name)
    trace = jaxpart.trace(case.fn, *case.args, **case.options)
    stages = trace.stages(rising_chips(trace.graph, 4))
    operations = parsed(stages.to_mpmd())
    assert operations.count("mpmd.fragment") == len(stages.plans)
    transfers = sum(len(to) for part in stages.plans for to in part.sent.values())
    assert operations.count("mpmd.transfer") == transfers
    assert set(operations) <= {"mpmd.fragment", "mpmd.transfer", "func.return"}


def test_a_module_that_breaks_the_dialect_is_refused():
    case = made("mlp_with_skips")
    trace = jaxpart.trace(case.fn, *case.args, **case.options)
    half = len(trace.graph.nodes) // 2
    text = trace.stages([0] * half + [1] * (len(trace.graph.nodes) - half)).to_mpmd()
    assert 'mpmd.fragment<mesh="chip0", origin=["stage_0"]>' in text
    assert 'jax.arg_info = "x"' in text
    with pytest.raises(ir.MLIRError):
        parsed(text.replace('<"chip1", tensor<3x8xf32>>', '<"chip7", tensor<3x8xf32>>'))
