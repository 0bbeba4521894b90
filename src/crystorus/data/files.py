"""The former place of `crystal_fidelity.files`."""

from crystal_fidelity.files import file_digest
from crystal_fidelity.files import write_atomic as write_whole

__all__ = ["file_digest", "write_whole"]
