"""What lies on disk: files that are whole or absent, run folders, the hub."""

from .content import HEAD, holds_files, not_the_file
from .documents import MIB, check_value, parse_document, read_bytes, read_document, regular_file, shortened
from .files import (
    Card,
    card_digest,
    folder_name,
    held,
    load_checkpoint,
    prepare_folder,
    read_card,
    read_rows,
    read_tensors,
    save_tensors,
    write_file,
    write_json,
)
from .hub import POLICY_FILES, is_hub_id, local_policy, upload_folder
from .run_folder import RunFolder
from .tensors import TensorFacts, facts_of, read_header
from .text import text_lines
from .yaml_documents import MAX_YAML, parse_yaml, read_yaml_document

__all__ = [
    "HEAD",
    "MAX_YAML",
    "MIB",
    "POLICY_FILES",
    "Card",
    "RunFolder",
    "TensorFacts",
    "card_digest",
    "check_value",
    "facts_of",
    "folder_name",
    "held",
    "holds_files",
    "is_hub_id",
    "load_checkpoint",
    "local_policy",
    "not_the_file",
    "parse_document",
    "parse_yaml",
    "prepare_folder",
    "read_bytes",
    "read_card",
    "read_document",
    "read_header",
    "read_rows",
    "read_tensors",
    "read_yaml_document",
    "regular_file",
    "save_tensors",
    "shortened",
    "text_lines",
    "upload_folder",
    "write_file",
    "write_json",
]
