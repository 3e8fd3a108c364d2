"""What a person uses: measurements in, fields out.

In: `read` (files) gives `points` (what was measured); `grids` (what is asked for, on a plane or a
`globe`). The answer: `predict.Reconstructor`, with `values` (ranges, transforms, what was learnt),
gives a `field.Field`; a `large` field is a `mosaic` of tiles. Out: `export` (files) and `holdout`
(scores).
"""
