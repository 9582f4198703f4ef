import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from mixqvit.images.decoding import MAX_PIXELS, decoder, upright
from mixqvit.images.images import normalized
from mixqvit.images.listing import UnreadableImage
from mixqvit.models.preprocessing import Preprocessing
from tests.images.files import encoded

CORNERS = np.array([[0, 50], [100, 150], [200, 250]], dtype=np.uint8)  # 3 high, 2 wide


def values(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(upright(data, mode))


def sixteen_bit_png(rows: list[list[int]]) -> bytes:
    """A grayscale PNG of 16 bits, written by hand as the format's specification says."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 16, 0, 0, 0, 0)
    lines = b"".join(b"\0" + struct.pack(f">{len(row)}H", *row) for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 50], [100, 150], [200, 250]]),
        (2, [[50, 0], [150, 100], [250, 200]]),
        (3, [[250, 200], [150, 100], [50, 0]]),
        (4, [[200, 250], [100, 150], [0, 50]]),
        (5, [[0, 100, 200], [50, 150, 250]]),
        (6, [[200, 100, 0], [250, 150, 50]]),
        (7, [[250, 150, 50], [200, 100, 0]]),
        (8, [[50, 150, 250], [0, 100, 200]]),
    ],
)
def test_exif_rotation(orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert values(encoded(Image.fromarray(CORNERS), exif=exif), "L").tolist() == expected


def test_grayscale_becomes_three_equal_channels_and_colour_its_brightness() -> None:
    assert values(encoded(Image.fromarray(CORNERS))).tolist() == np.stack([CORNERS] * 3, -1).tolist()
    colour = encoded(Image.new("RGB", (1, 1), (200, 100, 50)))
    assert values(colour, "L").tolist() == [[round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]]


@pytest.mark.parametrize(("cmyk", "rgb"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((0, 0, 0, 100), 155)])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_ink_on_white(cmyk: tuple[int, ...], rgb: int, kind: str) -> None:
    data = encoded(Image.new("CMYK", (8, 8), cmyk), kind)
    assert np.abs(values(data).astype(int) - rgb).max() <= 2


def test_cmyk_colours_are_the_missing_ink() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF")
    assert values(data)[0, 0].tolist() == [0, 255, 255]


def test_ycck_as_adobe_writes_it() -> None:
    """Inverted ink (200, 100, 50, 255) is stored as Y, Cb, Cr of 255 minus it, and black as it is; mark 2 says so."""
    red, green, blue = 255 - 200, 255 - 100, 255 - 50
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    stored = (brightness, 128 + (blue - brightness) / 1.772, 128 + (red - brightness) / 1.402, 255)
    ink = tuple(255 - round(value) for value in stored)  # Pillow inverts what it writes
    data = bytearray(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
    mark = data.index(b"Adobe") + 11
    assert data[mark] == 0
    data[mark] = 2
    assert np.abs(values(bytes(data))[0, 0].astype(int) - [200, 100, 50]).max() <= 3


def test_palette_with_transparency_keeps_the_stored_colours() -> None:
    indices = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    indices.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    for data in (
        encoded(indices, transparency=1),
        encoded(indices, transparency=bytes([0, 128, 255])),
        encoded(indices, "GIF", transparency=1),
    ):
        assert values(data).tolist() == [[[10, 20, 30], [200, 100, 50], [0, 0, 255]]]


def test_transparency_is_dropped_as_timm_does() -> None:
    colours = np.array([[[10, 20, 30, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    assert values(encoded(Image.fromarray(colours))).tolist() == colours[..., :3].tolist()
    gray = np.array([[[10, 0], [200, 255]]], dtype=np.uint8)
    assert values(encoded(Image.fromarray(gray, "LA")), "L").tolist() == [[10, 200]]
    assert values(encoded(Image.fromarray(gray, "LA"))).tolist() == [[[10] * 3, [200] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert values(encoded(image, kind), "L").tolist() == [[255, 0, 255]]


def test_sixteen_bits_keep_the_upper_eight() -> None:
    rows = [[0, 255, 256, 32768], [300, 51 * 256, 65535, 255 * 256]]
    expected = [[0, 0, 1, 128], [1, 51, 255, 255]]
    assert values(sixteen_bit_png(rows), "L").tolist() == expected
    array = np.array(rows, dtype=np.uint16)
    assert values(encoded(Image.fromarray(array), "TIFF"), "L").tolist() == expected
    assert values(encoded(Image.fromarray(array), "TIFF"))[..., 2].tolist() == expected
    big_endian = Image.frombytes("I;16B", (4, 2), array.astype(">u2").tobytes())
    assert values(encoded(big_endian, "TIFF"), "L").tolist() == expected
    assert values(encoded(Image.fromarray(array.astype(np.int32)), "TIFF"), "L").tolist() == expected


def test_sixteen_bits_are_turned_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    array = (CORNERS.astype(np.uint16)) * 256
    data = encoded(Image.fromarray(array), "TIFF", exif=exif)
    assert values(data, "L").tolist() == [[200, 100, 0], [250, 150, 50]]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([1000.0, 2000.0, 5000.0], [0, 64, 255]),
        ([-5.0, -5.0, -5.0], [0, 0, 0]),
    ],
)
def test_floating_point(stored: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([stored], dtype=np.float32)), "TIFF")
    assert values(data, "L").tolist() == [expected]


def test_thirty_two_bits_are_stretched() -> None:
    data = encoded(Image.fromarray(np.array([[0, 10**6, 2 * 10**6]], dtype=np.int32)), "TIFF")
    assert values(data, "L").tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert values(data)[0, 0].tolist() == [255, 0, 0]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not an image at all", "no image of a kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image of a kind"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "damaged"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "damaged"),
        (bomb(10_000, 10_000), "10000x10000 pixels"),
        (bomb(60_000, 60_000), f"more than {MAX_PIXELS:,}"),
        (bomb(2**31 - 1, 2**31 - 1), "more than"),
        (bomb(101, 1), "too long and narrow"),
        (encoded(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF"), "not finite"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_read_says_why(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        upright(data, "RGB")


def test_colours_that_pillow_cannot_convert_say_so() -> None:
    with pytest.raises(UnreadableImage, match=r"its colours are not read \(conversion from LAB"):
        upright(encoded(Image.new("LAB", (4, 4)), "TIFF"), "L")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_pixels_are_bit_identical_to_timm(channels: int, crop_mode: str) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    preprocessing = Preprocessing((channels, 32, 32), mean, std, "bicubic", 0.9, crop_mode)
    mode = "L" if channels == 1 else "RGB"
    shape = (61, 47) if channels == 1 else (61, 47, 3)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), mode)
    expected = timm.data.create_transform(**preprocessing.timm_config(), is_training=False)(image)
    raw = decoder(preprocessing)(encoded(image))
    assert raw.dtype == torch.uint8
    assert raw.shape == (channels, 32, 32)
    assert torch.equal(normalized(raw.unsqueeze(0), mean, std)[0], expected)


def test_normalization_of_every_byte_is_that_of_timm() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    transform = timm.data.create_transform((3, 16, 16), mean=mean, std=std, crop_pct=1.0, is_training=False)
    raw = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(normalized(raw, mean, std), transform(image))
    assert torch.equal(raw, torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)), "the bytes stay as they are"


def test_formats_that_start_other_programs_are_not_opened() -> None:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "EPS")
    with pytest.raises(UnreadableImage):
        upright(file.getvalue(), "RGB")


@pytest.mark.parametrize(("crop", "size"), [(0.001, (20, 20)), (0.02, (2000, 20))])
def test_a_crop_that_would_blow_the_image_up_is_refused(crop: float, size: tuple[int, int]) -> None:
    decode = decoder(Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, crop_pct=crop))
    with pytest.raises(UnreadableImage, match="resized to more than"):
        decode(encoded(Image.new("RGB", size)))
