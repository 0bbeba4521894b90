"""Put a trained checkpoint into the package, with the figures measured on validation.

    python tools/ship_checkpoint.py runs/a/last --figures scores.json --sampler paper --steps 100

Refuses weights over 15 MB, and a checkpoint that does not match more of validation than the one
it would replace.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from crystorus.checkpoint import SHIPPED, WEIGHTS, load_checkpoint, read_card, save_checkpoint
from crystorus.diffusion.algorithms import SamplerConfig

LIMIT = 15_000_000


def match_percent(card: dict) -> float:
    """Return the match rate a card names, -1 where it names none."""
    return float(card.get("validation", {}).get("model", {}).get("match_percent", -1))


def main() -> None:
    """Ship one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--figures", type=Path, required=True, help="from benchmarks/quality.py")
    parser.add_argument("--sampler", default="bridge")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--anti-annealing", type=float, default=0.0)
    a = parser.parse_args()
    size = (a.checkpoint / WEIGHTS).stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{a.checkpoint / WEIGHTS} has {size} bytes, limit {LIMIT}")
    model = load_checkpoint(a.checkpoint)
    figures = json.loads(a.figures.read_text())
    if figures["checkpoint"] != model.digest:
        raise SystemExit(f"{a.figures} is about other weights: {figures['checkpoint'][:12]}…")
    model.card["validation"] = figures
    if SHIPPED.is_dir():
        old, new = match_percent(read_card(SHIPPED).get("card", {})), match_percent(model.card)
        if new <= old:
            raise SystemExit(f"matches {new:.1f} % of validation, the shipped one {old:.1f} %")
    sampling = SamplerConfig(a.sampler, a.steps, a.anti_annealing)
    model.config = dataclasses.replace(model.config, sampling=sampling)
    save_checkpoint(model, SHIPPED)


if __name__ == "__main__":
    main()
