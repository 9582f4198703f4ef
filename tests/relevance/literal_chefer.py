"""Relevance of a ViT by Chefer, Gur & Wolf 2021 (arXiv 2012.09838), one image at a time, equation by equation.

Slow on purpose: every linear layer writes down what each input contributes to each output (their section 3.1, α = 1).
`AutogradChefer` computes the same in the manner of the published code: through autograd, with the inhibiting half that
α = 1 multiplies by zero. Neither shares code with `mixqvit`.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import conv2d, gelu, linear, softmax

__all__ = ["AutogradChefer", "LiteralChefer"]


class LiteralChefer:
    """Propagates relevance through a `VisionTransformer` with class token and position embedding, in float64."""

    def __init__(self, module: VisionTransformer, stabilizer: float = 1e-9) -> None:
        self.module = module
        self.stabilizer = stabilizer
        self.at_outputs: dict[str, Tensor] = {}

    def __call__(self, image: Tensor, target: int | None = None) -> Tensor:
        """Return the relevance of the pixels `[H, W]` of one image `[C, H, W]`, summed over colours.

        Fills `at_outputs` with the relevance at the output of every layer, under timm's names.
        """
        with torch.no_grad():
            return self._explain(image, target)

    def divide(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Return a / (b + ε), 0 where b = 0."""
        return torch.where(denominator == 0, 0, numerator / (denominator + self.stabilizer))

    def linear_rule(self, x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
        """Share every output's relevance in proportion to the positive x_i w_ji; x `[T, in]`, relevance `[T, out]`."""
        contributions = (x[:, None, :] * weight[None]).clamp(min=0)  # [T, out, in]
        ratio = self.divide(relevance, contributions.sum(2))
        return (contributions * ratio[:, :, None]).sum(1)

    def box_rule(self, image: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
        """Share over the pixels under each patch in proportion to x·w − l·w⁺ − h·w⁻; returns `[C, H, W]`."""
        channels, size = weight.shape[1], weight.shape[2]
        low, high = image.min(), image.max()
        flat = weight.flatten(1)
        found = torch.zeros_like(image)
        columns = image.shape[2] // size
        for patch in range(relevance.shape[0]):
            row, column = patch // columns * size, patch % columns * size
            x = image[:, row : row + size, column : column + size].flatten()
            contributions = x * flat - low * flat.clamp(min=0) - high * flat.clamp(max=0)  # [out, in]
            ratio = self.divide(relevance[patch], contributions.sum(1))
            share = (contributions * ratio[:, None]).sum(0).reshape(channels, size, size)
            found[:, row : row + size, column : column + size] = share
        return found

    def product_rule(self, a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the shares in a product of two activations."""
        ratio = self.divide(relevance, a @ b)
        return a * (ratio @ b.transpose(-1, -2)) / 2, b * (a.transpose(-1, -2) @ ratio) / 2

    def sum_rule(self, a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Split a residual sum element by element, then rescale both branches by their |sum| share."""
        ratio = self.divide(relevance, a + b)
        shares = [a * ratio, b * ratio]
        magnitude = shares[0].sum().abs() + shares[1].sum().abs()
        portions = [self.divide(share.sum().abs(), magnitude) * relevance.sum() for share in shares]
        first, second = (
            share * self.divide(portion, share.sum()) for share, portion in zip(shares, portions, strict=True)
        )
        return first, second

    def copy_rule(self, x: Tensor, *relevances: Tensor) -> Tensor:
        """Join what the readers of one value send to it."""
        return x * self.divide(sum(relevances), x)

    def _explain(self, image: Tensor, target: int | None) -> Tensor:
        module, found = self.module, self.at_outputs
        embedding = module.patch_embed.proj
        patches = conv2d(image[None], embedding.weight, embedding.bias, embedding.stride)[0].flatten(1).T
        joined = torch.cat([module.cls_token[0], patches])
        x = joined + module.pos_embed[0]
        saved = []
        for block in module.blocks:
            saved.append(self._forward(block, x))
            x = saved[-1]["x2"]
        normed = module.norm(x)
        token = normed[0]
        logits = module.head(token)
        relevance = torch.zeros_like(logits)
        relevance[int(logits.argmax()) if target is None else target] = 1
        found["head"] = relevance
        at_token = self.linear_rule(token[None], module.head.weight, relevance[None])[0]
        at_x = torch.zeros_like(x)
        at_x[0] = token * self.divide(at_token, token)
        for index in reversed(range(len(module.blocks))):
            at_x = self._backward(f"blocks.{index}", module.blocks[index], saved[index], at_x)
        at_joined, _ = self.sum_rule(joined, module.pos_embed[0], at_x)
        found["patch_embed.proj"] = at_joined[1:]
        return self.box_rule(image, embedding.weight, at_joined[1:]).sum(0)

    def _forward(self, block: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
        attention = block.attn
        n1 = block.norm1(x)
        qkv = linear(n1, attention.qkv.weight, attention.qkv.bias)
        q, k, v = qkv.reshape(len(x), 3, attention.num_heads, -1).permute(1, 2, 0, 3)
        a = softmax(q @ k.transpose(1, 2) * attention.scale, dim=-1)
        gathered = (a @ v).transpose(0, 1).reshape(len(x), -1)
        projected = linear(gathered, attention.proj.weight, attention.proj.bias)
        x1 = x + projected
        n2 = block.norm2(x1)
        hidden = gelu(linear(n2, block.mlp.fc1.weight, block.mlp.fc1.bias))
        output = linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
        return {
            **{"x": x, "n1": n1, "q": q, "k": k, "v": v, "a": a, "gathered": gathered, "projected": projected},
            **{"x1": x1, "n2": n2, "hidden": hidden, "output": output, "x2": x1 + output},
        }

    def _backward(self, name: str, block: torch.nn.Module, at: dict[str, Tensor], relevance: Tensor) -> Tensor:
        found, attention, mlp = self.at_outputs, block.attn, block.mlp
        skip, found[f"{name}.mlp.fc2"] = self.sum_rule(at["x1"], at["output"], relevance)
        found[f"{name}.mlp.fc1"] = self.linear_rule(at["hidden"], mlp.fc2.weight, found[f"{name}.mlp.fc2"])
        branch = self.linear_rule(at["n2"], mlp.fc1.weight, found[f"{name}.mlp.fc1"])
        at_x1 = self.copy_rule(at["x1"], skip, branch)
        skip, found[f"{name}.attn.proj"] = self.sum_rule(at["x"], at["projected"], at_x1)
        gathered = self.linear_rule(at["gathered"], attention.proj.weight, found[f"{name}.attn.proj"])
        by_head = gathered.reshape(len(gathered), attention.num_heads, -1).transpose(0, 1)
        found[f"{name}.attn.matmul2"] = by_head
        at_a, at_v = self.product_rule(at["a"], at["v"], by_head)
        found[f"{name}.attn.matmul1"] = at_a
        at_q, at_k = self.product_rule(at["q"], at["k"].transpose(1, 2), at_a)
        parts = torch.stack([at_q, at_k.transpose(1, 2), at_v]).permute(2, 0, 1, 3)
        found[f"{name}.attn.qkv"] = parts.reshape(len(gathered), -1)
        branch = self.linear_rule(at["n1"], attention.qkv.weight, found[f"{name}.attn.qkv"])
        return self.copy_rule(at["x"], skip, branch)


class AutogradChefer(LiteralChefer):
    """The same relevance in the manner of the published code: gradients of products instead of contributions."""

    def linear_rule(self, x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
        """Compute α · activators − (α − 1) · inhibitors with α = 1, both halves as the published code does."""
        signs = [(part.clamp(min=0), part.clamp(max=0)) for part in (x, weight)]
        (positive_x, negative_x), (positive_w, negative_w) = signs

        def half(first: Tensor, second: Tensor) -> Tensor:
            with torch.enable_grad():
                inputs = [positive_x.detach().requires_grad_(), negative_x.detach().requires_grad_()]
                outputs = [linear(inputs[0], first), linear(inputs[1], second)]
            ratio = self.divide(relevance, outputs[0].detach() + outputs[1].detach())
            gradients = [torch.autograd.grad(z, v, ratio)[0] for z, v in zip(outputs, inputs, strict=True)]
            return positive_x * gradients[0] + negative_x * gradients[1]

        return 1.0 * half(positive_w, negative_w) - 0.0 * half(negative_w, positive_w)

    def box_rule(self, image: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
        """Take the gradients of the three convolutions of the box rule."""
        size = weight.shape[2]
        grid = (weight.shape[0], image.shape[1] // size, image.shape[2] // size)
        low, high = torch.full_like(image, float(image.min())), torch.full_like(image, float(image.max()))
        with torch.enable_grad():
            inputs = [part.clone().requires_grad_() for part in (image, low, high)]
            kernels = (weight, weight.clamp(min=0), weight.clamp(max=0))
            outputs = [conv2d(v[None], kernel, stride=size)[0] for v, kernel in zip(inputs, kernels, strict=True)]
            whole = outputs[0] - outputs[1] - outputs[2]
        ratio = self.divide(relevance.T.reshape(grid), whole.detach())
        gradients = torch.autograd.grad(whole, inputs, ratio)
        return sum(v.detach() * gradient for v, gradient in zip(inputs, gradients, strict=True))
