"""Partitions of ONNX models, exported and run file by file, for tests.

The runner here is an oracle: it knows the manifest's JSON and ONNX Runtime, nothing of jaxpart.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import jaxpart
from jaxpart.problem.mcm import MCM, Chip, Constraints

# Any partition is valid here in which data flows to higher chips.
FREE = MCM(
    "free",
    "host",
    (Chip(1e12, 1e12, 1e12),) * 12,
    1e9,
    memory_model="weights",
    constraints=Constraints(no_skip=False, triangle=False),
)


def spread(graph, chips, seed=0):
    """Chip of each node by name: data flows to the same or a higher chip, at random else."""
    rng = np.random.default_rng(seed)
    low = [0] * len(graph.nodes)
    found = {}
    for v, node in enumerate(graph.nodes):
        expected = v * chips // len(graph.nodes)
        chip = min(max(low[v], expected + int(rng.integers(-1, 2)), 0), chips - 1)
        found[node.name] = chip
        for tensor in graph.tensors:
            if tensor.producer == v:
                for q in tensor.consumers:
                    low[q] = max(low[q], chip)
    return found


def session(model):
    """A session of the file (or bytes) with one thread and without graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ort_values(feeds):
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(value)
        if isinstance(value, np.ndarray)
        else value
        for name, value in feeds.items()
    }


def run_whole(path, feeds):
    """The outputs of a model by name."""
    whole = session(path)
    names = [output.name for output in whole.get_outputs()]
    needed = {given.name for given in whole.get_inputs()}
    given = {name: value for name, value in feeds.items() if name in needed}
    return dict(zip(names, whole.run(names, given), strict=True))


def run_stages(folder, feeds):
    """The outputs of a folder of stages by name, and of each stage what it was given."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    on_host = ort_values(feeds)
    links, outputs = {}, dict(feeds)
    for stage in manifest["stages"]:
        chip = stage["chip"]
        given = {}
        for tensor in stage["inputs"]:
            source = tensor["from"]
            name = tensor["name"]
            given[name] = on_host[name] if source == "host" else links[source, chip, name]
        loaded = session(Path(folder) / stage["file"])
        assert {each.name for each in loaded.get_inputs()} == given.keys()
        names = [tensor["name"] for tensor in stage["outputs"]]
        made = dict(zip(names, loaded.run_with_ort_values(names, given), strict=True))
        for tensor in stage["outputs"]:
            assert list(made[tensor["name"]].shape()) == tensor["shape"]
            for place in tensor["to"]:
                if place == "host":
                    outputs[tensor["name"]] = made[tensor["name"]].numpy()
                else:
                    links[chip, place, tensor["name"]] = made[tensor["name"]]
    return {tensor["name"]: outputs[tensor["name"]] for tensor in manifest["outputs"]}


def random_feeds(path, seed=0):
    """Values for the inputs of a model, whose sizes are all numbers."""
    rng = np.random.default_rng(seed)
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if np.issubdtype(dtype, np.floating):
            feeds[value.name] = rng.normal(size=shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            feeds[value.name] = rng.integers(0, 4, shape).astype(dtype)
    return feeds


def assert_same(found, expected):
    """Bit for bit where integers, within 1e-5 of the largest output where floats."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape, name
        if np.issubdtype(value.dtype, np.floating):
            scale = max(float(np.abs(value).max(initial=0)), 1e-30)
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * scale)
        else:
            np.testing.assert_array_equal(found[name], value)


def stage_models(folder):
    """Chip -> its ONNX model; external data is not read."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return {
        stage["chip"]: onnx.load(Path(folder) / stage["file"], load_external_data=False)
        for stage in manifest["stages"]
    }


def check_places(folder, chips):
    """Each node of the graph is in the stage of its chip (or, as a clone, in others too)."""
    for chip, model in stage_models(folder).items():
        names = [node.name for node in model.graph.node]
        expected = {name for name, place in chips.items() if place == chip}
        assert expected <= set(names), chip
        produced = {name for node in model.graph.node for name in node.output if name}
        assert not produced & {value.name for value in model.graph.input}


def save(path, model):
    path.write_bytes(model.SerializeToString())
    return path


def exported(tmp_path, model, chips, feeds=None, *, seed=0, dims=None, name="model", **options):
    """Exports a model, runs its stages and the whole, compares them.

    `chips`: how many, or the chip of each node by name. Returns the folder.
    """
    path = model if isinstance(model, Path) else save(tmp_path / f"{name}.onnx", model)
    graph = jaxpart.from_onnx(path, dims=dims)
    places = spread(graph, chips, seed) if isinstance(chips, int) else chips
    folder = tmp_path / f"{name}-stages"
    jaxpart.export(path, places, to="onnx", out=folder, mcm=FREE, dims=dims, **options)
    check_places(folder, places)
    feeds = random_feeds(path) if feeds is None else feeds
    assert_same(run_stages(folder, feeds), run_whole(path, feeds))
    return folder


def with_random_weights(model, seed=0):
    """A light model of the onnx package with random weights in place of ConstantOfShape.

    Large ones are repeated blocks of random numbers (Tile), so that no file has 500 MB.
    """
    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        name, shape = node.output[0], [int(extent) for extent in shapes[node.input[0]]]
        repeats = [1] * len(shape)
        while np.prod(shape) // np.prod(repeats) > 2**18 and shape[0] % (2 * repeats[0]) == 0:
            repeats[0] *= 2
        block = [extent // times for extent, times in zip(shape, repeats, strict=True)]
        # Positive in part: variances of batch normalisation are among them.
        if len(shape) > 1:
            content = rng.uniform(-0.5, 1.0, block) / np.sqrt(np.prod(shape[1:]))
        else:
            content = rng.uniform(0.5, 1.5, block)
        tiled = max(repeats) > 1
        stored = f"{name}/block" if tiled else name
        model.graph.initializer.append(numpy_helper.from_array(content.astype(np.float32), stored))
        if tiled:
            times = numpy_helper.from_array(np.array(repeats, np.int64), f"{name}/repeats")
            model.graph.initializer.append(times)
            kept.append(helper.make_node("Tile", [stored, times.name], [name]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model
