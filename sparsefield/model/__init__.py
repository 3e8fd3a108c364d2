"""What the models are made of: closed form, tokens, Mamba, attention, and the file of their weights."""
