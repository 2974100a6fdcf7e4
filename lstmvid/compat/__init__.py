"""Bridges to other code: what it wrote is read here, what it built runs on our kernels."""
