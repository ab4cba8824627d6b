"""Where models come from: the package's own, a folder, the hub. The only door to huggingface_hub. Light."""

from tunesmith.hub.files import ModelFiles, resolve

__all__ = ["ModelFiles", "resolve"]
