"""EfficientNet-Lite0, a convnet for photographs, as published with its weights: squeeze-and-excitation left out, ReLU6
(Tan & Le 2019; tensorflow/tpu, efficientnet/lite)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, CLASSES = 1280, 1000
EPSILON = 1e-3  # of the published batch normalisation
BLOCKS = (  # expansion, channels, blocks, stride of the first, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class Conv(nn.Conv2d):
    """Convolution with zeros around it as TensorFlow's "SAME" puts them: the odd one below and to the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for length, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            lacking = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [lacking // 2, lacking - lacking // 2]
        return super().forward(F.pad(x, sides) if any(sides) else x)


class Block(nn.Module):
    """Inverted bottleneck: wider, depthwise, narrower; added to its input where both have one shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Conv(inputs, inner) if expansion != 1 else None
        self.depthwise = Conv(inner, inner, kernel, stride, inner)
        self.project = Conv(inner, outputs)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """x (B, 3, H, W) float32, normalised -> the last map (B, 1280, H/32, W/32); its mean are the features."""

    features = FEATURES

    def __init__(self, *, has_classifier: bool = False) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        blocks, inputs = [], 32
        for expansion, outputs, count, stride, kernel in BLOCKS:
            for i in range(count):
                blocks.append(Block(inputs, outputs, expansion, stride if i == 0 else 1, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Conv(inputs, FEATURES)
        self.classifier = nn.Linear(FEATURES, CLASSES) if has_classifier else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, 1280), and the map that they are the mean of."""
        x = F.relu6(self.head(self.blocks(F.relu6(self.stem(x)))))
        return x.mean((2, 3)), x

    @torch.no_grad()
    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over the published weights, batch normalisation folded into the convolution before it."""
        fold(self.stem, state, "_conv_stem", "_bn0")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            name = f"_blocks.{i}."
            if block.expand is not None:
                fold(block.expand, state, f"{name}_expand_conv", f"{name}_bn0")
            fold(block.depthwise, state, f"{name}_depthwise_conv", f"{name}_bn1")
            fold(block.project, state, f"{name}_project_conv", f"{name}_bn2")
        fold(self.head, state, "_conv_head", "_bn1")
        if self.classifier is not None:
            self.classifier.weight.copy_(state["_fc.weight"])
            self.classifier.bias.copy_(state["_fc.bias"])


def fold(layer: nn.Conv2d, state: Mapping[str, Tensor], conv: str, norm: str) -> None:
    """A convolution without bias and its batch normalisation, as one convolution."""
    weight, bias, mean, variance = (
        state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + EPSILON).sqrt()  # (O,)
    assert layer.bias is not None, "Conv has one"
    layer.weight.copy_(state[f"{conv}.weight"].double() * scale[:, None, None, None])
    layer.bias.copy_(bias - mean * scale)
