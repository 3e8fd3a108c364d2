"""Flow matching in an angle: pure functions of tensors, samplers, and large fields in blocks."""
