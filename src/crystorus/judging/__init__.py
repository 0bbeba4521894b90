"""Training a judge: crystals that a checkpoint makes of known compositions, and which are right."""
