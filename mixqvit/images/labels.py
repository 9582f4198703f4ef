"""What a person may call the labels of images and say about them: words that need no torch."""

__all__ = ["FILE_COLUMNS", "LABEL_COLUMNS", "LABEL_ORDERS"]

LABEL_ORDERS = {
    "number": "sorted by number, as timm does, one for every class; fewer are class indices counted from 0",
    "torchvision": "sorted as text, as torchvision does, one for every class",
    "names": "never by their order: each must be the name of a class",
}
"""What labels mean that are no names of the model's classes, with what each choice says."""

FILE_COLUMNS = ("file", "path", "image", "filename", "file_name", "filepath", "file_path", "image_path")
"""What the column of the files may be called in a table, in whatever letter case."""

LABEL_COLUMNS = ("label", "class", "target", "category", "label_name", "class_name")
"""What the column of the labels may be called in a table."""
