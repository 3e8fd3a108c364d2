"""What a person uses: measurements in, fields out.

In: `read` (files, pictures) and `tables` give `points`.
Where: `grids` (coordinates, cells) and `globe`.
The answer: `predict.Reconstructor`, with `values` (ranges, transforms).
Out: `export`, `plots`, `messages` (choice of a model, what is printed) and `holdout` (scores).
"""
