"""What the Relevance page explains in words and formulas."""

from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from mixqvit.study.study import Study


def introduction() -> None:
    left, right = st.columns(2, gap="medium")
    left.markdown(
        "**What relevance is.** The network gives a class a score. Put one unit of *relevance* on it and hand it "
        "backwards: every neuron passes on what it received to its inputs, in proportion to what each contributed. "
        "What arrives at the pixels says which of them the decision rests on; what passes through a layer says how "
        "much of the decision that layer carried."
    )
    right.markdown(
        "**Why the share of a branch, not the sum over a layer.** Cut the network between two blocks: the same unit "
        "of relevance passes every cut, so that sum is the same everywhere and says nothing. Inside a block it "
        "splits: a part takes the attention or the MLP *branch*, the rest the skip connection past it. That share "
        "differs. Layers in a row on one branch get nearly the same share (an attention product half of it, because "
        "it divides relevance between two operands); sensitivity tells those apart."
    )


def method(study: "Study") -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown("**Importance.** The relevance of layer *l* in image x becomes a share, its mean is Ω:")
        st.latex(
            r"r_l(x) = \Bigl|\sum R \text{ at the output of layer } l\Bigr| \qquad "
            r"\Omega_l = \frac{1}{N}\sum_x \frac{r_l(x)}{\sum_k r_k(x)}"
        )
        st.markdown(
            "The mean runs over calibration images, each explained for its predicted class (the share as a measure is "
            "this project's definition; Mix-QViT, arXiv 2501.06357, builds on layer relevance). Methods that are no "
            "relevance put their own attribution of a layer's output in the place of R. With signed attributions, all "
            "but chefer's, the sum would cancel between tokens and channels; there r is the sum of |R|:\n"
            + "\n".join(f"- **{name}**: {words}" for name, words in study.importance_methods.items())
        )
        chefer()
        attnlrp()
        comparison()


def chefer() -> None:
    st.markdown(
        "**Rules of Chefer, Gur & Wolf 2021** (arXiv 2012.09838) with α = 1. A linear layer shares relevance among its "
        "inputs by their positive products with the weights:"
    )
    st.latex(
        r"R_i = \sum_j \frac{x_i^+ w_{ij}^+ + x_i^- w_{ij}^-}"
        r"{\sum_k \left( x_k^+ w_{kj}^+ + x_k^- w_{kj}^- \right)}\, R_j"
    )
    st.markdown(
        "An attention product gives each operand half of its relevance; a residual connection splits it by what each "
        "branch contributed, per image; LayerNorm, GELU and softmax pass it on unchanged; the patch embedding uses the "
        "z^B rule with the image's own range (Montavon et al. 2017). The attribution of the patches follows the "
        "attention from the first block up: per block the mean over heads of gradient × relevance, where positive, "
        "plus the identity; the class token's row of the product:"
    )
    st.latex(
        r"C = \bar A^{(B)} \cdots \bar A^{(1)}, \qquad \bar A^{(b)} = I + \mathbb{E}_h \Bigl[ \max\bigl(0, "
        r"\nabla A^{(b)} \odot R^{(b)}_A \bigr)\Bigr]"
    )


def attnlrp() -> None:
    st.markdown(
        "**Rules of AttnLRP** (Achtibat et al. 2024, arXiv 2402.05602). Linear layers follow the ε-rule, in which all "
        "products count with their sign; softmax its own first-order Taylor expansion; a product of two activations "
        "gives each factor half (uniform rule):"
    )
    st.latex(
        r"R_i = \sum_j \frac{x_i w_{ij}}{z_j + \varepsilon \operatorname{sign} z_j} R_j \qquad "
        r"R_i = x_i \Bigl(R_i - s_i \sum_j R_j\Bigr) \qquad "
        r"R_{A} = \tfrac12\, A \odot \Bigl(\frac{R}{Z}\, B^\top\Bigr)"
    )
    st.markdown(
        "LayerNorm is taken as linear with the image's variance as a constant; GELU and the like pass relevance on "
        "unchanged. Relevance has two signs, the share of a bias leaves the network, and sums can grow beyond 1 where "
        "large parts of opposite sign cancel."
    )


def comparison() -> None:
    st.markdown(
        "**Comparison.** Spearman's rank correlation over the layers between Ω and the sensitivity Λ, the harm "
        "measured when one layer alone is quantized. Allocations solve the same budget (average bits, BitOps no more "
        "than uniform bits need) by Ω alone, with Λ replaced by 4^(−w) + 4^(−a) as in LRP-QViT (arXiv 2401.11243), and "
        "by Ω · Λ as in Mix-QViT; their accuracy is measured on all evaluation images. Infidelity and maximum "
        "sensitivity judge the attribution of the pixels (Yeh et al. 2019, arXiv 1901.09392): how far it is from "
        "predicting what a change of the pixels does to the score, and how much it changes under small changes of the "
        "image."
    )
