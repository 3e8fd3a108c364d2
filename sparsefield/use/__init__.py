"""What a person uses: measurements in, fields out.

In: `read` (files) gives `points` (what was measured); `grids` (what is asked for, on a plane or a
`globe`). The answer: `predict.Reconstructor`, with `values` (ranges, transforms, what was learnt),
gives a `field.Field`. Out: `export` (files) and `holdout` (scores).
"""
