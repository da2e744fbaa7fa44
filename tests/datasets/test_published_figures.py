"""Parameters and work of the shipped graphs against published figures.

Published multiply-adds leave out what is neither convolution nor matrix product, and count those
that meet padding; the graphs count all elementwise work and leave such padding out. So work may be
8 % below and 13 % above twice the multiply-adds (20 % where a network is thin and full of
elementwise work). Parameters of convolutional networks include the statistics of batch
normalisation, which some tables leave out: 1 %, and exactly where the source prints exact counts.
"""

from __future__ import annotations

import pytest

from jaxpart import datasets

# Name: parameters, whether exactly, giga multiply-adds, source.
PUBLISHED = {
    "vgg16": (138_357_544, True, 15.47, "torchvision VGG16_Weights"),
    "resnet50": (25_636_712, True, 3.86, "keras.io; He et al. 2016, table 1: 3.8"),
    "densenet121": (8_062_504, True, 2.834, "keras.io; torchvision DenseNet121_Weights"),
    "nasnet-mobile": (5_326_716, True, 0.564, "keras.io; Zoph et al. 2018, table 2"),
    "xception": (22_910_480, True, 8.4, "keras.io; Zoph et al. 2018, table 2"),
    "efficientnet-b0": (5_330_564, True, 0.39, "Tan & Le 2019, table 2; keras.io"),
    "convnext-tiny": (28_589_128, True, 4.456, "torchvision ConvNeXt_Tiny_Weights"),
    "inception-v3": (23_851_784, True, 5.713, "keras.io; torchvision Inception_V3_Weights"),
    "mobilenet-v2": (3_538_984, True, 0.300, "keras.io; Sandler et al. 2018, table 4"),
    "mobilenet-v3-large": (5_507_432, True, 0.219, "keras.io; Howard et al. 2019, table 3"),
    "alexnet": (60_965_224, True, 0.724, "Krizhevsky 2012; albanie/convnet-burden"),
    "squeezenet": (1_235_496, True, 0.349, "torchvision SqueezeNet1_1_Weights"),
    "ssd300": (35_641_826, True, 34.858, "torchvision SSD300_VGG16_Weights"),
    "pointnet": (3.5e6, False, 0.440, "Qi et al. 2017, table 6"),
    "shufflenet-v2": (2.3e6, False, 0.146, "Ma et al. 2018, table 8"),
    "ghostnet": (5.2e6, False, 0.141, "Han et al. 2020, table 7"),
    "res2net50": (25.7e6, False, 4.2, "Gao et al. 2021"),
    "sknet50": (27.5e6, False, 4.47, "Li et al. 2019, table 2"),
    "dla34": (15.8e6, False, 3.07, "Yu et al. 2018, table 3; timm"),
    "randwire": (5.6e6, False, 0.583, "Xie et al. 2019, table 2"),
    "edsr": (1.37e6, False, 316.3, "Lim et al. 2017; Ahn et al. 2018, table 1"),
    "yolo-v3": (62.0e6, False, 32.93, "darknet: 65.86 BFLOP at 416 x 416"),
    "efficientdet-d0": (3.9e6, False, 2.5, "Tan et al. 2020, table 2"),
    "hrnet-w18-small": (13.2e6, False, 1.61, "HRNet-W18-C-Small-v1; timm"),
    "openpose": (52.3e6, False, 136.0, "Osokin 2018"),
    "resnext50": (25.5e6, False, 4.2, "Xie et al. 2017, tables 1 and 2"),
    "swin-tiny": (28.3e6, False, 4.5, "Liu et al. 2021, table 1"),
    "vit-b16": (86.4e6, False, 17.58, "Dosovitskiy et al. 2021; torchvision ViT_B_16_Weights"),
    "bert-base": (109.5e6, False, None, "Devlin et al. 2019: 110 M"),
    "gpt2": (124.4e6, False, None, "Radford et al. 2019; OpenAI's gpt-2: 124 M"),
    "t5-small": (60.5e6, False, None, "Raffel et al. 2020: 60 M"),
    "whisper-tiny": (37.8e6, False, None, "Radford et al. 2023: 39 M with the frozen positions"),
}
# Thin networks, where elementwise work counts for more.
THIN = {"mobilenet-v2", "mobilenet-v3-large", "efficientnet-b0", "ghostnet", "shufflenet-v2"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    parameters, is_exact, _, _ = PUBLISHED[name]
    graph = datasets.load(name)
    assert graph.element_bytes == 1  # int8: a byte a parameter
    if is_exact:
        assert graph.weight_bytes == parameters
    else:
        assert graph.weight_bytes == pytest.approx(parameters, rel=0.015)


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if row[2] is not None])
def test_work_is_that_published(name):
    ratio = datasets.load(name).total_flops / 2e9 / PUBLISHED[name][2]
    assert 0.92 <= ratio <= (1.20 if name in THIN else 1.13)


@pytest.mark.parametrize(
    ("name", "tokens", "layers", "width", "inner"),
    [("bert-base", 384, 12, 768, 3072), ("gpt2", 256, 12, 768, 3072)],
)
def test_work_of_transformers_is_that_of_their_matrix_products(name, tokens, layers, width, inner):
    projections = 4 * width * width + 2 * width * inner
    attention = 2 * tokens * width
    products = 2 * layers * tokens * (projections + attention)
    assert products <= datasets.load(name).total_flops <= 1.05 * products
