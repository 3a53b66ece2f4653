"""Small convolutional networks for images from 8×8×1 (digits) to 32×32×3 (CIFAR).

Each builder returns an uncompiled functional model that takes pixels scaled to 0..1 and gives
class probabilities. `BUILDERS` lists them by the name that the command line uses.
"""

from collections.abc import Callable

import keras
from keras import layers

Shape = tuple[int, int, int]


def _conv_bn(
    x: keras.KerasTensor, filters: int, kernel: int = 3, strides: int = 1
) -> keras.KerasTensor:
    """Convolution without bias, then batch normalisation, whose beta is the bias.

    Keras' default momentum of 0.99 would take hundreds of batches to follow the statistics of a
    network that has just been pruned; a fine-tuning round on few images has fewer.
    """
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def _conv_bn_relu(
    x: keras.KerasTensor, filters: int, kernel: int = 3, strides: int = 1
) -> keras.KerasTensor:
    return layers.ReLU()(_conv_bn(x, filters, kernel, strides))


def _classify(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(classes, activation="softmax", name="classifier")(x)


def _basic_block(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 projection where the shape changes."""
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _conv_bn(x, filters, kernel=1, strides=strides)
    y = _conv_bn_relu(x, filters, strides=strides)
    y = _conv_bn(y, filters)
    return layers.ReLU()(layers.Add()([y, shortcut]))


def resnet(
    input_shape: Shape,
    classes: int,
    widths: tuple[int, ...] = (16, 32, 64),
    blocks: int = 1,
) -> keras.Model:
    """A residual network of the CIFAR family (He et al. 2015), with projection shortcuts.

    Args:
        input_shape: Height, width and channels of an image.
        classes: How many classes to tell apart.
        widths: Filters of each stage; every stage but the first halves height and width.
        blocks: Basic blocks in a stage (1 gives 8 weight layers; 3 would be ResNet-20).

    Returns:
        The model, not compiled.
    """
    inputs = keras.Input(input_shape)
    x = _conv_bn_relu(inputs, widths[0])
    for stage, filters in enumerate(widths):
        for block in range(blocks):
            x = _basic_block(x, filters, strides=2 if stage > 0 and block == 0 else 1)
    return keras.Model(inputs, _classify(x, classes), name="resnet")


def vgg(
    input_shape: Shape,
    classes: int,
    widths: tuple[int, ...] = (16, 32, 64),
    convolutions: int = 2,
) -> keras.Model:
    """A plain stack of 3×3 convolutions with max pooling (Simonyan & Zisserman 2014).

    Args:
        input_shape: Height, width and channels of an image.
        classes: How many classes to tell apart.
        widths: Filters of each stage; a pooling that halves the image lies between stages.
        convolutions: Convolutions in a stage.

    Returns:
        The model, not compiled.
    """
    inputs = keras.Input(input_shape)
    x = inputs
    for stage, filters in enumerate(widths):
        if stage > 0:
            x = layers.MaxPooling2D()(x)
        for _ in range(convolutions):
            x = _conv_bn_relu(x, filters)
    return keras.Model(inputs, _classify(x, classes), name="vgg")


def _inverted_residual(
    x: keras.KerasTensor, filters: int, strides: int, expansion: int
) -> keras.KerasTensor:
    """Widen by a 1×1 convolution, filter each channel alone, narrow by a linear 1×1 one."""
    y = _conv_bn_relu(x, x.shape[-1] * expansion, kernel=1)
    y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(y)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    y = _conv_bn(y, filters, kernel=1)
    if strides == 1 and x.shape[-1] == filters:
        y = layers.Add()([x, y])
    return y


def mobilenet(
    input_shape: Shape,
    classes: int,
    widths: tuple[int, ...] = (16, 24, 40),
    blocks: int = 2,
    expansion: int = 4,
) -> keras.Model:
    """Depthwise-separable inverted residuals (MobileNetV2, Sandler et al. 2018).

    Args:
        input_shape: Height, width and channels of an image.
        classes: How many classes to tell apart.
        widths: Channels between the blocks of each stage; later stages halve the image.
        blocks: Inverted residuals in a stage.
        expansion: How many times wider a block is inside.

    Returns:
        The model, not compiled.
    """
    inputs = keras.Input(input_shape)
    x = _conv_bn_relu(inputs, widths[0])
    for stage, filters in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _inverted_residual(x, filters, strides, expansion)
    x = _conv_bn_relu(x, 2 * widths[-1], kernel=1)
    return keras.Model(inputs, _classify(x, classes), name="mobilenet")


BUILDERS: dict[str, Callable[[Shape, int], keras.Model]] = {
    "resnet": resnet,
    "vgg": vgg,
    "mobilenet": mobilenet,
}
