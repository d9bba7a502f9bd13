"""What lies on disk: files that are whole or absent, run folders, the hub."""

from .documents import read_document, shortened
from .files import held, load_tensors, prepare_folder, read_rows, save_tensors, write_file, write_json
from .hub import POLICY_FILES, is_hub_id, local_policy, upload_folder
from .run_folder import RunFolder

__all__ = [
    "POLICY_FILES",
    "RunFolder",
    "held",
    "is_hub_id",
    "load_tensors",
    "local_policy",
    "prepare_folder",
    "read_document",
    "read_rows",
    "save_tensors",
    "shortened",
    "upload_folder",
    "write_file",
    "write_json",
]
