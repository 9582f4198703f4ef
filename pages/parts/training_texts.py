"""What the Training page explains."""

import streamlit as st


def policy() -> None:
    st.caption(
        "The first and the last layer, patch embedding and head, stay at 8 bits and are outside the average. "
        "Quantization is simulated, in training too: the bits saved are real, the arithmetic is floating-point, so a "
        "step takes longer than in full precision. How long the training takes is said from its first steps on."
    )


def method() -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown(
            "**lsq**, learned step sizes (LSQ, Esser et al. 2020, arXiv 1902.08153). Weights, one step size per output "
            "channel, and activations, one per operand, pass a quantizer whose step size s is trained with the weights "
            "(equations 1 to 3; codes run from −Q_N to Q_P):"
        )
        st.latex(
            r"\hat v = s \cdot \mathrm{round}\bigl(\mathrm{clip}(v / s, -Q_N, Q_P)\bigr) \qquad "
            r"\frac{\partial \hat v}{\partial s} = \begin{cases} \mathrm{round}(v/s) - v/s & -Q_N < v/s < Q_P \\ "
            r"-Q_N & v/s \le -Q_N \\ Q_P & v/s \ge Q_P \end{cases}"
        )
        st.markdown(
            "The gradient for v goes straight through the rounding and is zero where v is clipped; that for s is "
            "multiplied by 1/√(N·Q_P), with N values sharing it. Step sizes start where they err least on the "
            "calibration images (ours; the paper starts from 2·mean|v|/√Q_P), and have no weight decay."
        )
        st.markdown(
            "**ofq**, oscillation-free quantization (OFQ, Liu et al. 2023, arXiv 2302.02210). The step sizes of b-bit "
            "weights are not trained, so that they and the weights do not chase each other, but follow from the "
            "weights of each output channel (StatsQ), and levels lie on both sides of zero:"
        )
        st.latex(
            r"s_c = \frac{2}{2^{b-1}} \cdot \frac{1}{n} \sum_{i=1}^{n} \lvert w_{c,i} \rvert \qquad "
            r"\hat w = s_c \,\bigl(k + \tfrac12\bigr),\; -2^{b-1} \le k < 2^{b-1}"
        )
        st.markdown(
            "In every head, query and key are merged into one weight M (query-key reparameterization, QKR), so that "
            "not two of them are rounded and multiplied. M is larger than both: size and BitOps count it."
        )
        st.latex(r"Q K^\top = X W_Q \,(X W_K)^\top = X M X^\top, \qquad M = W_Q W_K^\top")
        st.markdown(
            "In the last epochs, shaded above, confidence-guided annealing (CGA) freezes all weights that lie well "
            "within a level and trains only those near a rounding threshold."
        )
        st.markdown(
            "**The loss** of both is what the full-precision model p says of the same augmented image against what the "
            "quantized model p̂ says, over a step's images; labels are not used:"
        )
        st.latex(r"\mathrm{KL}(p \,\|\, \hat p) = \sum_c p(c \mid x)\, \log \frac{p(c \mid x)}{\hat p(c \mid x)}")
        st.markdown(
            "AdamW with a linear warm-up over a twentieth of the steps and a cosine decay to zero. After each epoch "
            "the same KL is taken on the calibration images: the epoch where it is smallest gives the weights that are "
            "kept, ★ above. Evaluation images are shown and choose nothing. Everything random follows from the seed, "
            "the epoch and the image, so that a stopped training goes on to the very same weights."
        )
