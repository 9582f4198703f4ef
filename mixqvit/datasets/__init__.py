"""Images: the embedded handwritten digits, folders, archives, tables, and data sets of the Hugging Face hub."""

from mixqvit.datasets.digits import DIGITS_MEAN, DIGITS_SIZE, DIGITS_STD
from mixqvit.datasets.images import Images, normalized
from mixqvit.datasets.loading import ImageSets, Sample, load_image_sets, load_image_sets_steps, load_images
from mixqvit.datasets.sampling import CALIBRATION_LIMIT, EVALUATION_LIMIT, Sampling
from mixqvit.datasets.training_images import TrainingBatch, TrainingImages
from mixqvit.datasets.training_sources import load_training_images, load_training_images_steps

__all__ = [
    "CALIBRATION_LIMIT",
    "DIGITS_MEAN",
    "DIGITS_SIZE",
    "DIGITS_STD",
    "EVALUATION_LIMIT",
    "ImageSets",
    "Images",
    "Sample",
    "Sampling",
    "TrainingBatch",
    "TrainingImages",
    "load_image_sets",
    "load_image_sets_steps",
    "load_images",
    "load_training_images",
    "load_training_images_steps",
    "normalized",
]
