"""What the Outliers page explains in words and formulas."""

import streamlit as st


def definition() -> None:
    st.subheader("What an outlier channel is")
    st.markdown(
        "LayerNorm makes all tokens alike in size, but not all channels. Some are scaled up by its weights γ: wide for "
        "every token. Some carry one large value for a few tokens: high kurtosis. It is often the same channel in "
        "block after block. Pretrained vision transformers have both kinds.\n\n"
        "**Why one grid for all channels fails.** A quantizer has 2ᵇ − 1 steps for its whole range. If one channel "
        "needs a range ten times as wide, the steps get ten times as coarse for all, and the ordinary channels are "
        "left with a few steps: at 4 bits sometimes with one.\n\n"
        "**What to look at.** Choose a layer, then a channel by clicking its bar. Below: how its values are spread "
        "over tokens, where they sit in one image, and what four ways to quantize them cost, channel by channel."
    )


def trades() -> None:
    left, right = st.columns(2, gap="medium")
    left.markdown(
        "**What reparameterization does.** A scale per channel would help, but hardware wants one scale per tensor in "
        "a matrix product. So the differences are moved elsewhere: LayerNorm's own weights divide every channel by r, "
        "the next layer's weight column is multiplied by r, and the product stays the same. Now one grid fits all "
        "channels. If the model had small weights where the channel is large, the columns even become more alike."
    )
    right.markdown(
        "**What clipping trades.** The differences are not gone, they are in the weights now: a wide channel gives "
        "its weight column a large r, and a row that holds it is harder to quantize. Clipping the widest ranges makes "
        "r milder and cuts values off instead. Whether that pays differs from layer to layer, and what is best for a "
        "layer's own output need not be best for the network: measure it above."
    )


def method() -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown(
            "Over all N tokens of the calibration images, channel c has the range from its smallest to its largest "
            "value, and the kurtosis"
        )
        st.latex(r"k_c = \frac{\frac1N \sum_n (x_{nc} - \mu_c)^4}{\bigl(\frac1N \sum_n (x_{nc} - \mu_c)^2\bigr)^2}")
        st.markdown("Scale and zero point of every channel become a common scale and zero point, a ratio and a shift:")
        st.latex(
            r"s^* = \operatorname{mean}_c s_c,\quad z^* = \operatorname{mean}_c z_c,\quad "
            r"r_c = \frac{s_c}{s^*},\quad t_c = (z^* - z_c)\, s^*"
        )
        st.markdown("They are folded into LayerNorm (γ, β) and the layer after it (W, b), which compute the same:")
        st.latex(
            r"\gamma' = \gamma / r,\quad \beta' = \beta / r - t,\quad W' = W \operatorname{diag}(r),\quad b' = b + W' t"
        )
        st.markdown(
            "Source: RepQ-ViT (arXiv 2212.08254, section 3.2); ranges of channels, of the whole tensor and of weight "
            "rows come from its percentile search. Clipping across channels is the clipped channel-wise quantization "
            "of Mix-QViT (arXiv 2501.06357): with fraction q, lower ends are raised to their q-quantile over channels "
            "and upper ends lowered to theirs at 1 − q (this project's definition). The error of a variant, and what "
            "channel c adds to it where channels err independently, with x′ and W′ as moved (or as they are where "
            "nothing moves), on at most 2,048 tokens:"
        )
        st.latex(
            r"\frac{\lVert W x - \hat W \hat x \rVert^2}{\lVert W x \rVert^2},\qquad "
            r"\frac{\lVert W'_{:c} \rVert^2\, \overline{(\hat x'_c - x'_c)^2} + "
            r"\lVert \hat W'_{:c} - W'_{:c} \rVert^2\, \overline{\hat x_c'^2}}{\overline{\lVert W x \rVert^2}}"
        )
        st.markdown(
            "The network's harm is KL(full precision ‖ quantized) of the class probabilities, mean over the "
            "calibration images, with this layer's input and weight quantized and everything else in full precision."
        )
