"""What a failed download is told as: what is wrong and what can be done, whatever the hub's client calls it."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub import errors

from adanat_plugins.weights import asset, resolve
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.storage import local_policy


def failure(kind: type[Exception]) -> Exception:
    """Of the hub's client, whose constructors want an answer of one of two libraries."""
    return kind.__new__(kind, "404: a long page")


FAILURES = {
    "no such repository, or it is private": failure(errors.RepositoryNotFoundError),
    "accept it on the repository's page": failure(errors.GatedRepoError),
    "no such revision: leave @REVISION out": failure(errors.RevisionNotFoundError),
    "the hub cannot be reached": failure(errors.LocalEntryNotFoundError),
    r"\(No space left on device\).*free space": OSError("No space left on device"),
}


@pytest.mark.parametrize("meaning", FAILURES)
def test_a_failed_download_says_what_to_do(meaning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise FAILURES[meaning]

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    with pytest.raises(ConfigError, match=f"no policy at 'owner/name'.*{meaning}"):
        local_policy("owner/name")
    with pytest.raises(WeightsError, match=f"(?s)cannot fetch var_d16.pth of hub id owner/name: .*{meaning}"):
        resolve("owner/name", asset("var:d16", "generator"), offline=False)
