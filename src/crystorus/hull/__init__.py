"""From a chemical system to a ranked convex hull: a campaign whose state is an ASE database."""
