"""From the bytes of an image file to what a model reads, before normalization.

timm resizes and crops, Pillow opens. timm's own readers open files of any size and format, leave photographs lying on
their side, and clip 16 bits at 255.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from mixqvit.images.kinds import heif_is_read, is_heif, unread_content
from mixqvit.images.listing import UnreadableImage
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.models.reading import first_line

__all__ = ["FORMATS", "MAX_ASPECT", "MAX_PIXELS", "MAX_RESIZED_PIXELS", "decoder", "upright"]

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "HEIF")
"""What is opened, by Pillow's names: plain pictures. Never formats that start other programs, as PostScript does."""

MAX_PIXELS = 64 * 10**6
"""Pixels of one image: more than any camera's photograph in common use, 192 MB decoded."""

MAX_ASPECT = 100
"""Longer side by shorter side: the shorter one becomes the model's, and the longer one grows with it."""

MAX_RESIZED_PIXELS = 256 * 10**6
"""Pixels of an image resized for a model, of which the crop is taken: a crop of 1 % of a side needs a huge one."""

# What Pillow's readers raise for a damaged file; theirs is no error of one kind.
_PILLOW_RAISES = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# What Pillow warns about is either refused here (size) or said with the image (damage), or harmless.
warnings.filterwarnings("ignore", module=r"PIL\..*")


def decoder(preprocessing: Preprocessing) -> Callable[[bytes], Tensor]:
    """Return a function from a file's bytes to `[C, H, W]` uint8, resized and cropped as timm does.

    The function raises UnreadableImage.
    """
    import timm.data

    transform = timm.data.create_transform(**preprocessing.timm_config(), is_training=False, normalize=False)
    mode = "L" if preprocessing.input_size[0] == 1 else "RGB"

    def decode(data: bytes) -> Tensor:
        picture = upright(data, mode)
        _check_resized(picture.size, preprocessing)
        try:
            return transform(picture)
        except (ValueError, OSError, MemoryError) as error:
            raise UnreadableImage(f"it cannot be resized ({first_line(error)})") from error

    return decode


def upright(data: bytes, mode: str) -> Image.Image:
    """Return the picture in a file, turned as its EXIF data says, in mode `L` or `RGB`.

    Of an animation it is the first frame. Transparency is dropped, as timm's own readers do: the colours that were
    stored are kept. 16-bit values keep their upper 8 bits; values of unknown range (floating point, 32 bits) are
    stretched from their smallest to their largest where they are not 0 to 1, 0 to 255 or 16 bits already.

    Raises:
        UnreadableImage: It is damaged, too large, or of a kind that is not opened.
    """
    if not data:
        raise UnreadableImage("it is empty")
    Image.init()
    if is_heif(data):
        heif_is_read()
    try:
        with Image.open(BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            _check_size(*picture.size)
            picture.load()
            turned = ImageOps.exif_transpose(picture)
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(unread_content(data) or "it is damaged, or no image of a kind that is read") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"it has more than {MAX_PIXELS:,} pixels") from error
    except _PILLOW_RAISES as error:
        raise UnreadableImage(f"it is damaged ({first_line(error)})") from error
    shown = _eight_bits(turned)
    try:
        return shown.convert(mode)
    except ValueError as error:
        raise UnreadableImage(f"its colours are not read ({first_line(error)})") from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UnreadableImage(f"it has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"it has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(f"it is too long and narrow ({width}x{height} pixels)")


def _check_resized(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """Refuse what resizing would blow up: the shorter side becomes that of the model divided by the kept part."""
    height, width = (side / preprocessing.crop_pct for side in preprocessing.input_size[1:])
    elongation = 1.0 if preprocessing.crop_mode == "squash" else max(size) / min(size)
    if height * width * elongation > MAX_RESIZED_PIXELS:
        raise UnreadableImage(
            f"a crop of {preprocessing.crop_pct:g} of its side would need it resized to more than "
            f"{MAX_RESIZED_PIXELS:,} pixels"
        )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Returns a picture whose values need more than 8 bits with 8; Pillow itself would clip them at 255."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    if not np.isfinite(values).all():
        raise UnreadableImage("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if picture.mode != "F" and low >= 0 and high <= 65535:
        scaled = values // 256
    elif picture.mode == "F" and low >= 0 and high <= 1:
        scaled = np.rint(values * 255)
    elif picture.mode == "F" and low >= 0 and high <= 255:
        scaled = np.rint(values)
    else:
        scaled = np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-300)))
    return Image.fromarray(scaled.astype(np.uint8))
