"""Put a trained checkpoint into the package, with the figures measured on validation.

    python tools/ship_checkpoint.py runs/a/last --figures scores.json --sampler paper --steps 100
    python tools/ship_checkpoint.py runs/scorer/checkpoint --scorer --figures scores.json

Refuses weights over 15 MB, and a checkpoint that does not match more of validation than the one
it would replace; a scorer goes with the weights that it was trained for. With `--scorer` it alone
is shipped, beside these very weights.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from crystorus.checkpoint import (
    SCORER_CARD,
    SCORER_WEIGHTS,
    SHIPPED,
    WEIGHTS,
    load_checkpoint,
    read_card,
    read_scorer_card,
    save_checkpoint,
)
from crystorus.config import SamplerConfig

LIMIT = 15_000_000


def match_percent(card: dict) -> float:
    """Return the match rate a card names, -1 where it names none."""
    figures = card.get("validation", {}).get("model", {})
    return float(figures.get("match_percent_all", figures.get("match_percent", -1)))


def ship_scorer(folder: Path, figures: dict) -> None:
    """Put a scorer beside the shipped weights, with the figures of its choices."""
    card = read_scorer_card(folder)
    if card is None:
        raise SystemExit(f"{folder} holds no {SCORER_CARD}")
    shipped = read_card(SHIPPED)["sha256"]
    if card["card"]["checkpoint_sha256"] != shipped:
        raise SystemExit(
            f"the scorer of {folder} is for other weights than {shipped[:12]}…, which ship"
        )
    if figures["scorer"] != card["sha256"]:
        raise SystemExit(f"the figures are about another scorer: {figures['scorer'][:12]}…")
    card["card"]["validation"] = figures
    (SHIPPED / SCORER_CARD).write_text(json.dumps(card, indent=2) + "\n")
    shutil.copyfile(folder / SCORER_WEIGHTS, SHIPPED / SCORER_WEIGHTS)
    load_checkpoint(SHIPPED)


def main() -> None:
    """Ship one checkpoint or scorer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--figures", type=Path, required=True, help="from benchmarks/quality.py")
    parser.add_argument("--scorer", action="store_true", help="ship its scorer alone")
    parser.add_argument("--sampler", default="bridge")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--anti-annealing", type=float, default=0.0)
    a = parser.parse_args()
    if a.scorer:
        ship_scorer(a.checkpoint, json.loads(a.figures.read_text()))
        return
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
    for name in (SCORER_CARD, SCORER_WEIGHTS):  # of the weights before
        (SHIPPED / name).unlink(missing_ok=True)
    save_checkpoint(model, SHIPPED)


if __name__ == "__main__":
    main()
