"""Where models come from: the package's own, a folder, the hub. The only door to huggingface_hub. Light."""

from tunesmith.hub.download import fetch_rows, is_hub_name, latest_commit, telling
from tunesmith.hub.files import ModelConfig, ModelFiles, resolve, resolve_config
from tunesmith.hub.hashes import file_sha256
from tunesmith.hub.trusted import is_carried, read_json, refuse_code, refuse_odd_files

__all__ = [
    "ModelConfig",
    "ModelFiles",
    "fetch_rows",
    "file_sha256",
    "is_carried",
    "is_hub_name",
    "latest_commit",
    "read_json",
    "refuse_code",
    "refuse_odd_files",
    "resolve",
    "resolve_config",
    "telling",
]
