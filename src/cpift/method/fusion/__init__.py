"""Stage 3, fuse, in parts: what is read, the coefficients of a tensor, the fused values of a block, one read of all."""
