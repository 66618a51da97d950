"""The five networks in PyTorch, to compare results and speed with.

Written from the architectures, with the names of the original's `state_dict`, so that
its checkpoints load with `strict=True`. The tables of the papers are repeated here, so
that a mistake in those of `lrunet_jax.models` is noticed. Imported by the tests,
`compare --torch` and `benchmark --torch` alone; it needs the extra `torch`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lrunet_jax.weights.state_dict import to_state_dict


def create_torch_model(
    name: str, image_channels: int, num_classes: int, width_mult: float, **kwargs: Any
) -> nn.Module:
    """The model `name`, from NCHW images in [0, 1] to logits.

    Args:
      name: as for `create_model`.
      image_channels: 3, or 1 for grey images.
      num_classes: logits.
      width_mult: as the model's attribute.
      **kwargs: other attributes of the model.
    """
    return _MODELS[name](image_channels, num_classes, width_mult, **kwargs)


def from_variables(
    arguments: Mapping[str, Any], image_channels: int, variables: Any
) -> nn.Module:
    """The network in PyTorch with the `variables` of the one here.

    It is in channels_last, the fastest order of PyTorch on CPU.

    Args:
      arguments: of `create_model`, `name` among them.
      image_channels: 3, or 1 for grey images.
      variables: `params` and `batch_stats`.
    """
    model = create_torch_model(image_channels=image_channels, **arguments)
    tensors = to_state_dict(variables, counters=0)
    as_tensor = lambda array: torch.from_numpy(np.array(array))
    model.load_state_dict({name: as_tensor(array) for name, array in tensors.items()})
    # PyTorch documents this call; its type stubs lack it.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(
        inputs, outputs, size, stride, size // 2, groups=groups, bias=False
    )


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """A permutation: one channel of each group after the other."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def init_he_normal(model: nn.Module) -> None:
    """Draws every kernel from a normal with variance 2 / (kh * kw * out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.weight
            fan_out = kernel.shape[0] * kernel[0, 0].numel()
            nn.init.normal_(kernel, 0, (2 / fan_out) ** 0.5)


# --- LruNet -----------------------------------------------------------------------


class LruNet(nn.Module):
    """The counterpart of `lrunet_jax.models.LruNet`."""

    def __init__(self, image_channels, classes, width_mult, layer_reuse=8, drop=0.5):
        super().__init__()
        self.width = width = round(64 * width_mult)
        self.features = nn.Sequential(
            conv(image_channels, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.stage1 = ReuseBlock(width, layer_reuse)
        self.stage2 = ReuseBlock(2 * width, layer_reuse)
        self.stage3 = ReuseBlock(4 * width, layer_reuse)
        self.stage4 = ReuseBlock(8 * width, layer_reuse)
        self.classifier = nn.Sequential(
            conv(8 * width, 4 * width, 1, groups=8),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Conv2d(4 * width, classes, 1),
            nn.ReLU(),
        )
        init_he_normal(self)

    def forward(self, x):
        x = self.features(x)
        if self.width != 64:
            x = x[:, torch.arange(self.width) % 64]
        pool = lambda x: functional.max_pool2d(x, 3, 2, 1)
        x = pool(self.stage1(x)).repeat(1, 2, 1, 1)
        x = pool(self.stage2(x)).repeat(1, 2, 1, 1)
        x = self.stage3(x).repeat(1, 2, 1, 1)
        x = pool(self.stage4(x))
        return self.classifier(x).mean((2, 3))


class ReuseBlock(nn.Module):
    """One depthwise and one pointwise convolution, applied N times."""

    def __init__(self, channels, layer_reuse):
        super().__init__()
        norms = lambda size: nn.ModuleList(
            nn.BatchNorm2d(size) for _ in range(layer_reuse)
        )
        self.dw = conv(channels, 2 * channels, 3, groups=channels)
        self.pw = conv(2 * channels, channels, 1, groups=8)
        self.dw_bn_list = norms(2 * channels)
        self.pw_bn_list = norms(channels)

    def forward(self, x):
        for i, (dw_bn, pw_bn) in enumerate(
            zip(self.dw_bn_list, self.pw_bn_list, strict=True)
        ):
            if i:
                x = channel_shuffle(torch.cat(x.chunk(2, 1)[::-1], 1), 2)
            x = functional.relu(x + pw_bn(self.pw(dw_bn(self.dw(x)))))
        return x


# --- MobileNet --------------------------------------------------------------------

# Outputs and stride of each block: table 1 of arXiv 1704.04861, for 32x32 images.
_SEPARABLE = [(64, 2), (128, 2), (128, 1), (256, 1), (256, 1), (512, 2)]
_SEPARABLE += [(512, 1)] * 5 + [(1024, 1)] * 2


class MobileNet(nn.Module):
    """The counterpart of `lrunet_jax.models.MobileNet`."""

    def __init__(self, image_channels, classes, width_mult, drop=0.2):
        super().__init__()
        width = int(32 * width_mult)
        layers: list[nn.Module] = [
            nn.Sequential(
                conv(image_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()
            )
        ]
        for channels, stride in _SEPARABLE:
            outputs = int(channels * width_mult)
            layers.append(DepthwiseSeparable(width, outputs, stride))
            width = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(drop), nn.Linear(width, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    """Depthwise, norm, ReLU, pointwise, norm, ReLU."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = conv(inputs, inputs, 3, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)))


# --- MobileNetV2 ------------------------------------------------------------------

# Expansion, outputs and stride of each block: table 2 of arXiv 1801.04381, for 32x32
# images.
_INVERTED = [(1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1)]
_INVERTED += [(6, 64, 1)] * 4 + [(6, 96, 1)] * 3
_INVERTED += [(6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)]


class MobileNetV2(nn.Module):
    """The counterpart of `lrunet_jax.models.MobileNetV2`."""

    def __init__(self, image_channels, classes, width_mult, drop=0.2):
        super().__init__()
        width, last = int(32 * width_mult), int(1280 * max(1, width_mult))
        block = lambda inputs, outputs, size: nn.Sequential(
            conv(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.ReLU6()
        )
        layers: list[nn.Module] = [block(image_channels, width, 3)]
        for expansion, channels, stride in _INVERTED:
            outputs = int(channels * width_mult)
            layers.append(InvertedResidual(width, outputs, stride, expansion))
            width = outputs
        self.features = nn.Sequential(*layers, block(width, last, 1))
        linear = nn.Linear(last, classes)
        self.classifier = nn.Sequential(nn.Dropout(drop), linear)
        init_he_normal(self)
        nn.init.normal_(linear.weight, 0, 0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Pointwise to the hidden channels, depthwise, pointwise without ReLU."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        hidden = inputs * expansion
        expand = [conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.conv = nn.Sequential(
            *(expand if expansion > 1 else []),
            conv(hidden, hidden, 3, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            conv(hidden, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


# --- ShuffleNet -------------------------------------------------------------------

# Outputs of stage 2 by groups, which the others double: table 1 of arXiv 1707.01083.
_STAGE_2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


class ShuffleNet(nn.Module):
    """The counterpart of `lrunet_jax.models.ShuffleNet`."""

    def __init__(self, image_channels, classes, width_mult, groups=3):
        super().__init__()
        inputs = int(24 * width_mult)
        self.conv1 = conv(image_channels, inputs, 3)
        self.bn1 = nn.BatchNorm2d(inputs)
        stages = []
        for factor, blocks in ((1, 4), (2, 8), (4, 4)):
            outputs = int(factor * _STAGE_2[groups] * width_mult)
            layers = [Bottleneck(inputs, outputs - inputs, groups, stride=2)]
            layers += [Bottleneck(outputs, outputs, groups) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Grouped pointwise, shuffle, depthwise, grouped pointwise, shortcut."""

    def __init__(self, inputs, outputs, groups, stride=1):
        super().__init__()
        mid = outputs // (4 * groups) * groups
        self.groups, self.stride = groups, stride
        self.conv1 = conv(inputs, mid, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = conv(mid, mid, 3, stride, groups=mid)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = conv(mid, outputs, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(channel_shuffle(y, self.groups))))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return functional.relu(x + y)
        return functional.relu(torch.cat([y, functional.avg_pool2d(x, 3, 2, 1)], 1))


# --- ShuffleNetV2 -----------------------------------------------------------------

# Outputs of stage 2, which the others double, and of the last convolution: table 5 of
# arXiv 1807.11164 for 0.5, 1, 1.5 and 2; the other widths are the original's. So is a
# stage of 224 channels at width 2, where the paper has 244.
_STAGE_2_AND_LAST = {
    0.25: (32, 1024),
    0.5: (48, 1024),
    0.75: (60, 1024),
    1.0: (116, 1024),
    1.5: (176, 1024),
    2.0: (244, 2048),
}


class ShuffleNetV2(nn.Module):
    """The counterpart of `lrunet_jax.models.ShuffleNetV2`."""

    def __init__(self, image_channels, classes, width_mult):
        super().__init__()
        inputs = 24
        self.conv1 = conv(image_channels, inputs, 3)
        self.bn1 = nn.BatchNorm2d(inputs)
        stage_2, last = _STAGE_2_AND_LAST[width_mult]
        stages = []
        for factor, blocks in ((1, 4), (2, 8), (4, 4)):
            outputs = 224 if width_mult == 2 and factor == 1 else factor * stage_2
            layers: list[nn.Module] = [DownBlock(inputs, outputs // 2)]
            layers += [BasicBlock(outputs // 2) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = conv(inputs, last, 1)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Half of the channels pass; the others go through three convolutions."""

    def __init__(self, half):
        super().__init__()
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x):
        left, right = x.chunk(2, 1)
        right = functional.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        right = functional.relu(self.bn3(self.conv3(right)))
        return channel_shuffle(torch.cat([left, right], 1), 2)


class DownBlock(nn.Module):
    """Both halves of the output are made of all channels, at stride 2."""

    def __init__(self, inputs, half):
        super().__init__()
        self.conv1 = conv(inputs, inputs, 3, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x):
        left = self.bn1(self.conv1(x))
        left = functional.relu(self.bn2(self.conv2(left)))
        right = functional.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = functional.relu(self.bn5(self.conv5(right)))
        return channel_shuffle(torch.cat([left, right], 1), 2)


_MODELS = {
    "lrunet": LruNet,
    "mobilenet": MobileNet,
    "mobilenet_v2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "shufflenet_v2": ShuffleNetV2,
}
