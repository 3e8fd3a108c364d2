"""What the models are made of: closed form, tokens, Mamba, attention; the file of their weights."""
