"""MAMBA Diffusion: whole fields from few measurements, by flow matching over tokens."""
