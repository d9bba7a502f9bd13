"""What lies on disk: files that are whole or absent, run folders, the hub."""

from .content import HEAD, content_hash, holds_files, not_the_file
from .documents import (
    MAX_DOCUMENT,
    MIB,
    check_value,
    parse_document,
    read_bytes,
    read_document,
    read_head,
    regular_file,
    shortened,
)
from .files import (
    Card,
    card_digest,
    folder_name,
    held,
    load_checkpoint,
    prepare_file,
    prepare_folder,
    read_card,
    read_rows,
    read_tensors,
    refuse_links,
    save_tensors,
    write_file,
    write_json,
)
from .hub import POLICY_FILES, downloads_refused, is_hub_id, local_policy, upload_folder, why_not_fetched
from .replace import again_if_replaced
from .run_folder import MetricsLog, RunFolder
from .tensors import TensorFacts, facts_of, read_header
from .text import read_prompts, text_lines
from .yaml_documents import MAX_YAML, parse_yaml, read_yaml_document

__all__ = [
    "HEAD",
    "MAX_DOCUMENT",
    "MAX_YAML",
    "MIB",
    "POLICY_FILES",
    "Card",
    "MetricsLog",
    "RunFolder",
    "TensorFacts",
    "again_if_replaced",
    "card_digest",
    "check_value",
    "content_hash",
    "downloads_refused",
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
    "prepare_file",
    "prepare_folder",
    "read_bytes",
    "read_card",
    "read_document",
    "read_head",
    "read_header",
    "read_prompts",
    "read_rows",
    "read_tensors",
    "read_yaml_document",
    "refuse_links",
    "regular_file",
    "save_tensors",
    "shortened",
    "text_lines",
    "upload_folder",
    "why_not_fetched",
    "write_file",
    "write_json",
]
