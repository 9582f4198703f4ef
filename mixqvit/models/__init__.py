"""Models: the embedded ones, timm's by name, and timm architectures with weights from a local file."""
