"""What a person uses: measurements in, fields out.

In: `measurements` reads `pictures` and `tables` (`text`, `columns`) into `points`.
Where: `frame`, `globe`; on which grid: `grids`, `asked`.
The answer: `domain` chooses a model, `reconstruction` is the call; it turns `arguments` into what a
`trained` model sees (`scales`, `transforms`), `drawing` asks that, `answering` brings it back.
Out: `field`, its files (`written`, `plots`), what is said of it (`words`), and whether to trust it
(`holdout`, `scores`).
"""
