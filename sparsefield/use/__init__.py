"""What a person uses: measurements in, fields out."""
