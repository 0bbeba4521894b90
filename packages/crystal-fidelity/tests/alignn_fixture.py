"""Weights and structures of the recorded ALIGNN parity check: seeded, so that both sides agree."""

import numpy as np
import prototypes


def seeded_tensors(
    shapes: dict[str, tuple[int, ...]], seed: int = 20240324
) -> dict[str, np.ndarray]:
    """Values for every tensor of the official state dict, from numpy's frozen legacy generator."""
    random = np.random.RandomState(seed)
    tensors = {}
    for name in sorted(shapes):
        shape = shapes[name]
        values = random.standard_normal(shape)
        if name.endswith("running_var"):
            tensors[name] = (0.5 + values**2).astype(np.float32)
        elif name.endswith("num_batches_tracked"):
            tensors[name] = np.array(0)
        elif name.endswith("centers"):
            high = 8.0 if "edge" in name else 1.0
            tensors[name] = np.linspace(high - 2 * high if high == 1 else 0, high, shape[0])
        elif len(shape) == 2:
            tensors[name] = (values / np.sqrt(shape[1])).astype(np.float32)
        else:
            tensors[name] = (0.1 * values + name.endswith("weight")).astype(np.float32)
    return tensors


def seeded_state(network):
    """A state for a network of torch with those values."""
    import torch

    state = network.state_dict()
    values = seeded_tensors({name: tuple(tensor.shape) for name, tensor in state.items()})
    return {name: torch.from_numpy(v).to(state[name].dtype) for name, v in values.items()}


def structures():
    """Prototypes, rattled prototypes, moved prototypes, a sparse cell and random ones."""
    plain = prototypes.everything()
    rattled = [prototypes.rattled(c, 0.05, i) for i, c in enumerate(plain)]
    moved = [prototypes.moved(c, i) for i, c in enumerate(plain)]
    sparse = [prototypes.simple_cubic(3.36), prototypes.simple_cubic(9.5, "Cs")]
    return plain + rattled + moved + sparse + [prototypes.random_crystal(i, 5) for i in range(6)]
