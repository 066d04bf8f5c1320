"""The networks: UNet and autoencoder, under diffusers' names for options and weights.

They are built from configurations and open no file. Read `layers`, `attention` and `autoencoder`
first, then `unet`.
"""
