"""What the help of a command says beside its options: files and formats, what is computed where, how training goes."""

from textwrap import fill

from mixqvit.files.allocation_document import document_schema
from mixqvit.files.export.formats import FORMATS
from mixqvit.training.settings import TRAINING_METHODS

__all__ = ["EXPLANATIONS"]

WIDTH = 115


def _named(rows: dict[str, str]) -> str:
    """Return a name and its words a row, the words below each other."""
    longest = max(map(len, rows))
    return "\n".join(
        fill(
            f"  {name:{longest}}  {words}",
            WIDTH,
            subsequent_indent=" " * (longest + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, words in rows.items()
    )


_ALLOCATION_FILE = {name: part["description"] for name, part in document_schema()["properties"].items()}

EXPLANATIONS = {
    "sensitivity": """\
Sweeps, pairs of layers, comparisons of allocations and evaluations of large sets run on an engine. Every worker loads
the model once and has one thread (with CUDA, a GPU of its own); results are saved as they come, and a worker that is
killed costs the tasks in progress. The numbers are those of this process: equal to the last bit with one thread each,
within 1e-4 of their size otherwise.

--engine ray: this program's code is sent to the cluster, its libraries must be installed there. `ray start --head` on
the first machine prints how others join; --address names another cluster than this machine's (3 seconds to connect,
6 to prove that it is one). Without --address one is started on this machine for as long as the command runs.""",
    "allocate": f"""\
The allocation file: what --output and the Budget page write, and what evaluate, pack, export, report, train and the
Budget page read. It is JSON with these keys:
{_named(_ALLOCATION_FILE)}""",
    "export": f"""\
formats:
{_named({one.name: one.description for one in FORMATS.values()})}

An ONNX file has weights as integer initializers with a DequantizeLinear per output channel: 2 bits in UINT2 (opset
25), 3 and 4 in UINT4 (opset 21), 5 to 8 in UINT8. It takes batches of any size, and its metadata name the bits.
onnxruntime, Netron and whatever else runs ONNX read it.

torchao has true 2 to 8 bits per output channel; inputs become dynamic 8-bit, attention products stay in full
precision. ModelOpt's `quant_cfg` is a list that switches everything off first. Overlays of Model Explorer are weight
bits, activation bits, Ω, and Λ at 4 bits. None of the three need be installed. What a format cannot express is printed
with it.""",
    "report": """\
The page holds every figure, table, setting, version and seed of a study and opens from disk without a network (about
5.4 MB, of which plotly.js is 4.6). The zip beside it holds every table as CSV and everything as JSON. --comparisons
keeps to the average bits of the allocation.""",
    "train": f"""\
methods:
{_named(dict(TRAINING_METHODS))}

The model's own probabilities are the target (soft labels), so that labels are not needed. Training images are those of
the source that neither calibrate nor evaluate, randomly cropped, flipped and coloured as timm does it (the digits:
rotated, sheared, bent). ofq needs attentions that make query, key and value in one layer and change them no further:
ViT, DeiT, Swin. A file of --allocation is trained at exactly its bits.

Every epoch is saved. --resume goes on bit for bit as if nothing had happened. The weights kept are those of the epoch
with the least loss on the calibration images; evaluation images choose nothing. A loss that is no number ends the run
with a message and keeps the last epoch.

`accelerate launch -m mixqvit train ...` trains on several GPUs or processes: each takes its share of every batch, and
one process or several give the same up to rounding. GPUs with bfloat16 use it for the products.

--keep makes a study of the trained weights (lsq only), so that every page of the dashboard can look at them.""",
}
"""By the name of the command; most need none."""
