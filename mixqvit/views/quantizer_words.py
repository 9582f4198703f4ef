"""What the quantizers of the menu are, in words: for the Quantizers page and its figures."""

from dataclasses import dataclass

__all__ = ["OPERANDS", "QUANTIZERS", "Described"]


@dataclass(frozen=True)
class Described:
    """One quantizer of the menu in words.

    Attributes:
        what: What its levels are and how they are found.
        when: When it wins, and what it pays for that.
        source: The paper it comes from.
    """

    what: str
    when: str
    source: str


OPERANDS = {
    "image": "image",
    "query": "queries Q",
    "key": "keys K",
    "probabilities": "attention A, after softmax",
    "value": "values V",
    "post_layer_norm": "input, after LayerNorm",
    "attention_output": "input, the output of attention",
    "post_gelu": "input, after GELU",
    "input": "input",
}
"""What each role of an operand is called."""

QUANTIZERS = {
    "min-max": Described(
        "Levels evenly spaced from the smallest to the largest value.",
        "Wins with many bits and no outliers: nothing is cut off. A single stray value stretches every step.",
        "Jacob et al. 2018, arXiv 1712.05877",
    ),
    "percentile": Described(
        "Evenly spaced levels whose ends are percentiles: of 99.9, 99.99 and 99.999 % the one with the least squared "
        "error of the values.",
        "Wins over min-max where few values lie far out: cutting them costs less than coarser steps for all others.",
        "RepQ-ViT, arXiv 2212.08254",
    ),
    "output error": Described(
        "The same candidates and the full range, chosen by the squared error of the layer's output.",
        "Wins where rare large values carry the function: their loss hardly shows in the average error of the input, "
        "but in the output. For attention products and the patch embedding it is the percentile search.",
        "this project; PTQ4ViT (arXiv 2111.12293) judges candidates by the output too",
    ),
    "log2": Described(
        "Every level is half of the one before: 1, 1/2, 1/4, … A product with one is a bit shift.",
        "Wins where most values are tiny and few bits must reach them. The gaps between the large levels never get "
        "finer, so its error stops falling: more bits only add levels next to zero.",
        "FQ-ViT, arXiv 2111.13824",
    ),
    "log√2": Described(
        "Every level is the one before over √2, and one more is zero; the largest is searched for.",
        "Wins over log2 where bits suffice to reach the small values: twice as many levels for the large ones. With "
        "3 bits its smallest level is 1/11 of the largest; what is much smaller becomes zero.",
        "RepQ-ViT, arXiv 2212.08254",
    ),
    "twin uniform": Described(
        "Two even grids share the codes. After softmax: a fine one near zero and a coarse one up to 1. After GELU: "
        "one for negative values, one for positive ones.",
        "Wins with many bits over log2 and log√2, since its steps get finer everywhere and theirs do not, and in "
        "places over adaptive log. Each of its two grids has only half of the codes.",
        "PTQ4ViT, arXiv 2111.12293",
    ),
    "adaptive log": Described(
        "A logarithm whose base and largest level are searched for the least error of the product; after GELU the "
        "values are first shifted above zero.",
        "Wins with few bits, since its base is wide enough to reach the small values, and often with more, since the "
        "base gets finer.",
        "AdaLog, arXiv 2407.12951",
    ),
    "power-of-two factor": Described(
        "One even grid, stretched by 1, 2, 4 or 8 for each channel.",
        "Wins over one grid for all where some channels are much wider than others, and asks for no more than shifts. "
        "A channel between two powers wastes up to half of its levels.",
        "FQ-ViT, arXiv 2111.13824",
    ),
    "reparameterized": Described(
        "An even grid for every channel, by percentiles; the differences are moved into LayerNorm and the next "
        "weights, so that one scale is left.",
        "Wins over one grid for all wherever channels differ. The weights get harder to quantize, which does not show "
        "here, where they stay in full precision.",
        "RepQ-ViT, arXiv 2212.08254",
    ),
    "clipped channel-wise": Described(
        "Reparameterized after the ranges of the widest channels were clipped; how much is chosen with the weights "
        "quantized too.",
        "Wins where few channels are so wide that moving them would spoil the weights. That gain does not show here, "
        "where the weights stay in full precision.",
        "Mix-QViT, arXiv 2501.06357",
    ),
    "weighted search": Described(
        "Both ends of the range are searched for, and an error counts as much as the network's output feels it "
        "(squared gradients). Before a linear layer every channel has its own range, reparameterized.",
        "Wins with few bits, where narrow ranges pay, and where some tokens matter more than others. It aims at the "
        "network's output: by the layer's own error, shown here, it can come second.",
        "this project; PTQ4ViT (arXiv 2111.12293) weighs by squared gradients too",
    ),
    "per channel": Described(
        "An even grid for every channel of V, both ends searched for.",
        "Wins wherever channels differ, and for free: a channel of V is a channel of the product, so its scale can be "
        "multiplied afterwards.",
        "this project",
    ),
}
"""The quantizers of the menu by name."""
