"""The smallest network of the default preset that the tests share."""

TINY = {
    "network": {
        "channels": 16,
        "vector_channels": 4,
        "tensor_channels": 4,
        "pair_channels": 8,
        "gate_channels": 4,
        "blocks": 1,
    },
    "diffusion": {"steps": 20},
}
