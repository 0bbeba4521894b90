"""Networks whose outputs are vector fields, equivariant under E(3) × SL₃(Z)."""
