"""The experiments of the chapter on quadcopters: read `training`, then `plans` and `flights`.

`training` has the networks, `plans` the best flights without wind and their linear feedback,
`flights` the costs of all controllers in common winds, `disturbances` what no controller was told,
and `mixtures` the mean of a network and a quadratic form.
"""
