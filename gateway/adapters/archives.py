"""The file of an upload, which may be an archive of both files."""

from pathlib import Path

from gateway.adapters.errors import InvalidAdapter
from gateway.adapters.members import Unpacking
from gateway.adapters.tar_reader import is_gzip, is_tar, unpack_tar
from gateway.adapters.validation import CONFIG, WEIGHTS
from gateway.adapters.zip_reader import is_zip, unpack_zip


def lay_out(upload: Path, config: Path | None, folder: Path, most_bytes: int) -> None:
    """Put both files of the adapter into the empty folder, under the names that PEFT gives them.

    ``upload`` is moved there if it is not an archive. Raises `InvalidAdapter`. Blocks.
    """
    packed = is_zip(upload), is_tar(upload) or is_gzip(upload)
    if not any(packed):
        if config is None:
            raise InvalidAdapter(
                "Missing part 'config': adapter_config.json goes with adapter_model.safetensors. "
                "Or send both in one tar or zip archive as 'file'.",
                "config",
            )
        upload.rename(folder / WEIGHTS)
        config.rename(folder / CONFIG)
        return
    if config is not None:
        raise InvalidAdapter("Send 'config' only if 'file' is not an archive.", "config")
    unpacking = Unpacking(folder, most_bytes)
    if packed[0]:
        unpack_zip(upload, unpacking)
    else:
        unpack_tar(upload, unpacking)
    unpacking.end()
    upload.unlink()
