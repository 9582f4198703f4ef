"""What all pages share: the open study, long work with progress, figures with their downloads, messages."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from mixqvit.cards import list_models
from mixqvit.errors import MixQViTError

if TYPE_CHECKING:
    from mixqvit.study import Progress, Study

SECONDS_BETWEEN_UPDATES = 0.1


def navigation() -> Any:
    """Declare the pages; returns the one to run."""
    return st.navigation(
        [
            st.Page("pages/overview.py", title="Overview", icon=":material/home:", default=True),
            st.Page("pages/relevance.py", title="Relevance", icon=":material/visibility:"),
            st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/show_chart:"),
            st.Page("pages/budget.py", title="Budget", icon=":material/tune:"),
            st.Page("pages/quantizers.py", title="Quantizers", icon=":material/grid_on:"),
            st.Page("pages/outliers.py", title="Outliers", icon=":material/bar_chart:"),
        ]
    )


@contextmanager
def page(title: str, sentences: str) -> Iterator[None]:
    """Show the page's title and its two sentences; show a MixQViTError as a message, never a traceback."""
    if "model" not in st.session_state:
        # Until the first st.navigation of a server, Streamlit runs files in a folder called pages without app.py.
        navigation()
        st.rerun()
    st.title(title)
    st.markdown(sentences)
    with errors():
        yield


@contextmanager
def errors() -> Iterator[None]:
    """Show a MixQViTError as a message. Fragments need their own: they rerun without the page around them."""
    try:
        yield
    except MixQViTError as error:
        st.error(str(error), icon=":material/error:")


def sidebar() -> None:
    """Choose the study: model and outlier amplification. The choice is part of the URL."""
    models = {model.name: model for model in list_models()}
    with st.sidebar:
        st.selectbox(
            "Model",
            list(models),
            key="model",
            bind="query-params",
            help="Trained by this project on scikit-learn's handwritten digits; loads without a network.",
        )
        st.caption(models[st.session_state.model].description)
        st.select_slider(
            "Outlier amplification",
            [1, 2, 4, 8, 16, 32],
            key="outliers",
            bind="query-params",
            format_func=lambda factor: "off" if factor == 1 else f"×{factor}",
            help="Scales two channels of every LayerNorm and divides the next layer's weights by as much: "
            "the full-precision model stays the same, its quantizers get a harder task.",
        )
        st.caption("Quantization is simulated here: the bits saved are real, the arithmetic is floating-point.")


def study() -> "Study":
    """Return the open study, loading it behind a visible status on first use."""
    return _open(st.session_state.model, st.session_state.outliers)


@st.cache_resource(max_entries=6, show_spinner="Loading PyTorch, the model and its images …")
def _open(model: str, outlier_factor: int) -> "Study":
    from mixqvit.study import Settings, Study

    return Study(model, settings=Settings(outlier_factor=float(outlier_factor)))


def run(name: str, steps: Callable[[], "Iterator[Progress]"], show: Callable[["Progress"], None] | None = None) -> Any:
    """Do long work with a progress bar, a remaining-time estimate and a stop button.

    The finished pieces are saved by the study, so stopping, or touching any other control, loses nothing: the next run
    goes on from there.

    Args:
        name: What is being done, e.g. "Sensitivity"; one stop button per name.
        steps: Starts (or resumes) the work.
        show: Called with every progress that carries a result, for live pictures; at most ten times a second.

    Returns:
        The last result; None while stopped.
    """
    stopped = stop_flag(name)
    slot = st.empty()
    if st.session_state.get(stopped):
        with slot.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":material/pause_circle: {name} stopped. What was finished is saved.")
            st.button("Resume", key=f"resume {name}", on_click=st.session_state.update, args=({stopped: False},))
        return None
    result = None
    bar = None
    started = last_update = time.monotonic()
    first_done = phase_total = None
    for step in steps():
        result = step.result if step.result is not None else result
        now = time.monotonic()
        if step.total != phase_total:  # a stage that needs another one first reports that one's steps before its own
            first_done, phase_total, started = step.done, step.total, now
        if step.done == step.total or now - last_update < SECONDS_BETWEEN_UPDATES:
            continue
        last_update = now
        if bar is None:
            with slot.container(horizontal=True, vertical_alignment="center"):
                bar = st.progress(0.0)
                st.button("Stop", key=f"stop {name}", on_click=st.session_state.update, args=({stopped: True},))
        bar.progress(step.done / step.total, f"{name}: {step.doing} · {_remaining(step, first_done, now - started)}")
        if show is not None and step.result is not None:
            show(step)
    slot.empty()
    return result


def stop_flag(name: str) -> str:
    """Return the name in the session's state that says whether this work is stopped on the open study."""
    return f"stopped {name} on {st.session_state.model} {st.session_state.outliers}"


def _remaining(step: "Progress", first_done: int, seconds: float) -> str:
    finished = step.done - first_done
    if not finished:
        return "estimating the remaining time"
    remaining = seconds / finished * (step.total - step.done)
    return f"about {remaining:.0f} s left" if remaining < 90 else f"about {remaining / 60:.0f} min left"


def image_number(key: str, count: int) -> int:
    """Show the picker of one of `count` evaluation images, with a step back and forth; returns its number."""
    number = st.number_input(
        "Evaluation image",
        min_value=0,
        max_value=count - 1,
        value=0,
        key=key,
        bind="query-params",
        width=150,
        help=f"Its number, 0 to {count - 1}.",
    )
    for label, icon, by in (("Previous", "chevron_left", -1), ("Next", "chevron_right", 1)):
        st.button(
            label,
            icon=f":material/{icon}:",
            key=f"{label} {key}",
            on_click=_step_image,
            args=(key, by, count),
        )
    return int(number)


def _step_image(key: str, by: int, count: int) -> None:
    st.session_state[key] = (st.session_state[key] + by) % count


def fact(place: Any, label: str, value: str, below: str, help_text: str | None = None) -> None:
    """Show one number in a frame, with a line below it."""
    place.metric(
        label,
        value,
        delta=below,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=help_text,
    )


def chart(figure: Any, alt: str, data: pd.DataFrame, name: str, **options: Any) -> Any:
    """Show a figure with hover, PNG download (camera button) and the numbers as CSV; returns Streamlit's state."""
    state = st.plotly_chart(
        figure,
        alt=alt,
        key=f"chart {name}",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        **options,
    )
    st.download_button(
        "Numbers as CSV",
        lambda: data.to_csv(index=False).encode(),  # written when it is asked for: a photograph has 50,000 rows
        f"{name}.csv",
        "text/csv",
        key=f"csv {name}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
    )
    return state
