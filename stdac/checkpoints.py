"""Checkpoints: read whole, or not at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stdac.errors import StdacError
from stdac.files import check_archive, open_plain

TO_RESUME = ("phases", "rows", "protocol", "fingerprint")
"""What a trial needs of a checkpoint to go on."""


def load_checkpoint(path: Path, parts: Iterable[str] = TO_RESUME) -> dict[str, Any]:
    """A trial's checkpoint, its tensors on the CPU.

    Raises StdacError where it is not exactly what was written, or lacks one of these parts.
    `torch.load` checks no checksum: of an archive with a flipped bit it would make other weights.
    """
    import torch

    try:
        with open_plain(path) as file:
            check_archive(file)
            file.seek(0)
            checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict) and checkpoint.keys() >= set(parts):
            return checkpoint
        reason = "it is not a checkpoint of ours"
    except StdacError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception:  # noqa: BLE001 - torch raises whatever an archive that is not ours makes it stumble over
        reason = "it is not a checkpoint of ours"
    raise StdacError(f"{path} cannot be used ({reason})")
