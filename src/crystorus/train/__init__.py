"""Training of the denoising network (Algorithm 1, Table 1) and of the scorer of its candidates."""
