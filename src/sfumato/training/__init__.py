"""Training: from a folder of captioned pictures to a model, in two stages.

Read `data`, `losses`, `optimizer`, `checkpoint`, then `loop`, which joins them; `autoencoder` and
`text_to_image` are the recipes, and `run` and `report` what a run leaves in its folder.
"""
