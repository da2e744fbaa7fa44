"""The convolutional graphs that are written in flax from their papers' configurations.

Batch 1, the published input sizes. A graph named `-raw` is the trace of its namesake before fusing,
on the same side of the split.
"""

from __future__ import annotations

from .rows import Row, models_of

_TRAIN: tuple[Row, ...] = (
    ("alexnet", "alexnet", "classic.alexnet", "2 columns, 227 x 227 x 3"),
    ("squeezenet", "squeezenet", "classic.squeezenet", "version 1.1, 224 x 224 x 3"),
    ("two-stream", "two-stream", "classic.two_stream", "CNN-M-2048, 10 flow fields, 101 classes"),
    ("pointnet", "pointnet", "classic.pointnet", "2 transforms, 1024 points, 40 classes"),
    ("shufflenet-v2", "shufflenet", "mobile.shufflenet_v2", "1x, 224 x 224 x 3"),
    ("ghostnet", "ghostnet", "mobile.ghostnet", "1x, 224 x 224 x 3"),
    ("res2net50", "res2net", "branches.res2net50", "26w x 4s, 224 x 224 x 3"),
    ("sknet50", "sknet", "branches.sknet50", "2 kernels, 32 groups, 224 x 224 x 3"),
    ("dla34", "dla", "aggregation.dla34", "224 x 224 x 3"),
    ("randwire", "randwire", "search.randwire", "WS(4, 0.75), 3 x 32 nodes, C = 78"),
    ("unet", "unet", "segmentation.unet", "572 x 572 x 1, 64 to 1024 channels"),
    ("unet-plus-plus", "unet", "segmentation.unet_nested", "96 x 96 x 3, 32 to 512 channels"),
    ("hourglass", "hourglass", "segmentation.hourglass", "2 stacks, 256 x 256 x 3"),
    ("edsr", "edsr", "segmentation.edsr", "16 x 64, 640 x 360 x 3 to twice that"),
    ("yolo-v3", "yolo", "detection.yolo_v3", "416 x 416 x 3, 80 classes"),
    ("ssd300", "ssd", "detection.ssd300", "VGG-16, 300 x 300 x 3, 91 classes"),
    ("efficientdet-d0", "efficientdet", "detection.efficientdet_d0", "512 x 512 x 3, 90 classes"),
    ("openpose", "openpose", "detection.openpose", "VGG-19, 6 stages, 368 x 368 x 3"),
    ("wavenet", "wavenet", "signal.wavenet", "3 x 10 layers, 64 and 256 channels, 4096 samples"),
)
_VALID: tuple[Row, ...] = (
    ("resnext50", "resnext", "branches.resnext50", "8 x 14d, paths apart, 224 x 224 x 3"),
)
_TEST: tuple[Row, ...] = (
    ("hrnet-w18-small", "hrnet", "aggregation.hrnet_w18_small", "224 x 224 x 3"),
    ("darts", "darts", "search.darts", "second order, 14 cells, C = 48, 224 x 224 x 3"),
)
_RAW = (
    *("alexnet", "squeezenet", "shufflenet-v2", "unet"),
    *("unet-plus-plus", "yolo-v3", "openpose", "wavenet"),
)

MODELS = models_of("cnn", {"train": _TRAIN, "valid": _VALID, "test": _TEST}, _RAW, "cnn")
