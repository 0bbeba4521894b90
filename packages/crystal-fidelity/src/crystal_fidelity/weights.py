"""ALIGNN's published weights, fetched, read without running them, and kept as safetensors.

The published file is a zip with pickles. It is read once by a loader that knows tensors and
nothing else; what is kept carries the digest of its source.
"""

import hashlib
import http.client
import io
import json
import pickle
import urllib.request
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal_fidelity.alignn import Alignn
from crystal_fidelity.files import file_digest, whole_file

PUBLISHED = {
    "mp_e_form_alignn": "https://figshare.com/ndownloader/files/31458811",
    "mp_e_form_alignnn": "https://figshare.com/ndownloader/files/31458811",
}
"""Both spellings of one file: the name was misspelt until mid-2023."""
MAX_BYTES = 1 << 29
EXPECTED = {
    "alignn_layers": 4,
    "gcn_layers": 4,
    "atom_input_features": 92,
    "edge_input_features": 80,
    "triplet_input_features": 40,
    "embedding_features": 64,
    "hidden_features": 256,
    "output_features": 1,
}
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}
_INERT = ("torch.optim", "ignite", "collections", "numpy", "functools")
"""Optimiser states that sit beside the weights: replaced by nothing, never built."""


class _Nothing:
    """Stands for an object of the checkpoint that is not a weight."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and containers; refuses to name anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the few allowed constructors.

        Raises:
            pickle.UnpicklingError: the file asks for anything else.
        """
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        if module.startswith(_INERT) or (module, name) == ("builtins", "getattr"):
            return _Nothing
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}")


class _TensorPickle:
    """What `torch.load` needs of a pickle module."""

    Unpickler = _TensorUnpickler
    __name__ = "tensor_pickle"

    @staticmethod
    def load(file: Any, **_options: object) -> Any:
        """Unpickle with the restricted class."""
        return _TensorUnpickler(file).load()


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read weights from safetensors, an official .zip or a .pt checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, hostile, too large, or not this architecture.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes > {MAX_BYTES}: not ALIGNN weights (about 50 MB)")
    if path.suffix == ".safetensors":
        return _checked(_read_safetensors(path), path)
    data = path.read_bytes()
    return _checked(_read_pickle(_checkpoint_of(data, path), path), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _checkpoint_of(data: bytes, path: Path) -> bytes:
    """Return the last checkpoint of an official zip, or the data if they are a checkpoint."""
    if path.suffix != ".zip":
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            checkpoints = [n for n in names if "checkpoint_" in n and n.endswith(".pt")]
            if not checkpoints:
                raise ValueError(f"{path} holds no checkpoint_*.pt")
            for name in (n for n in names if n.endswith("config.json")):
                _check_config(json.loads(archive.read(name)), path)
            if archive.getinfo(checkpoints[-1]).file_size > MAX_BYTES:
                raise ValueError(f"{path}: {checkpoints[-1]} is larger than {MAX_BYTES} bytes")
            return archive.read(checkpoints[-1])
    except (zipfile.BadZipFile, json.JSONDecodeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole zip: {error}; download it again") from error


def _check_config(config: dict[str, Any], path: Path) -> None:
    model = config.get("model", {})
    for key, value in EXPECTED.items():
        if key in model and model[key] != value:
            raise ValueError(f"{path}: {key} = {model[key]}, this network has {value}")


def _read_pickle(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(
            io.BytesIO(data), map_location="cpu", pickle_module=_TensorPickle, weights_only=False
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}, which is not a tensor") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no weights under 'model'")
    return dict(weights)


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    wanted = {name: tuple(t.shape) for name, t in Alignn().state_dict().items()}
    found = {n: tuple(t.shape) if isinstance(t, Tensor) else None for n, t in tensors.items()}
    if found != wanted:
        wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        raise ValueError(
            f"{path} is not ALIGNN with 4 + 4 layers of 256: {len(wrong)} of {len(wanted)} tensors "
            f"are missing or have another shape, such as {wrong[0]}"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity")
    return {name: tensors[name] for name in wanted}


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names and values: the same for every container of the same weights."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].detach().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def convert_weights(source: str | Path, target: str | Path) -> str:
    """Write weights as safetensors with the digest of their source; return the tensors' digest.

    Raises:
        ValueError: see `load_weights`.
    """
    from safetensors.torch import save_file

    tensors = load_weights(source)
    metadata = {
        "source": Path(source).name,
        "source_sha256": file_digest(source),
        "tensors_sha256": tensors_digest(tensors),
    }
    with whole_file(target) as file:
        save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata=metadata)
    return metadata["tensors_sha256"]


def fetch_weights(name: str, target: str | Path, *, sha256: str | None = None) -> str:
    """Download a published zip; return its SHA-256, checked if one is given.

    Raises:
        ValueError: the name is not known, or the digest differs (the file is then removed).
        OSError: the download failed.
    """
    if name not in PUBLISHED:
        raise ValueError(f"weights {name!r} are not known; choose from {', '.join(PUBLISHED)}")
    part = Path(target).with_name(Path(target).name + ".part")
    try:
        _download(PUBLISHED[name], part)
        found = file_digest(part)
        if sha256 and found != sha256.lower():
            raise ValueError(f"{name}: SHA-256 {found}, expected {sha256}; the file was removed")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return found


def _download(url: str, target: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "crystal-fidelity"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer, target.open("wb") as out:
            while block := answer.read(1 << 20):
                out.write(block)
                if out.tell() > MAX_BYTES:
                    raise ValueError(
                        f"{url}: more than {MAX_BYTES} bytes, weights have about 50 MB"
                    )
            promised = answer.headers.get("Content-Length")
            if promised and out.tell() != int(promised):
                raise ValueError(f"{url}: {out.tell()} of {promised} bytes came; try again")
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"{url} cannot be downloaded ({error}); fetch it with a browser and give the file to "
            "`crystal-fidelity weights convert`"
        ) from error
