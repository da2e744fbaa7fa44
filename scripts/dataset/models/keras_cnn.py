"""Image classifiers of keras.applications, as traced on its JAX backend.

Batch 1, 1000 classes, the published input sizes. A graph named `-raw` is the trace of its namesake
before fusing, on the same side of the split.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from jaxpart.problem.graph import Graph

from .catalog import Model, Split

# Name, family, class of keras.applications, side of the input in pixels, side of the split.
_Row = tuple[str, str, str, int, Split]
_ROWS: tuple[_Row, ...] = (
    ("resnet50", "resnet", "ResNet50", 224, "train"),
    ("densenet121", "densenet", "DenseNet121", 224, "train"),
    ("nasnet-mobile", "nasnet", "NASNetMobile", 224, "train"),
    ("xception", "xception", "Xception", 299, "train"),
    ("efficientnet-b0", "efficientnet", "EfficientNetB0", 224, "train"),
    ("convnext-tiny", "convnext", "ConvNeXtTiny", 224, "train"),
    ("vgg16", "vgg", "VGG16", 224, "valid"),
    ("inception-v3", "inception", "InceptionV3", 299, "test"),
    ("mobilenet-v2", "mobilenet", "MobileNetV2", 224, "test"),
    ("mobilenet-v3-large", "mobilenet", "MobileNetV3Large", 224, "test"),
)
_RAW = (
    *("resnet50", "densenet121", "xception", "efficientnet-b0", "convnext-tiny"),
    *("inception-v3", "mobilenet-v2"),
)
# Classes that would scale and normalise pixels in the graph; the others want that done before.
_PREPROCESSED = ("ConvNeXtTiny", "MobileNetV3Large")


def _build(architecture: str, pixels: int, name: str) -> Graph:
    """Traces one class; keras allocates no weight."""
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
    import jax
    import jax.numpy as jnp
    import keras  # pyright: ignore[reportMissingImports]

    from jaxpart.ingest.jaxpr.importer import from_jax

    keras.utils.clear_session()  # numbers in the layers' names
    settings = {"include_preprocessing": False} if architecture in _PREPROCESSED else {}
    image = (pixels, pixels, 3)
    with keras.StatelessScope():  # variables have a shape, and no value
        model = getattr(keras.applications, architecture)(
            weights=None, input_shape=image, **settings
        )

    def shapes(variables: list[Any]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]

    def call(trainable: list[Any], fixed: list[Any], pixels: Any) -> Any:
        return model.stateless_call(trainable, fixed, pixels, training=False)[0]

    return from_jax(
        call,
        shapes(model.trainable_variables),
        shapes(model.non_trainable_variables),
        jax.ShapeDtypeStruct((1, *image), jnp.float32),
        param_argnums=(0, 1),
        name=name,
        element_bytes=1,
    )


def _model(row: _Row, *, fused: bool) -> Model:
    name, family, architecture, pixels, split = row
    name = name if fused else f"{name}-raw"
    return Model(
        name=name,
        family=family,
        kind="cnn",
        source="keras",
        license="Apache-2.0",
        config=f"keras.applications.{architecture}, {pixels} x {pixels} x 3",
        split=split,
        build=functools.partial(_build, architecture, pixels, name),
        fused=fused,
    )


MODELS = (
    *(_model(row, fused=True) for row in _ROWS),
    *(_model(row, fused=False) for row in _ROWS if row[0] in _RAW),
)
