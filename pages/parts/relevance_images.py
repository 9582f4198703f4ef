"""The part of the Relevance page that explains images: one in depth, or several side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.relevance.records import ImageRelevance
from mixqvit.views import class_names, maps
from mixqvit.views import explained_images as figures
from mixqvit.views import image_rows as rows
from mixqvit.views.numbers import percent
from pages.parts import common

if TYPE_CHECKING:
    from mixqvit.study.study import Study

SAMPLES = 8
ROW = 4
ONE, SEVERAL = "one image", "side by side"
NO_CLASS_TOKEN = (
    " This model has no class token whose attention could be followed, so patches have no attribution here and the "
    "relevance of pixels and tokens stands alone."
)
HEAD_CAPTIONS = {
    figures.HEAD_MAPS[0]: "Relevance of what each head puts out at every patch token; in the title its sum.",
    figures.HEAD_MAPS[1]: "What the rollout reads of each head: gradient × relevance of the class token's attention to "
    "every patch, where positive; in the title the head's part of it.",
}


@st.fragment
def images_section(study: "Study") -> None:
    st.subheader("What a decision rests on")
    with common.errors():
        rules = study.relevance_rules
        with st.container(horizontal=True, vertical_alignment="bottom"):
            view = st.segmented_control(
                "Evaluation images",
                [ONE, SEVERAL],
                default=ONE,
                required=True,
                key="explained_view",
                bind="query-params",
            )
            chosen = st.segmented_control(
                "Rules",
                list(rules),
                default=next(iter(rules)),
                required=True,
                key="image_rules",
                bind="query-params",
                help="The rule set of layer-wise relevance propagation:\n\n"
                + "\n\n".join(f"**{name}**: {words}" for name, words in rules.items()),
            )
            st.button(
                "Reset",
                icon=":material/restart_alt:",
                key="reset image",
                on_click=reset,
                args=(next(iter(rules)), min(ROW, len(study.evaluation_images))),
                help="First images, predicted class, first rules",
            )
        if view == ONE:
            one_image(study, chosen)
        else:
            several_images(study, chosen)


def reset(rules: str, row: int) -> None:
    st.session_state.update(
        {
            "image": 0,
            "class": "predicted",
            "beside": "nothing",
            "image_rules": rules,
            "token_scale": True,
            "row_images": list(range(row)),
            "row_scale": True,
        }
    )
    for key in ("token_stage", "head_block", "head_map", "row_map"):
        st.session_state.pop(key, None)


def one_image(study: "Study", rules: str) -> None:
    pickers = st.container(horizontal=True, vertical_alignment="bottom")
    with pickers:
        index = common.image_number("image", len(study.evaluation_images))
    samples(study, index)
    with st.spinner(f"Explaining image {index} …"):
        predicted = study.image_relevance(index, rules=rules)
    with pickers:
        explained, beside = class_controls(study, predicted)
    known = {"predicted": predicted.predicted, "true": predicted.label}
    targets = dict.fromkeys(known.get(option, option) for option in (explained, beside) if option != "nothing")
    with st.spinner("Explaining the class …"):
        results = [study.image_relevance(index, target, rules) for target in targets]
    if beside != "nothing" and len(results) == 1:
        st.caption("Both choices mean the same class, so it is shown once.")
    for found in results:
        explanation(study, found, results)
    st.caption(
        "Red supports the explained class, blue speaks against it. Colour scales are centred on zero and the same for "
        "all pictures of a kind shown together; the strongest 1 % of the values share the darkest colour."
        + (NO_CLASS_TOKEN if predicted.attribution is None else "")
    )
    # Some architectures have tokens on no grid, or no attention with a map.
    if predicted.tokens:
        forming(study, results)
    if figures.head_maps(predicted):
        heads(study, results)


def class_controls(study: "Study", predicted: ImageRelevance) -> tuple[int | str, int | str]:
    """Show the pickers of classes for an image; returns the class to explain and the class beside it."""
    images = study.evaluation_images
    labels = class_names.numbered(images.class_names)
    words = {"predicted": "the predicted one", "true": "the true one", "nothing": "nothing"}
    own = ["predicted", *(["true"] if images.labels is not None else [])]
    classes = [*own, *class_names.choices(predicted.probabilities, predicted.label)]

    def name(option: int | str) -> str:
        return words[option] if option in words else labels[option]

    explained = st.selectbox(
        "Class to explain",
        classes,
        format_func=name,
        key="class",
        bind="query-params",
        width=210,
        help="Relevance starts at the score of this class: what speaks for it, and what against? Type a name or a "
        "number to search; where there are many classes, those likeliest for this image come first.",
    )
    beside = st.selectbox(
        "Compare with",
        ["nothing", *classes],
        format_func=name,
        key="beside",
        bind="query-params",
        width=210,
        help="The same picture explained for a second class, on the same colour scales.",
    )
    return explained, beside


def samples(study: "Study", index: int) -> None:
    images = study.evaluation_images
    first = index - index % SAMPLES
    pictures = images.display(first, first + SAMPLES).numpy()
    with st.container(horizontal=True, gap="small"):
        for position, picture in enumerate(pictures, first):
            with st.container(width=64, gap="xsmall"):
                st.image(maps.thumbnail(picture), width="stretch")
                st.button(
                    f"{position}",
                    key=f"sample {position}",
                    type="primary" if position == index else "secondary",
                    help=f"{images.names[position]}: explain this image",
                    on_click=st.session_state.update,
                    args=({"image": position},),
                    width="stretch",
                )


def file_name(study: "Study", found: ImageRelevance) -> str:
    name = class_names.short_names(study.evaluation_images.class_names)[found.target]
    return f"{study.model.name} {found.name} class {name} {found.rules}"


def explanation(study: "Study", found: ImageRelevance, results: Sequence[ImageRelevance]) -> None:
    """Show one image explained for one class, on the scales of all results."""
    names = class_names.short_names(study.evaluation_images.class_names)
    whole = class_names.class_labels(study.evaluation_images.class_names)
    explained, predicted = names[found.target], names[found.predicted]
    true = "" if found.label is None else f", true class **{names[found.label]}**"
    st.markdown(
        f"{found.name}: predicted **{predicted}** ({percent(found.probabilities[found.predicted])}){true}, explained "
        f"**{explained}**. {figures.relevance_words(found)}",
        help="Relevance leaves where a constant contributes: the position embedding, the class token, biases under "
        "AttnLRP, the constant of the linearized softmax, and outputs that have nothing to share in proportion to.",
    )
    file = file_name(study, found)
    columns = st.columns(3 if found.attribution is None else 4)
    with columns[0]:
        common.chart(
            figures.picture(found),
            f"The picture {found.name}",
            maps.map_frame(found.image.mean(axis=-1), "brightness"),
            f"{file} picture",
        )
    with columns[1]:
        common.chart(
            figures.relevance_overlay(found, maps.scale_end(each.pixels for each in results)),
            f"Relevance of every pixel of {found.name} for class {explained}",
            maps.map_frame(found.pixels, "relevance"),
            f"{file} relevance",
        )
    if found.attribution is not None:
        with columns[2]:
            common.chart(
                figures.attribution_overlay(found, maps.scale_end(each.attribution for each in results)),
                f"Attribution of every patch of {found.name} to class {explained}",
                maps.map_frame(found.attribution, "attribution"),
                f"{file} attribution",
            )
    with columns[-1]:
        common.chart(
            figures.probability_bars(found, whole),
            f"Class probabilities of {found.name}; predicted is {predicted}",
            figures.probability_frame(found, whole),
            f"{file} probabilities",
        )


@st.fragment
def forming(study: "Study", results: Sequence[ImageRelevance]) -> None:
    """Show the relevance of the patch tokens at one stage of the network, chosen by a slider."""
    names = class_names.short_names(study.evaluation_images.class_names)
    stages = list(results[0].tokens)
    st.markdown("**As it forms: relevance of the patch tokens**")
    if st.session_state.get("token_stage") not in stages:
        st.session_state["token_stage"] = stages[0]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        stage = st.select_slider(
            "Where in the network",
            stages,
            key="token_stage",
            format_func=lambda name: "input" if name == "patches" else name,
            width=520,
            help="Relevance comes from the class on the right and is handed to the input on the left.",
        )
        same = st.toggle(
            "One colour scale for all stages",
            value=True,
            key="token_scale",
            bind="query-params",
            help="On, stages can be compared: early ones hold most. Off, each stage has a scale of its own, so that "
            "faint ones show their pattern.",
        )
    limit = maps.scale_end(
        values for found in results for name, values in found.tokens.items() if same or name == stage
    )
    columns = st.columns([*[1] * len(results), 3 - len(results)])
    for column, found in zip(columns, results, strict=False):
        with column:
            file = f"{file_name(study, found)} tokens"
            common.chart(
                figures.token_overlay(found, stage, limit),
                f"Relevance of the tokens of {found.name} {figures.stage_words(stage)} for class {names[found.target]}",
                maps.map_frame(found.tokens[stage], "relevance"),
                f"{file} {stage}",
            )
    with columns[-1]:
        name = f"{file_name(study, results[0])} forming"
        common.chart(
            figures.forming_figure(results, names, stage),
            f"Relevance on the patch tokens of {results[0].name} along the network",
            figures.forming_frame(results, names),
            name,
            on_select=lambda: choose_stage(figures.clicked_stage(st.session_state[f"chart {name}"].selection.points)),
            selection_mode="points",
        )
    st.caption(
        "What is not on the patches is on the class token or has left. After the last block the class token holds all "
        "of it where a model decides by that token alone. Click a point to go there."
        if results[0].attribution is not None
        else "Where a model merges patches, one token carries the relevance of several. Click a point to go there."
    )


def choose_stage(stage: str | None) -> None:
    if stage is not None:
        st.session_state["token_stage"] = stage


@st.fragment
def heads(study: "Study", results: Sequence[ImageRelevance]) -> None:
    """Show one map per head of a chosen block."""
    names = class_names.short_names(study.evaluation_images.class_names)
    st.markdown("**Head by head**")
    kinds = figures.head_maps(results[0])
    shown = next(iter(kinds))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.container(width=320)
        if len(kinds) > 1:
            shown = st.segmented_control(
                "Of every head",
                list(kinds),
                default=shown,
                required=True,
                key="head_map",
                help="\n\n".join(f"**{name}**: {words}" for name, words in HEAD_CAPTIONS.items()),
            )
        blocks = list(kinds[shown])
        if st.session_state.get("head_block") not in blocks:
            st.session_state["head_block"] = blocks[0]
        block = place.select_slider("Block", blocks, key="head_block")
    limit = figures.head_limit(results, block, shown)
    for found in results:
        if len(results) > 1:
            st.markdown(f"For class **{names[found.target]}**")
        common.chart(
            figures.head_figure(found, block, shown, limit),
            f"{shown} of every head of block {block} for {found.name}, class {names[found.target]}",
            figures.head_frame(figures.head_maps(found)[shown][block]),
            f"{file_name(study, found)} block {block} heads {shown}",
        )
    st.caption(f"{HEAD_CAPTIONS[shown]} All heads of the block share one colour scale.")


def several_images(study: "Study", rules: str) -> None:
    names = class_names.class_labels(study.evaluation_images.class_names)
    chosen = row_controls(study, names)
    if not chosen:
        st.info("Choose up to eight images.")
        return
    with st.spinner(f"Explaining {len(chosen)} images …"):
        results = [study.image_relevance(index, rules=rules) for index in chosen]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kinds = rows.map_names(results[0])
        if st.session_state.get("row_map") not in kinds:
            st.session_state["row_map"] = kinds[0]
        kind = st.selectbox("Map", kinds, format_func=rows.map_words, key="row_map", width=260)
        same = st.toggle(
            "One colour scale for all",
            value=True,
            key="row_scale",
            bind="query-params",
            help="On, colours of different pictures can be compared. Off, each map has a scale of its own, so that "
            "faint ones show too.",
        )
    common.chart(
        rows.row_figure(results, names, kind, same),
        f"{rows.map_words(kind)} of {len(results)} images, each for its predicted class",
        rows.row_frame(results, names, kind),
        f"{study.model.name} images {rows.map_words(kind)} {rules}",
    )
    st.caption(
        "Each image is explained for its predicted class; ✓ is right, ✗ names the true class. The strongest 1 % of the "
        "values share the darkest colour."
    )


def row_controls(study: "Study", names: Sequence[str]) -> list[int]:
    """Show the pickers of several images; returns their numbers."""
    images = study.evaluation_images

    def name(index: int) -> str:
        if images.labels is None:
            return f"{index}"
        return f"{index}: {class_names.shortened(names[int(images.labels[index])])}"

    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.multiselect(
            "Images",
            range(len(images)),
            default=range(min(ROW, len(images))),
            max_selections=rows.MOST_IMAGES,
            format_func=name,
            key="row_images",
            bind="query-params",
            width=720,
            help="Number and true class; type to search for either.",
        )
        st.button(
            "Next ones",
            icon=":material/chevron_right:",
            on_click=next_row,
            args=(len(images),),
            help="As many images, following the last of these",
        )
    return chosen


def next_row(count: int) -> None:
    chosen = st.session_state["row_images"]
    size, last = (len(chosen), chosen[-1]) if chosen else (min(ROW, count), -1)
    st.session_state["row_images"] = [(last + 1 + step) % count for step in range(size)]
